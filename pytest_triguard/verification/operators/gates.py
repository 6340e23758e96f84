"""Rules of smooth functions with one valley: the argument times a gate that opens as it grows.

All fall to a minimum and rise after it, and bend up between two points of inflection and down
outside of them. Minima and points of inflection are roots without a closed form; they are stated
to more digits than float64 holds.
"""

from __future__ import annotations

import math
from math import inf

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding
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

_SILU_BEND = 2.39935728052051546766783274
_SILU_VALLEY = -1.278464542761073795109359, -0.2784645427610737951093587
_GELU_BEND = math.sqrt(2)
_GELU_VALLEY = -0.7517915246935644574579049, -0.1699712074799036616938685
_TANH_GELU_BEND = 1.418504008790828355548034
_TANH_GELU_VALLEY = -0.7524614220710162584879544, -0.1700407505712540506390674
_MISH_BENDS = -2.256376396360793120005749, 1.490571179485428459294419
_MISH_VALLEY = -1.192431214515495212137588, -0.3088434130172504066287602

_FAR = 4000.0
"""Exponents at which `exp` has underflowed in every dtype."""


def silu(input: Interval, inplace: bool = False) -> Curve:
    """Return `x s(x)` for the logistic function s."""
    del input, inplace

    def value(x: Tensor) -> Valued:
        return near(x * torch.sigmoid(x), LIBRARY_ROUNDINGS + 1)

    def slope(x: Tensor) -> Valued:
        gate, rest = torch.sigmoid(x), torch.sigmoid(-x)
        return _sum(gate, x * gate * rest, 2 * LIBRARY_ROUNDINGS + 2)

    pieces = smooth(value, slope, -_SILU_BEND, _SILU_BEND, first=-1)
    return Curve(value=value, pieces=pieces, turn=_valley(_SILU_VALLEY))


def gelu(input: Interval, approximate: str = "none") -> Curve:
    """Return `x Phi(x)` for the normal distribution function, or its approximation by tanh."""
    del input
    if approximate == "tanh":
        return _TANH_GELU
    if approximate != "none":
        raise Unsupported(f"approximate={approximate!r}")
    return _EXACT_GELU


def _gelu_value(x: Tensor) -> Valued:
    return near(x * _normal(x), _normal_roundings(x) + 2)


def _gelu_slope(x: Tensor) -> Valued:
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return _sum(_normal(x), x * density, _normal_roundings(-x.abs()) + 4)


def _normal(x: Tensor) -> Tensor:
    """Return the distribution function of the normal distribution, without cancellation."""
    tail: Tensor = torch.special.erfc(x * -math.sqrt(0.5))
    return tail / 2


def _normal_roundings(x: Tensor) -> Tensor:
    # Rounding z to z (1 + d) changes erfc(z) by up to 2 z^2 + 2 times d of itself; z^2 = x^2 / 2.
    below = x.clamp_max(0)
    return (2 * below * below).clamp_max(_FAR) + (LIBRARY_ROUNDINGS + 8)


_KAPPA, _BETA = 0.044715, 2 * math.sqrt(2 / math.pi)


def _tanh_gelu_value(x: Tensor) -> Valued:
    """Return `x (1 + tanh(w / 2)) / 2`, which is `x s(w)`, for a cubic w of x."""
    inner = _BETA * (x + _KAPPA * x * x * x)
    return near(x * torch.sigmoid(inner), _inner_roundings(inner))


def _tanh_gelu_slope(x: Tensor) -> Valued:
    inner = _BETA * (x + _KAPPA * x * x * x)
    gate, rest = torch.sigmoid(inner), torch.sigmoid(-inner)
    steepness = (_BETA * (1 + 3 * _KAPPA * x * x)).clamp_max(torch.finfo(x.dtype).max)
    return _sum(gate, x * (gate * rest) * steepness, 2 * _inner_roundings(-inner.abs()))


def _inner_roundings(inner: Tensor) -> Tensor:
    # A relative error d of w changes s(w) by up to |w| d of itself below zero, by d above.
    return (-8 * inner).clamp(8, 8 * _FAR) + (LIBRARY_ROUNDINGS + 4)


