"""Interval rules of activations that never fall: the bounds go through them.

ReLU, ReLU6, hardtanh and clamp only choose among numbers and round nothing; the others are moved
outward by more than the error of their library functions, a few units in the last place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported

_LIBRARY_ROUNDINGS = 16
"""Units in the last place that `exp` and `tanh` of the libraries in use stay well within."""


def relu(input: Interval, inplace: bool = False) -> Interval:
    """Bounds of `functional.relu`."""
    del inplace
    return input.monotone(functional.relu)


def leaky_relu(input: Interval, negative_slope: float = 0.01, inplace: bool = False) -> Interval:
    """Bounds of `functional.leaky_relu`."""
    del inplace
    if not negative_slope >= 0:
        raise Unsupported(f"negative_slope={negative_slope}")
    lower = functional.leaky_relu(input.lower, negative_slope)
    upper = functional.leaky_relu(input.upper, negative_slope)
    return Interval(rounding.down(lower, 1), rounding.up(upper, 1))


def relu6(input: Interval, inplace: bool = False) -> Interval:
    """Bounds of `functional.relu6`."""
    return hardtanh(input, 0.0, 6.0, inplace)


def hardtanh(
    input: Interval, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Interval:
    """Bounds of `functional.hardtanh`."""
    del inplace
    return clamp(input, min_val, max_val)


def clamp(input: Interval, min: Any = None, max: Any = None) -> Interval:
    """Bounds of `torch.clamp` between numbers."""
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):
        raise Unsupported("limits that are tensors")
    return input.monotone(lambda values: values.clamp(min, max))


def sigmoid(input: Interval) -> Interval:
    """Bounds of `torch.sigmoid`."""
    lower, upper = input.lower.sigmoid(), input.upper.sigmoid()
    return Interval(
        rounding.down(lower, _LIBRARY_ROUNDINGS), rounding.up(upper, _LIBRARY_ROUNDINGS)
    )


def tanh(input: Interval) -> Interval:
    """Bounds of `torch.tanh`."""
    lower, upper = input.lower.tanh(), input.upper.tanh()
    return Interval(
        rounding.down(lower, _LIBRARY_ROUNDINGS), rounding.up(upper, _LIBRARY_ROUNDINGS)
    )


def hardtanh_arguments(module: nn.Hardtanh) -> dict[str, Any]:
    """Return the limits of a hardtanh module, or of ReLU6, which is one."""
    return {"min_val": module.min_val, "max_val": module.max_val}
