"""The generators of random numbers that a module may draw from: torch's, numpy's and Python's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_triguard.engine.devices import is_host


class Generators:
    """The state of the generators when this was made.

    Args:
        device: Device of the module; its generator counts beside that of the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = torch.get_rng_state()
        self._own = _state_on(device)
        self._numpy: Any = np.random.get_state()
        self._python = random.getstate()

    def moved(self) -> bool:
        """Return whether anything was drawn since."""
        now = Generators(self._device)
        own = (
            self._own is not None and now._own is not None and not torch.equal(self._own, now._own)
        )
        numpy = any(
            not np.array_equal(before, after)
            for before, after in zip(self._numpy, now._numpy, strict=True)
        )
        return own or numpy or not torch.equal(self._host, now._host) or self._python != now._python

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self._host)
        if self._own is not None:
            torch.get_device_module(self._device).set_rng_state(self._own, self._device)
        np.random.set_state(self._numpy)
        random.setstate(self._python)


def _state_on(device: torch.device) -> Tensor | None:
    """Return the state of an accelerator's generator, if it has one."""
    if is_host(device):
        return None
    module = torch.get_device_module(device)
    state: Tensor | None = (
        module.get_rng_state(device) if hasattr(module, "get_rng_state") else None
    )
    return state
