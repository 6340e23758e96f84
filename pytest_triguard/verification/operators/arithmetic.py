"""Rules of arithmetic between values, and between a value and constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Ball, Interval
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.operators.scaling import (
    scaled,
    scaled_evaluation,
    scaled_relaxation,
)
from pytest_triguard.verification.relaxations import (
    Affine,
    Band,
    Relaxation,
    Scale,
    Sum,
    band_error,
)

Operand = Interval | Tensor | float

_SUMMED = 4
"""Roundings that a sum takes of the room of its terms."""


def add(input: Operand, other: Operand, *, alpha: float = 1) -> Interval:
    """Bounds of a sum."""
    _plain(alpha)
    if not (isinstance(input, Interval) and isinstance(other, Interval)):
        return scaled(*_shifted(input, other))
    if input.is_centred or other.is_centred:
        (centre, radius, room), (second, spread, space) = input.centred(), other.centred()
        if min(room, space) >= _SUMMED + 4:
            room = min(room, space) - _SUMMED
            return Interval.around(centre + second, radius + spread, room)
    return Interval(
        rounding.down(input.lower + other.lower, 1), rounding.up(input.upper + other.upper, 1)
    )


def add_relaxation(input: Operand, other: Operand, *, alpha: float = 1) -> Relaxation:
    """The sum itself."""
    _plain(alpha)
    if isinstance(input, Interval) and isinstance(other, Interval):
        return _sum(input, other, 1)
    return scaled_relaxation(*_shifted(input, other))


def add_evaluation(input: Operand, other: Operand, *, alpha: float = 1, unit: float) -> Tensor:
    """Rounding of the module's own sum or difference."""
    _plain(alpha)
    size = _magnitude(input, other) + _magnitude(other, input)
    return size * (4 * unit) + rounding.lost(torch.zeros_like(size))


def sub(input: Operand, other: Operand, *, alpha: float = 1) -> Interval:
    """Bounds of a difference, either side of which may be a constant."""
    _plain(alpha)
    if not isinstance(other, Interval):
        return scaled(*_lowered(input, other))
    return add(input, neg(other))


def sub_relaxation(input: Operand, other: Operand, *, alpha: float = 1) -> Relaxation:
    """The difference itself."""
    _plain(alpha)
    if not isinstance(other, Interval):
        return scaled_relaxation(*_lowered(input, other))
    if isinstance(input, Interval):
        return _sum(input, other, -1)
    value, constant = _sorted(input, other)
    return scaled_relaxation(value, _like(value, -1.0), _like(value, 0.0), constant)


def neg(input: Interval) -> Interval:
    """Bounds of the negative."""
    ball = input.ball
    if ball is not None:
        ball = Ball(-ball.centre, ball.scale, ball.radius, ball.norm)
    return Interval(-input.upper, -input.lower, ball)


def neg_relaxation(input: Interval) -> Affine:
    """The negative itself."""
    return Affine(input, torch.neg)


def mul(input: Operand, other: Operand) -> Interval:
    """Bounds of a product, element by element."""
    if isinstance(input, Interval) and isinstance(other, Interval):
        if other.positive:
            return _times_positive(input, other)
        if input.positive:
            return _times_positive(other, input)
        stacked = torch.stack(
            [one * two for one in (input.lower, input.upper) for two in (other.lower, other.upper)]
        )
        return Interval(rounding.down(stacked.amin(0), 1), rounding.up(stacked.amax(0), 1))
    return scaled(*_multiplied(input, other))


def _times_positive(input: Interval, factor: Interval) -> Interval:
    """Bound a product with a factor of at least zero, which is likely to have fewer elements."""
    unit, tiny = rounding.roundoff(input.dtype), rounding.tiny(input.dtype)
    least = (factor.lower * (1 - 4 * unit) - tiny).clamp_min_(0)
    most = factor.upper * (1 + 4 * unit) + tiny
    if input.positive:
        lower, upper = input.lower * least, input.upper * most
    else:
        lower = torch.minimum(input.lower * least, input.lower * most)
        upper = torch.maximum(input.upper * least, input.upper * most)
    return Interval(lower.sub_(4 * tiny), upper.add_(4 * tiny))


def mul_relaxation(input: Operand, other: Operand) -> Relaxation:
    """Between planes through the corners.

    For x in [a, b] and y in [c, d] the product is at least `c x + a y - a c` and at most
    `d x + a y - a d`. The planes through the opposite corners are as high in the middle, so that a
    choice between them would be one of rounding.

    References:
        McCormick 1976, "Computability of Global Solutions to Factorable Nonconvex Programs".
    """
    if not (isinstance(input, Interval) and isinstance(other, Interval)):
        return scaled_relaxation(*_multiplied(input, other))
    lower = _plane(other.lower, input.lower, 1)
    upper = _plane(other.upper, input.lower, -1)
    slopes: list[tuple[Tensor, ...]] = [
        (each[0].unsqueeze(1), each[1].unsqueeze(1)) for each in (lower, upper)
    ]
    offsets = [lower[2].unsqueeze(1), upper[2].unsqueeze(1)]
    inputs = (input, other)
    error = band_error(inputs, slopes, list(offsets))
    return Band(inputs, slopes[0], slopes[1], offsets[0], offsets[1], error)


