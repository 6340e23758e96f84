"""Interval rules of arithmetic between values, and between a value and constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Ball, Interval
from pytest_triguard.verification.operators.affine import scaled
from pytest_triguard.verification.operators.rule import Unsupported

Operand = Interval | Tensor | float


def add(input: Operand, other: Operand, *, alpha: float = 1) -> Interval:
    """Bounds of a sum."""
    _plain(alpha)
    if isinstance(input, Interval) and isinstance(other, Interval):
        return Interval(
            rounding.down(input.lower + other.lower, 1), rounding.up(input.upper + other.upper, 1)
        )
    value, constant = _sorted(input, other)
    return scaled(value, _like(value, 1.0), _like(value, 0.0), constant)


def sub(input: Operand, other: Operand, *, alpha: float = 1) -> Interval:
    """Bounds of a difference, either side of which may be a constant."""
    _plain(alpha)
    if not isinstance(other, Interval):
        value, constant = _sorted(input, other)
        return scaled(value, _like(value, 1.0), constant, _like(value, 0.0))
    return add(input, neg(other))


def neg(input: Interval) -> Interval:
    """Bounds of the negative."""
    ball = input.ball
    if ball is not None:
        ball = Ball(-ball.centre, ball.scale, ball.radius, ball.norm)
    return Interval(-input.upper, -input.lower, ball)


def mul(input: Operand, other: Operand) -> Interval:
    """Bounds of a product, element by element."""
    if isinstance(input, Interval) and isinstance(other, Interval):
        stacked = torch.stack(
            [one * two for one in (input.lower, input.upper) for two in (other.lower, other.upper)]
        )
        return Interval(rounding.down(stacked.amin(0), 1), rounding.up(stacked.amax(0), 1))
    value, constant = _sorted(input, other)
    return scaled(value, constant, _like(value, 0.0), _like(value, 0.0))


def div(input: Operand, other: Operand) -> Interval:
    """Bounds of a quotient by a constant."""
    if isinstance(other, Interval):
        raise Unsupported("division by a value that depends on the input")
    value, constant = _sorted(input, other)
    return scaled(value, constant.reciprocal(), _like(value, 0.0), _like(value, 0.0))


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
