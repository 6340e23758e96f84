"""Rules of smooth functions that never fall, or never rise, and of squares and powers.

Each builder returns the curve of one operator; see `curves` for how curves are bounded. Numbers of
roundings are those of the formula as it is written here, library functions included.
"""

from __future__ import annotations

import math
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.curves import (
    LIBRARY_ROUNDINGS,
    Curve,
    Piece,
    Rounded,
    Turn,
    Valued,
    linear,
    near,
    rules,
    smooth,
)
from pytest_triguard.verification.operators.rule import Unsupported

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
_FAR = 4000.0
"""Exponents at which `exp` has underflowed in every dtype; larger ones would only overflow."""

_FLUSHED = 1e-11
"""Roundoffs that are more than the root of the smallest normal number of float32."""

_BESIDE = 1e-6
"""Relative distance to the threshold of softplus within which both sides are covered."""


def _bell(x: Tensor) -> Valued:
    """Return `exp(-x^2)`; the rounding of the square counts as often as it is large."""
    square = x * x
    return near(torch.exp(-square), LIBRARY_ROUNDINGS + 2 * square.clamp_max(_FAR))


def sigmoid(input: Interval) -> Curve:
    """Return the logistic function."""
    del input
    return Curve(
        value=_sigmoid_value,
        pieces=smooth(_sigmoid_value, _sigmoid_slope, 0.0, first=1),
        span=(0.0, 1.0),
    )


def _sigmoid_value(x: Tensor) -> Valued:
    return near(torch.sigmoid(x), LIBRARY_ROUNDINGS)


def _sigmoid_slope(x: Tensor) -> Valued:
    return near(torch.sigmoid(x) * torch.sigmoid(-x), 2 * LIBRARY_ROUNDINGS + 1)


def tanh(input: Interval) -> Curve:
    """Return the hyperbolic tangent."""
    del input

    def value(x: Tensor) -> Valued:
        return near(torch.tanh(x), LIBRARY_ROUNDINGS)

    def slope(x: Tensor) -> Valued:
        own, error = _sigmoid_slope(2 * x)
        return Valued(4 * own, lambda: 4 * error())

    return Curve(value=value, pieces=smooth(value, slope, 0.0, first=1), span=(-1.0, 1.0))


def erf(input: Interval) -> Curve:
    """Return the error function."""
    del input

    def value(x: Tensor) -> Valued:
        return near(torch.erf(x), LIBRARY_ROUNDINGS)

    def slope(x: Tensor) -> Valued:
        own, error = _bell(x)
        return Valued(own * (2 / math.sqrt(math.pi)), lambda: 1.2 * error())

    return Curve(value=value, pieces=smooth(value, slope, 0.0, first=1), span=(-1.0, 1.0))


def softplus(input: Interval, beta: float = 1.0, threshold: float = 20.0) -> Curve:
    """Return softplus, which is the identity above the threshold: there it falls by a jump."""
    del input
    if not (0 < beta < inf and abs(threshold) / beta < inf):
        raise Unsupported(f"beta={beta}, threshold={threshold}")
    place = threshold / beta
    jump = (math.log1p(math.exp(-abs(threshold))) + max(-threshold, 0.0)) / beta
    margin = _BESIDE * abs(place)

    def curved(x: Tensor) -> Valued:
        scaled = beta * x
        value = (scaled.clamp_min(0) + torch.log1p(torch.exp(-scaled.abs()))) / beta

        def error() -> Tensor:
            size = scaled.abs().clamp_max(_FAR)
            exponent = near(size * torch.exp(-size) / beta, 4)
            return near(value, LIBRARY_ROUNDINGS + 4).error() + exponent.error()

        return Valued(value, error)

    def value(x: Tensor) -> Valued:
        own, own_error = curved(x)

        def error() -> Tensor:
            lost = own_error()
            return torch.where((x - place).abs() <= margin, lost + jump, lost)

        return Valued(torch.where(x > place, x, own), error)

    def slope(x: Tensor) -> Valued:
        scaled = beta * x
        exponent = scaled.abs().clamp_max(_FAR)
        return near(torch.sigmoid(scaled), LIBRARY_ROUNDINGS + exponent)

    pieces = (
        Piece(-inf, place + margin, 1, curved, slope),
        linear(place - margin, inf, lambda x: near(x, 0), 1.0),
    )
    return Curve(
        value=value,
        pieces=pieces,
        turn=Turn(place, place, place + jump),
        span=(min(0.0, place), inf),
        rounded=Rounded(fixed=LIBRARY_ROUNDINGS / beta),
    )


