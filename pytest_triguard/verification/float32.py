"""What float32 bounds and proofs take for granted of float32, and where that does not hold.

A proof for the module's own float32 covers sums of IEEE float32 products in any order, with or
without fused multiplication, and functions to within a few units in the last place. It does not
cover algorithms that rearrange products (Winograd, FFT) or that compute with fewer digits (TF32,
bfloat16, autocast). Whether torch may use one is asked of the settings that it would follow on the
module's device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytest_triguard.engine.model import Model
from pytest_triguard.errors import InputError

_EXACT = (None, "none", "ieee", "highest")
"""What a precision may be set to; `"none"` leaves it to a setting that is asked, too."""

_SWITCHES: dict[str, tuple[tuple[str, tuple[Any, ...]], ...]] = {
    "cpu": (
        ("fp32_precision", _EXACT),
        ("mkldnn.fp32_precision", _EXACT),
        ("mkldnn.conv.fp32_precision", _EXACT),
        ("mkldnn.matmul.fp32_precision", _EXACT),
    ),
    "cuda": (
        ("fp32_precision", _EXACT),
        ("cuda.matmul.fp32_precision", _EXACT),
        ("cuda.matmul.allow_tf32", (False,)),
        ("cudnn.enabled", (False,)),
    ),
}
"""Attributes of `torch.backends` by device type, and what they have to be."""

_VARIABLES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "cpu": (("ONEDNN_DEFAULT_FPMATH_MODE", ("", "STRICT")),),
    "cuda": (("NVIDIA_TF32_OVERRIDE", ("", "0")), ("CUBLAS_EMULATE_SINGLE_PRECISION", ("", "0"))),
}
"""Variables of the environment that libraries read, and what they have to be."""


def refuse_other_arithmetic(model: Model, inputs: Tensor) -> None:
    """Refuse a module, or settings, with which products are not IEEE float32.

    Args:
        model: The network.
        inputs: Some inputs on its device.

    Raises:
        InputError: If the module computes in something else, or torch is allowed to.
    """
    refuse_other_dtype(inputs.dtype)
    kind = model.device.type
    if kind not in _SWITCHES:
        raise InputError(
            f"arithmetic='float32' is known on {' and '.join(_SWITCHES)}, but the module is on "
            f"{kind}, whose products are not known to be IEEE float32"
        )
    for name, value, wanted in (*_settings(kind), *_environment(kind)):
        raise InputError(
            f"arithmetic='float32' holds for IEEE float32 products summed in any order, but "
            f"{name} is {value!r}; set it to {wanted!r} where the module runs, too"
        )
    with model.passes.uncounted(), torch.no_grad(), _OneDtype():  # type: ignore[no-untyped-call]
        model.logits(inputs)


def is_ieee(device: torch.device) -> bool:
    """Return whether float32 products on a device are known to be IEEE float32."""
    kind = device.type
    return kind in _SWITCHES and not any((*_settings(kind), *_environment(kind)))


def refuse_other_dtype(dtype: torch.dtype) -> None:
    """Refuse a module that computes in another dtype than float32.

    Raises:
        InputError: If it does.
    """
    if dtype != torch.float32:
        raise InputError(
            f"arithmetic='float32' needs a float32 module, but this one computes in {dtype}"
        )


def _settings(kind: str) -> Iterator[tuple[str, Any, Any]]:
    """Hand out settings of torch that allow other products: name, value and what is wanted."""
    if torch.is_autocast_enabled(kind):
        yield f"torch.is_autocast_enabled({kind!r})", True, False
    if torch.get_float32_matmul_precision() != "highest":
        precision = torch.get_float32_matmul_precision()
        yield "torch.get_float32_matmul_precision()", precision, "highest"
    for path, allowed in _SWITCHES[kind]:
        value = _backend(path, allowed[0])
        if value not in allowed:
            yield f"torch.backends.{path}", value, allowed[-1]
    if kind == "cuda" and _backend("cuda.mem_efficient_sdp_enabled", bool)():
        yield "torch.backends.cuda.mem_efficient_sdp_enabled()", True, False
    if kind == "cpu" and _may_use_nnpack():
        yield "torch.backends.mkldnn.enabled", False, True


def _backend(path: str, missing: Any) -> Any:
    """Return an attribute of `torch.backends`, or what stands for one that this torch lacks."""
    value: Any = torch.backends
    for name in path.split("."):
        value = getattr(value, name, missing)
        if value is missing:
            break
    return value


def _may_use_nnpack() -> bool:
    """Return whether convolutions may go to NNPACK, which uses Winograd and FFT."""
    if _backend("mkldnn.is_available", bool)() and _backend("mkldnn.enabled", False):
        return False
    enabled = getattr(torch._C, "_get_nnpack_enabled", lambda: True)
    return bool(_backend("nnpack.is_available", bool)() and enabled())


def _environment(kind: str) -> Iterator[tuple[str, str, str]]:
    for name, allowed in _VARIABLES[kind]:
        value = os.environ.get(name, "")
        if value.upper() not in allowed:
            yield f"the environment variable {name}", value, allowed[-1]


class _OneDtype(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operators whose result is in another floating dtype than float32."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.is_floating_point() and each.element_size() < 4:
                raise InputError(
                    f"arithmetic='float32' needs a module that computes in float32 throughout, but "
                    f"{func} returned {each.dtype}"
                )
        return result
