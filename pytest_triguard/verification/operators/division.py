"""Rules of quotients, by a constant or by a value that keeps away from zero.

With x within q of m and `r = 1 / y` within p of s, the quotient `x r` is within `q p` of
`s x + m r - m s`; for y above zero r is above its tangent and below its chord. A y below zero is
turned round together with x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import arithmetic
from pytest_triguard.verification.operators.arithmetic import Operand
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.relaxations import Band, Relaxation, band_error

_ROUNDINGS = 32
"""Roundings of the formula of an offset, at most."""


def div(input: Operand, other: Operand) -> Interval:
    """Bounds of a quotient; not a number where the divisor may be zero."""
    if not isinstance(other, Interval):
        return arithmetic.div(input, other)
    value = _dividend(input, other)
    stacked = torch.stack(
        [one / two for one in (value.lower, value.upper) for two in (other.lower, other.upper)]
    )
    lower, upper = rounding.down(stacked.amin(0), 1), rounding.up(stacked.amax(0), 1)
    apart = (other.lower > 0) | (other.upper < 0)
    return Interval(
        torch.where(apart, lower, torch.nan),
        torch.where(apart, upper, torch.nan),
    )


def div_relaxation(input: Operand, other: Operand) -> Relaxation:
    """The quotient itself, or planes around it."""
    if not isinstance(other, Interval):
        return arithmetic.div_relaxation(input, other)
    value = _dividend(input, other)
    sign = torch.where(other.upper < 0, -1.0, 1.0).to(other.dtype)
    ends = sign * other.lower, sign * other.upper
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    low = torch.where(low > 0, low, torch.nan)
    unit = rounding.roundoff(other.dtype)
    large, small = 1 / low, 1 / high
    factor, spread = (large + small) / 2, (large - small) / 2 + 4 * unit * large
    fall = large * small
    # Any slope will do with an offset that holds: 1 / y + k y is at least 2 sqrt(k), and convex.
    below = 2 * fall.sqrt()
    above = torch.maximum(large + fall * low, small + fall * high)
    middle, radius = value.centre_and_radius()
    turned = sign * middle
    varies = isinstance(input, Interval)
    remainder = radius * spread if varies else torch.zeros_like(turned * spread)
    size = (value.magnitude + turned.abs()) * (large + fall * high + above)
    slack = remainder * (1 + 8 * unit) + size * (_ROUNDINGS * unit)
    # The coefficient of r decides which of its lines is the lower one.
    under, over = torch.where(turned >= 0, below, above), torch.where(turned >= 0, above, below)
    base = -turned * factor if varies else torch.zeros_like(turned * factor)
    offsets = [turned * under + base - slack, turned * over + base + slack]
    on_other = -middle * fall
    slopes = (*((sign * factor).expand_as(on_other),) * varies, on_other)
    inputs = (value, other) if varies else (other,)
    rows = tuple(each.unsqueeze(1) for each in slopes)
    raised: list[Tensor | None] = [each.unsqueeze(1) for each in offsets]
    error = band_error(inputs, [rows, rows], raised)
    return Band(inputs, rows, rows, raised[0], raised[1], error)


def div_open(input: Operand, other: Operand) -> list[tuple[Interval, Tensor]]:
    """Elements that vary, where the divisor does."""
    if not isinstance(other, Interval):
        return []
    return [
        (each, each.upper > each.lower) for each in (input, other) if isinstance(each, Interval)
    ]


def div_evaluation(input: Operand, other: Operand, *, unit: float) -> Tensor:
    """Rounding of the module's own quotient."""
    if not isinstance(other, Interval):
        return arithmetic.div_evaluation(input, other, unit=unit)
    least = torch.minimum(other.lower.abs(), other.upper.abs())
    error = div(input, other).magnitude * (4 * unit) + rounding.lost(1 / least)
    return torch.where(least > torch.finfo(torch.float32).tiny, error, torch.nan)


def _dividend(input: Operand, other: Interval) -> Interval:
    if isinstance(input, Interval):
        return input
    if not isinstance(input, Tensor | int | float):
        raise Unsupported(f"an operand of type {type(input).__name__}")
    value = torch.as_tensor(input, dtype=other.dtype, device=other.lower.device)
    return Interval(value, value)