def mish(input: Interval, inplace: bool = False) -> Curve:
    """Return `x tanh(log(1 + exp(x)))`."""
    del input, inplace

    def value(x: Tensor) -> Valued:
        return near(x * _mish_gate(x)[0], LIBRARY_ROUNDINGS + 16)

    def slope(x: Tensor) -> Valued:
        gate, growth = _mish_gate(x)
        return _sum(gate, x * growth, 4 * LIBRARY_ROUNDINGS)

    pieces = smooth(value, slope, *_MISH_BENDS, first=-1)
    return Curve(
        value=value,
        pieces=pieces,
        turn=_valley(_MISH_VALLEY),
        rounded=Rounded(value=2 * LIBRARY_ROUNDINGS),
    )


def _mish_gate(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gate and its derivative as fractions of `w = exp(-|x|)`, all terms positive.

    Below zero `w (w + 2) / (w^2 + 2 w + 2)` and `4 w (1 + w) / (w^2 + 2 w + 2)^2`, above
    `(1 + 2 w) / (1 + 2 w + 2 w^2)` and `4 w^2 (1 + w) / (1 + 2 w + 2 w^2)^2`.
    """
    w = torch.exp(-x.abs())
    above, below = 1 + 2 * w + 2 * w * w, w * w + 2 * w + 2
    growth = 4 * w * (1 + w)
    gate = torch.where(x > 0, (1 + 2 * w) / above, w * (w + 2) / below)
    return gate, torch.where(x > 0, growth * w / (above * above), growth / (below * below))


def hardswish(input: Interval, inplace: bool = False) -> Curve:
    """Return `x relu6(x + 3) / 6`, a parabola between two linear pieces."""
    del input, inplace

    def value(x: Tensor) -> Valued:
        return near(functional.hardswish(x), 8)

    def slope(x: Tensor) -> Valued:
        return _sum(x / 3, torch.full_like(x, 0.5), 2)

    pieces = (
        linear(-inf, -3.0, value, 0.0),
        Piece(-3.0, 3.0, 1, value, slope),
        linear(3.0, inf, value, 1.0),
    )
    turn = _valley((-1.5, -0.375))
    return Curve(value=value, pieces=pieces, turn=turn, ends=_hardswish_ends)


def _hardswish_ends(input: Interval) -> Interval:
    """Bound hardswish: least at the place nearest to its minimum, largest at an end.

    As no value v is below -3/8, its magnitude is at most `v + 3/4`.
    """
    own = input.is_centred and not torch.is_grad_enabled()
    lower, upper = input.fresh_ends() if own else (input.lower, input.upper)
    unit, tiny = rounding.roundoff(input.dtype), rounding.tiny(input.dtype)
    low = functional.hardswish(torch.minimum(lower.clamp_min(-1.5), upper))
    first, last = (functional.hardswish(end, inplace=own) for end in (lower, upper))
    high = torch.maximum(first, last)
    share, fixed = 16 * unit, 12 * unit + 8 * tiny
    # Factor and offset in one pass over memory.
    return Interval(
        torch.rsub(low, -fixed, alpha=share - 1), torch.rsub(high, fixed, alpha=-1 - share)
    )


def _valley(found: tuple[float, float]) -> Turn:
    """Return the turn of a function with a minimum at a place, of a value."""
    place, least = found
    return Turn(place, least, least)


def _sum(one: Tensor, two: Tensor, roundings: float | Tensor) -> Valued:
    """Return a sum that may cancel, of terms each after some roundings."""
    return Valued(
        one + two, lambda: near(one, roundings + 1).error() + near(two, roundings + 1).error()
    )


_EXACT_GELU = Curve(
    value=_gelu_value,
    pieces=smooth(_gelu_value, _gelu_slope, -_GELU_BEND, _GELU_BEND, first=-1),
    turn=_valley(_GELU_VALLEY),
    rounded=Rounded(input=LIBRARY_ROUNDINGS),
)
_TANH_GELU = Curve(
    value=_tanh_gelu_value,
    pieces=smooth(_tanh_gelu_value, _tanh_gelu_slope, -_TANH_GELU_BEND, _TANH_GELU_BEND, first=-1),
    turn=_valley(_TANH_GELU_VALLEY),
    rounded=Rounded(input=LIBRARY_ROUNDINGS),
)

SILU = rules(silu)
GELU = rules(gelu)
MISH = rules(mish)
HARDSWISH = rules(hardswish)
