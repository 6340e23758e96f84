"""Rules of interpolation: linear, with weights from 0 to 1 that add up to one.

In most modes few weights are not zero, and they come from rounded positions. In the mode "area" a
sum goes over as many elements as there may be: what it rounds is that of an average.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.arranging import copied, repeated
from pytest_triguard.verification.operators.pooling import Average, averaging
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.operators.shape import Change
from pytest_triguard.verification.relaxations import Affine, flat_rows

_COPYING = ("nearest", "nearest-exact")
_AREA = "area"
_MODES = (*_COPYING, "linear", "bilinear", "trilinear", _AREA)


def interpolate(
    input: Interval,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Interval:
    """Bounds of `functional.interpolate` in the modes whose weights are not negative."""
    arguments = size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
    change, _ = _resized(*arguments)
    if mode in _COPYING:
        _refuse_ambiguous(input, change)
        return repeated(input, change)
    if mode == _AREA:
        found: Interval = _AVERAGED["interval"](input, *arguments)
        return found
    error = _rounded(input, change(input.lower), rounding.roundoff(input.dtype))
    return Interval(change(input.lower) - error, change(input.upper) + error)


def interpolate_relaxation(input: Interval, *args: Any, **kwargs: Any) -> Affine:
    """The interpolation itself."""
    change, mode = _resized(*args, **kwargs)
    if mode in _COPYING:
        return copied(input, change, _transposed(input, change))
    if mode == _AREA:
        found: Affine = _AVERAGED["relaxation"](input, *args, **kwargs)
        return found
    result = change(input.lower)
    unit = rounding.roundoff(input.dtype)
    terms = rounding.accumulated(result[0].numel(), unit)
    error = change(input.magnitude) * (2 * terms) + 2 * _rounded(input, result, unit)
    return Affine(input, _transposed(input, change), None, error)


def interpolate_evaluation(input: Interval, *args: Any, unit: float, **kwargs: Any) -> Tensor:
    """Rounding of the module's own weights and sums."""
    change, mode = _resized(*args, **kwargs)
    if mode in _COPYING:
        return input.lower.new_zeros(())
    if mode == _AREA:
        found: Tensor = _AVERAGED["evaluation"](input, *args, unit=unit, **kwargs)
        return found
    result = change(input.lower)
    return _rounded(input, result, unit) + rounding.lost(torch.zeros_like(result), 64)


def upsample_arguments(module: nn.Upsample) -> dict[str, Any]:
    """Return the arguments of an upsampling module."""
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    return {name: getattr(module, name) for name in names}


def _resized(
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> tuple[Change, str]:
    """Return what an interpolation does with a tensor, and its mode."""
    if mode not in _MODES or antialias:
        raise Unsupported(f"mode={mode!r}, antialias={antialias}")

    def change(values: Tensor) -> Tensor:
        return functional.interpolate(
            values, size, scale_factor, mode, align_corners, recompute_scale_factor
        )

    return change, mode


def _average(input: Interval, *args: Any, **kwargs: Any) -> Average:
    """Return an interpolation in the mode "area"."""
    change, _ = _resized(*args, **kwargs)
    return Average(change, input.shape[2:].numel())


_AVERAGED = averaging(_average)


def _refuse_ambiguous(input: Interval, change: Change) -> None:
    """Refuse sizes at which the nearest element depends on the dtype that places are computed in.

    It does where a place falls on the border between two elements: rounded down, it is the other.
    """
    sizes = input.shape[2:]
    places = torch.arange(sizes.numel(), device=input.lower.device, dtype=torch.float32)
    places = places.view(1, 1, *sizes)
    if not torch.equal(change(places), change(places.to(input.dtype)).to(torch.float32)):
        raise Unsupported(f"size {tuple(sizes)}, of which float32 copies other elements")


def _transposed(input: Interval, change: Change) -> Change:
    """Return the transpose: rows are resized as samples are, each on its own."""

    def back(flat: Tensor) -> Tensor:
        like = flat.new_zeros(()).expand(len(flat), *input.shape[1:])
        product = torch.func.vjp(change, like)[1]
        carried: Tensor = product(flat)[0]
        return carried

    return lambda rows: flat_rows(rows, back)


def _rounded(input: Interval, result: Tensor, unit: float) -> Tensor:
    """Return what weights that come from rounded positions, and sums, can be off by."""
    dims = tuple(range(2, len(input.shape)))
    places = sum(input.shape[2:]) + sum(result.shape[2:])
    largest = input.magnitude.amax(dims, keepdim=True)
    return (largest * (16 * (places + 8) * unit) + rounding.tiny(input.dtype)).expand_as(result)
