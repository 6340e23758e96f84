"""Devices: which one a check runs on, and what that device can do.

Everything is asked of torch, so that a backend it learns of later works here too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from pytest_triguard.device_names import split
from pytest_triguard.errors import ConfigError

_OPTION = "--triguard-device"


def resolve(name: str | None, *, fallback: torch.device, worker: int | None = None) -> torch.device:
    """Return the device that a name stands for on this machine.

    Args:
        name: Device name, such as `cpu`, `cuda`, `cuda:1` or `mps`, or None for the fallback.
        fallback: The module's own device.
        worker: Index of the pytest-xdist worker, or None outside one. An accelerator named
            without an index is number `worker` modulo the visible count, or number 0 outside a
            worker; an index is taken literally.

    Returns:
        The device, with its index if it is an accelerator.

    Raises:
        ConfigError: If the name is not spelt like a device, if torch knows no such type, if no
            such device is here, or if the index is beyond the visible count.
    """
    if name is None:
        return fallback
    try:
        kind, index = split(name)
    except ConfigError as error:
        raise ConfigError(f"{_OPTION}: {error}") from None
    count = _visible(kind)
    if count == 0:
        raise _missing(name, f"no device of type {kind!r} was found")
    if index is not None and index >= count:
        raise _missing(name, f"the visible devices of type {kind!r} end at index {count - 1}")
    if kind == "cpu":
        return torch.device(kind)
    return torch.device(kind, (worker or 0) % count if index is None else index)


def available() -> list[str]:
    """Return the names of the devices on this machine, the CPU first."""
    try:
        accelerator = torch.accelerator.current_accelerator()
    except RuntimeError:  # how torch 2.6 says that there is none
        accelerator = None
    kind = "cpu" if accelerator is None else accelerator.type
    return ["cpu", *(f"{kind}:{index}" for index in range(_visible(kind)) if kind != "cpu")]


def is_host(device: torch.device) -> bool:
    """Return whether Python can read tensors on a device without waiting for it or copying."""
    return device.type == "cpu"


@contextmanager
def host_by_default() -> Iterator[torch.device]:
    """Make tensors on the host where no device is named, whatever `torch.set_default_device` says.

    Yields:
        The default device outside of the block.
    """
    outside = torch.get_default_device()
    with nullcontext() if is_host(outside) else torch.device("cpu"):
        yield outside


def synchronize(device: torch.device) -> None:
    """Wait until the work queued on a device is done, so that a clock can be read."""
    if is_host(device):
        return
    wait = torch.get_device_module(device).synchronize
    if inspect.signature(wait).parameters:
        wait(device)
    else:
        wait()


def supports_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64; the `mps` type, for one, does not."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True


def _visible(kind: str) -> int:
    """Return the number of visible devices of a type, 0 if torch does not know the type."""
    try:
        module = torch.get_device_module(kind)
    except RuntimeError:
        return 0
    return int(module.device_count()) if module.is_available() else 0


def _missing(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"{_OPTION}={name}: {why}; expected one of those available here: {', '.join(available())}"
    )