def mul_open(input: Operand, other: Operand) -> list[tuple[Interval, Tensor]]:
    """Elements of both factors, where both vary."""
    if not (isinstance(input, Interval) and isinstance(other, Interval)):
        return []
    vary = [each.upper > each.lower for each in (input, other)]
    both = vary[0] & vary[1]
    return [(each, _folded(both, each)) for each in (input, other)]


def mul_evaluation(input: Operand, other: Operand, *, unit: float) -> Tensor:
    """Rounding of the module's own product."""
    first, second = _magnitude(input, other), _magnitude(other, input)
    return first * second * (4 * unit) + rounding.lost(first + second)


def div(input: Operand, other: Operand) -> Interval:
    """Bounds of a quotient by a constant."""
    return scaled(*_divided(input, other))


def div_relaxation(input: Operand, other: Operand) -> Scale:
    """The quotient itself."""
    return scaled_relaxation(*_divided(input, other))


def div_evaluation(input: Operand, other: Operand, *, unit: float) -> Tensor:
    """Rounding of the module's own quotient."""
    return scaled_evaluation(*_divided(input, other), unit=unit)


def _sum(input: Interval, other: Interval, sign: int) -> Sum:
    unit = rounding.roundoff(input.dtype)
    shape = (input.lower[:1] + other.lower[:1]).shape
    shape = torch.Size([len(input.lower), *shape[1:]])
    error = None
    if input.shape != shape or other.shape != shape:
        terms = torch.Size(shape[1:]).numel()
        size = input.magnitude + other.magnitude
        error = size * (2 * rounding.accumulated(terms, unit))
    return Sum(((input, 1), (other, sign)), error)


def _plane(on_input: Tensor, on_other: Tensor, sign: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return slopes and offset of a plane through a corner, below for sign 1, above for -1.

    The one through the corner (a, c) is `c x + a y - a c`; its offset is rounded to the safe side.
    """
    product = on_other * on_input
    offset = -rounding.up(product, 1) if sign > 0 else -rounding.down(product, 1)
    return on_input.expand_as(product), on_other.expand_as(product), offset


def _folded(mask: Tensor, value: Interval) -> Tensor:
    """Return where any of the elements is set that one element of a value was broadcast to."""
    extra = mask.ndim - len(value.shape)
    if extra:
        mask = mask.flatten(0, extra).any(0, keepdim=True)
    for dim, size in enumerate(value.shape):
        if size == 1 and mask.shape[dim] != 1:
            mask = mask.any(dim, keepdim=True)
    return mask


def _magnitude(operand: Operand, other: Operand) -> Tensor:
    """Return the largest magnitude of an operand's elements; one of the two is an interval."""
    if isinstance(operand, Interval):
        return operand.magnitude
    value, constant = _sorted(operand, other)
    return constant.abs() + torch.zeros_like(value.lower)


def _shifted(input: Operand, other: Operand) -> tuple[Interval, Tensor, Tensor, Tensor]:
    """Return what `scaled` takes for a sum with a constant."""
    value, constant = _sorted(input, other)
    return value, _like(value, 1.0), _like(value, 0.0), constant


def _lowered(input: Operand, other: Operand) -> tuple[Interval, Tensor, Tensor, Tensor]:
    """Return what `scaled` takes for a difference to a constant."""
    value, constant = _sorted(input, other)
    return value, _like(value, 1.0), constant, _like(value, 0.0)


def _multiplied(input: Operand, other: Operand) -> tuple[Interval, Tensor, Tensor, Tensor]:
    """Return what `scaled` takes for a product with a constant."""
    value, constant = _sorted(input, other)
    return value, constant, _like(value, 0.0), _like(value, 0.0)


def _divided(input: Operand, other: Operand) -> tuple[Interval, Tensor, Tensor, Tensor]:
    """Return what `scaled` takes for a quotient by a constant."""
    if isinstance(other, Interval):
        raise Unsupported("division by a value that depends on the input")
    value, constant = _sorted(input, other)
    return value, constant.reciprocal(), _like(value, 0.0), _like(value, 0.0)


def _sorted(input: Operand, other: Operand) -> tuple[Interval, Tensor]:
    """Return the value and the constant of an operation between the two."""
    value, constant = (input, other) if isinstance(input, Interval) else (other, input)
    if not isinstance(value, Interval):
        raise Unsupported("operands none of which depends on the input")
    if isinstance(constant, Tensor):
        return value, constant.to(value.dtype)
    if isinstance(constant, Interval) or not isinstance(constant, int | float):
        raise Unsupported(f"an operand of type {type(constant).__name__}")
    return value, _like(value, float(constant))


def _like(value: Interval, number: float) -> Tensor:
    return value.lower.new_full((), number)


def _plain(alpha: Any) -> None:
    if alpha != 1:
        raise Unsupported(f"alpha={alpha}")