def log_sigmoid(input: Interval) -> Curve:
    """Return `log(s(x))` for the logistic function s."""
    del input

    def value(x: Tensor) -> Valued:
        own = x.clamp_max(0) - torch.log1p(torch.exp(-x.abs()))
        return near(own, LIBRARY_ROUNDINGS + 4)

    def slope(x: Tensor) -> Valued:
        return _sigmoid_value(-x)

    return Curve(value=value, pieces=smooth(value, slope, first=-1), span=(-inf, 0.0))


def elu(input: Interval, alpha: float = 1.0, inplace: bool = False) -> Curve:
    """Return `x` above zero and `alpha * (exp(x) - 1)` below."""
    del input, inplace
    return _exponential_unit(alpha, 1.0, 1.0)


def celu(input: Interval, alpha: float = 1.0, inplace: bool = False) -> Curve:
    """Return `x` above zero and `alpha * (exp(x / alpha) - 1)` below."""
    del input, inplace
    if not alpha > 0:
        raise Unsupported(f"alpha={alpha}")
    return _exponential_unit(alpha, 1.0, 1 / alpha)


def selu(input: Interval, inplace: bool = False) -> Curve:
    """Return ELU with fixed numbers, scaled."""
    del input, inplace
    return _exponential_unit(_SELU_ALPHA, _SELU_SCALE, 1.0)


def _exponential_unit(alpha: float, scale: float, inner: float) -> Curve:
    """Return `scale * x` above zero and `scale * alpha * (exp(inner * x) - 1)` below."""
    if not 0 <= alpha < inf:
        raise Unsupported(f"alpha={alpha}")
    depth = scale * alpha

    def value(x: Tensor) -> Valued:
        below = depth * torch.expm1(inner * x.clamp_max(0))
        return near(torch.where(x > 0, scale * x, below), LIBRARY_ROUNDINGS + 4)

    def slope(x: Tensor) -> Valued:
        exponent = (inner * x).clamp_max(0)
        roundings = LIBRARY_ROUNDINGS + 4 + 2 * exponent.abs().clamp_max(_FAR)
        return near(depth * inner * torch.exp(exponent), roundings)

    pieces = Piece(-inf, 0.0, 1, value, slope), linear(0.0, inf, value, scale)
    fixed = LIBRARY_ROUNDINGS * depth
    return Curve(value=value, pieces=pieces, rounded=Rounded(fixed=fixed))


def exp(input: Interval) -> Curve:
    """Return the exponential function."""
    del input

    def value(x: Tensor) -> Valued:
        return near(torch.exp(x), LIBRARY_ROUNDINGS)

    return Curve(value=value, pieces=smooth(value, value, first=1), span=(0.0, inf))


def sqrt(input: Interval) -> Curve:
    """Return the root, which is NaN over an interval that goes below zero."""
    del input

    def value(x: Tensor) -> Valued:
        return near(torch.sqrt(x), 2)

    def slope(x: Tensor) -> Valued:
        return near(0.5 / torch.sqrt(x), 4)

    return Curve(
        value=value,
        pieces=(Piece(0.0, inf, -1, value, slope),),
        turn=Turn(0.0, 0.0, 0.0),
        span=(0.0, inf),
        rounded=Rounded(fixed=_FLUSHED),
    )


def reciprocal(input: Interval) -> Curve:
    """Return the reciprocal, which is NaN over an interval that holds zero."""
    del input

    def value(x: Tensor) -> Valued:
        return near(1 / x, 2)

    def slope(x: Tensor) -> Valued:
        return near(-(1 / x) * (1 / x), 4)

    pieces = smooth(value, slope, 0.0, first=-1)
    return Curve(value=value, pieces=pieces, turn=Turn(0.0, nan, nan))


def square(input: Interval) -> Curve:
    """Return the square."""
    del input

    def value(x: Tensor) -> Valued:
        return near(x * x, 1)

    def slope(x: Tensor) -> Valued:
        return near(2 * x, 0)

    return Curve(
        value=value,
        pieces=smooth(value, slope, first=1),
        turn=Turn(0.0, 0.0, 0.0),
        span=(0.0, inf),
    )


def power(input: Interval, exponent: Any) -> Curve:
    """Return a power; the one exponent known is 2."""
    if isinstance(exponent, Tensor | Interval) or exponent != 2:
        raise Unsupported(f"exponent {exponent!r}; known is 2")
    return square(input)


SIGMOID = rules(sigmoid)
TANH = rules(tanh)
ERF = rules(erf)
SOFTPLUS = rules(softplus)
LOG_SIGMOID = rules(log_sigmoid)
ELU = rules(elu)
CELU = rules(celu)
SELU = rules(selu)
EXP = rules(exp)
SQRT = rules(sqrt)
RECIPROCAL = rules(reciprocal)
SQUARE = rules(square)
POW = rules(power)
