"""Rules of piecewise linear functions: activations, limits, and the magnitude.

All but hardsigmoid only choose among numbers, and round nothing.
"""

from __future__ import annotations

from math import inf, isnan
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.curves import (
    LIBRARY_ROUNDINGS,
    Curve,
    Function,
    Piece,
    Rounded,
    Turn,
    Valued,
    linear,
    near,
    rules,
)
from pytest_triguard.verification.operators.rule import Unsupported


def relu6(input: Interval, inplace: bool = False) -> Curve:
    """Return the identity between 0 and 6."""
    del input, inplace
    return _between(0.0, 6.0)


def hardtanh(
    input: Interval, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Curve:
    """Return the identity between two numbers."""
    del input, inplace
    return _between(min_val, max_val)


def clamp(input: Interval, min: Any = None, max: Any = None) -> Curve:
    """Return the identity between two numbers, either of which may be missing."""
    del input
    return _between(min, max)


def clamp_min(input: Interval, min: Any) -> Curve:
    """Return the identity above a number."""
    del input
    return _between(min, None)


def clamp_max(input: Interval, max: Any) -> Curve:
    """Return the identity below a number."""
    del input
    return _between(None, max)


def _between(least: Any, most: Any) -> Curve:
    """Return the identity, cut off at two numbers, either of which may be None."""
    if isinstance(least, Tensor | Interval) or isinstance(most, Tensor | Interval):
        raise Unsupported("limits that are tensors")
    end = inf if most is None else float(most)
    start = -inf if least is None else min(float(least), end)
    if isnan(start) or isnan(end) or least is most is None:
        raise Unsupported(f"the limits {least} and {most}")

    limits = torch.tensor([each for each in (start, end) if abs(each) < inf], dtype=torch.float64)

    def value(x: Tensor) -> Valued:
        lost = 2 * (limits.to(x.dtype).double() - limits).abs().sum().item()
        if lost:  # and room for the rounding of what it is added to
            lost += 4 * rounding.roundoff(x.dtype) * limits.abs().sum().item()
        return Valued(x.clamp(start, end), lambda: torch.full_like(x, lost))

    rounded = Rounded(0, 0, 2 * limits.abs().sum().item())
    return Curve(value=value, pieces=_ramp(value, start, end, 1.0), rounded=rounded)


def hardsigmoid(input: Interval, inplace: bool = False) -> Curve:
    """Return `relu6(x + 3) / 6`."""
    del input, inplace

    def value(x: Tensor) -> Valued:
        return near((x + 3).clamp(0, 6).div_(6), 2)

    return Curve(
        value=value,
        pieces=_ramp(value, -3.0, 3.0, 1 / 6),
        span=(0.0, 1.0),
        rounded=Rounded(fixed=LIBRARY_ROUNDINGS),
    )


def absolute(input: Interval) -> Curve:
    """Return the magnitude."""
    del input

    def value(x: Tensor) -> Valued:
        return Valued(x.abs(), lambda: torch.zeros_like(x))

    return Curve(
        value=value,
        pieces=(linear(-inf, 0.0, value, -1.0), linear(0.0, inf, value, 1.0)),
        turn=Turn(0.0, 0.0, 0.0),
        span=(0.0, inf),
        rounded=Rounded(0),
    )


def _ramp(value: Function, start: float, end: float, slope: float) -> tuple[Piece, ...]:
    """Return the pieces of a function that rises between two places only."""
    pieces = (
        linear(-inf, start, value, 0.0),
        linear(start, end, value, slope),
        linear(end, inf, value, 0.0),
    )
    return tuple(piece for piece in pieces if piece.start < piece.end)


RELU6 = rules(relu6)
HARDTANH = rules(hardtanh)
CLAMP = rules(clamp)
CLAMP_MIN = rules(clamp_min)
CLAMP_MAX = rules(clamp_max)
HARDSIGMOID = rules(hardsigmoid)
ABS = rules(absolute)
