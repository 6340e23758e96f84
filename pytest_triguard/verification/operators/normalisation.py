"""Rules of layer, group and instance normalisation: statistics of each sample, all bounded jointly.

Within a group of D elements `x`, with `c = x - mean(x)` and `s = (mean(c^2) + eps)^(-1/2)`, the
result is `weight * c s + bias`. Everything is computed in the view `(N, G, D)`, a group a row.

Interval: for given c_i, the result depends on the others only through the sum R of their squares,
`c_i / ((c_i^2 + R) / D + eps)^(1/2)`, which grows with c_i and moves towards zero with R. As the c
add up to zero, R is at least `c_i^2 / (D - 1)`: no result exceeds `(D - 1)^(1/2)`.

Relaxation: with c within r of m and s within q of p, `c_i s` is within `r_i q` of
`p c_i + m_i s - m_i p`. Rows make one coefficient of s. The inverse root is above its tangent and
below its chord in the variance, and squares are above their tangents and below their chords, so
that s is between two linear functions of c; and c is linear in x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.operators.scaling import scaled
from pytest_triguard.verification.relaxations import Carried, dot

_LEAST_VARIANCE = 2.0**-60
"""Variance plus eps above which float32 loses nothing of note by underflow."""

_ROUNDINGS = 32
"""Roundings of one element's formula, at most, its sums aside."""


@dataclass(frozen=True)
class Statistics:
    """A normalisation over the elements of groups.

    Attributes:
        groups: Number of groups of a sample.
        eps: Added to the variance.
        weight: Factor, broadcast to the value, or None for 1.
        bias: Added last, broadcast to the value, or None for 0.
    """

    groups: int
    eps: float
    weight: Tensor | None
    bias: Tensor | None

    def factor(self, like: Tensor) -> Tensor:
        """Return the factor in the dtype of a tensor."""
        return like.new_ones(()) if self.weight is None else self.weight.to(like.dtype)

    def shift(self, like: Tensor) -> Tensor:
        """Return what is added last in the dtype of a tensor."""
        return like.new_zeros(()) if self.bias is None else self.bias.to(like.dtype)


def _layer_norm(
    input: Interval,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Statistics:
    over = len(normalized_shape)
    if over >= len(input.shape) or tuple(input.shape[-over:]) != tuple(normalized_shape):
        raise Unsupported(f"normalized_shape={tuple(normalized_shape)}")
    return Statistics(input.shape[1:-over].numel(), eps, weight, bias)


def _group_norm(
    input: Interval,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Statistics:
    shape = (-1, *[1] * (len(input.shape) - 2))
    weight, bias = (each if each is None else each.view(shape) for each in (weight, bias))
    return Statistics(num_groups, eps, weight, bias)


def _instance_norm(
    input: Interval,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Statistics:
    del momentum
    if not use_input_stats or running_mean is not None or running_var is not None:
        raise Unsupported("instance normalisation with running statistics")
    return _group_norm(input, input.shape[1], weight, bias, eps)


@dataclass(frozen=True)
class _Moments:
    """What is known about a group, each `(N, G, D)` or, where it is shared, `(N, G, 1)`.

    Attributes:
        centre: The middle m of each centred element.
        radius: The largest distance r from it.
        least: The least magnitude of each centred element.
        most: The largest.
        variance: Ends of the mean of squares plus eps.
        root: Middle p and radius q of its inverse root.
    """

    centre: Tensor
    radius: Tensor
    least: Tensor
    most: Tensor
    variance: tuple[Tensor, Tensor]
    root: tuple[Tensor, Tensor]

    @staticmethod
    def of(input: Interval, rule: Statistics) -> _Moments:
        """Bound the moments of a value."""
        middle, reach = (
            each.reshape(len(each), rule.groups, -1) for each in input.centre_and_radius()
        )
        count, unit = middle.shape[2], rounding.roundoff(input.dtype)
        gamma, tiny = rounding.gamma(count, input.dtype), rounding.tiny(input.dtype)
        centre = middle - middle.mean(2, keepdim=True)
        size = middle.abs() + reach
        # Each element moves its own mean, and so its own centred value by less than itself.
        radius = reach * max(0.0, 1 - 2 / count) + reach.mean(2, keepdim=True) * (count > 1)
        radius = radius + 4 * gamma * (size + size.mean(2, keepdim=True)) + tiny
        least = (centre.abs() - radius).clamp_min(0) * (1 - 4 * unit)
        most = (centre.abs() + radius) * (1 + 4 * unit)
        low = least.square().mean(2, keepdim=True) * (1 - 2 * gamma) + rule.eps * (1 - 4 * unit)
        high = (most.square().mean(2, keepdim=True) + tiny + rule.eps) * (1 + 2 * gamma)
        low, high = _finite(low), _finite(high)
        small, large = high.rsqrt() * (1 - 8 * unit), low.rsqrt() * (1 + 8 * unit)
        between = (large + small) / 2, (large - small) / 2 + 2 * unit * large
        return _Moments(centre, radius, least, most, (low, high), between)


def _interval(input: Interval, rule: Statistics) -> Interval:
    known = _Moments.of(input, rule)
    low, high = -_largest(known, rule, -1), _largest(known, rule, 1)
    found = Interval(low.view(input.shape), high.view(input.shape))
    factor = rule.factor(input.lower)
    return scaled(found, factor, torch.zeros_like(factor), rule.shift(input.lower))


def _largest(known: _Moments, rule: Statistics, sign: int) -> Tensor:
    """Return the largest result before weight and bias, times the sign, `(N, G, D)`."""
    count, dtype = known.centre.shape[2], known.centre.dtype
    end = sign * known.centre + known.radius
    end = end + 4 * rounding.roundoff(dtype) * (known.centre.abs() + known.radius)
    gamma, tiny = rounding.gamma(count, dtype), rounding.tiny(dtype)
    least, most = known.least.square(), known.most.square()
    squares = least.sum(2, keepdim=True), most.sum(2, keepdim=True)
    others = (squares[0] - least - 2 * gamma * squares[0]).clamp_min(0)
    own = end.square()
    others = torch.maximum(others, own * ((1 - 8 * rounding.roundoff(dtype)) / max(1, count - 1)))
    spread = squares[1] - most + 2 * gamma * squares[1] + (count + 1) * tiny
    variance = torch.where(end >= 0, own + others, own + spread) / count + rule.eps
    return rounding.up(end * _finite(variance).rsqrt(), _ROUNDINGS)


def _finite(values: Tensor) -> Tensor:
    """Return NaN for what overflowed: its inverse would look like a bound."""
    return torch.where(values.isfinite(), values, torch.nan)


def _open(input: Interval, rule: Statistics) -> list[tuple[Interval, Tensor]]:
    del rule
    return [(input, input.upper > input.lower)]


def _evaluation(input: Interval, rule: Statistics, unit: float) -> Tensor:
    """Return how far the module's own result can be, with mean and variance in one pass or two."""
    known = _Moments.of(input, rule)
    gamma = 2 * rounding.accumulated(2 * known.centre.shape[2], unit)
    size = input.magnitude.reshape(known.centre.shape)
    shift = gamma * (size + size.mean(2, keepdim=True))
    low, high = known.variance
    # Of the variance: what the centred values are off by, and the sum itself.
    moved = (shift * (2 * known.most + shift)).mean(2, keepdim=True)
    moved = moved + gamma * high + (size * shift).mean(2, keepdim=True)
    moved = torch.where(moved < low / 2, moved / low, torch.inf)
    root = low.rsqrt()
    off = root * (shift * (1 + moved) + known.most * (moved + _ROUNDINGS * unit))
    factor = rule.factor(off).abs()
    off = off.view(input.shape) * factor * (1 + 4 * unit)
    largest = (known.most * root).view(input.shape) * factor
    error = off + 8 * unit * (largest + rule.shift(off).abs())
    roots = root.expand(size.shape).reshape(input.shape)
    error = error + rounding.lost(largest + factor + roots, 64)
    # The module squares and adds what it is given; eps may be all that is left of an underflow.
    squares = size.square().sum(2, keepdim=True).expand(size.shape).reshape(input.shape)
    least = low.expand(size.shape).reshape(input.shape)
    error = torch.where(least > _LEAST_VARIANCE, error, torch.nan)
    return rounding.unless_overflow(error, squares)


@dataclass(frozen=True)
class Standardisation:
    """A normalisation as a relaxation; every tensor `(N, G, D)`, or `(N, G, 1)` by group.

    Attributes:
        input: The argument.
        rule: The normalisation.
        known: Bounds of its moments.
        kept: Elements whose linear bounds are used; the others are between constants.
        constant: The middle of the constants, 0 where linear bounds are used.
        lines: Slope and offset in `mean(2 m c)` of the line below the inverse root, then above it.
        remainder: How far a result before weight and bias can be from what `back` carries.
    """

    input: Interval
    rule: Statistics
    known: _Moments
    kept: Tensor
    constant: Tensor
    lines: tuple[Tensor, Tensor, Tensor, Tensor]
    remainder: Tensor

    @property
    def error(self) -> Tensor:
        """The remainder, and what rounding in `back` costs, per unit of a coefficient."""
        shape, dtype = self.input.shape, self.input.dtype
        gamma = 4 * rounding.gamma(2 * shape[1:].numel() + _ROUNDINGS, dtype)
        fall, below, drop, above = self.lines
        size = self.input.magnitude.reshape(self.centre.shape)
        size = size + size.mean(2, keepdim=True)
        reached = 2 * (self.centre.abs() * size).mean(2, keepdim=True) * torch.maximum(fall, drop)
        middle = self.known.root[0]
        rounded = middle * size + self.centre.abs() * (reached + below.abs() + above.abs() + middle)
        error = self.remainder * (1 + gamma) + gamma * (rounded + self.constant.abs())
        error = error.view(shape) * self.rule.factor(error).abs()
        return error + gamma * self.rule.shift(error).abs()

    @property
    def centre(self) -> Tensor:
        """The middle of each centred element."""
        return self.known.centre

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows back through product, inverse root, squares and centring."""
        fall, below, drop, above = (each.unsqueeze(1) for each in self.lines)
        scaled_rows = (rows * self.rule.factor(rows)).reshape(*rows.shape[:2], *self.kept.shape[1:])
        centre, middle = self.centre.unsqueeze(1), self.known.root[0].unsqueeze(1)
        linear = torch.where(self.kept.unsqueeze(1), scaled_rows, 0.0)
        total = (linear * centre).sum(3, keepdim=True)
        plus, minus = total.clamp_min(0), total.clamp_max(0)
        slope = (plus * fall + minus * drop) * (2 / centre.shape[3])
        carried = linear * middle - slope * centre
        carried = carried - carried.mean(3, keepdim=True)
        constant = (plus * below + minus * above - total * middle).flatten(2).sum(2)
        constant = constant + dot(scaled_rows, self.constant.unsqueeze(1))
        shift = self.rule.shift(rows).expand(1, 1, *rows.shape[2:])
        return [(self.input, carried.reshape(rows.shape))], constant + dot(rows, shift)


def _relaxation(input: Interval, rule: Statistics) -> Standardisation:
    known = _Moments.of(input, rule)
    low, high = -_largest(known, rule, -1), _largest(known, rule, 1)
    middle = (low + high) / 2
    half = (high - low) / 2 + 4 * rounding.roundoff(input.dtype) * (low.abs() + high.abs())
    remainder = known.radius * known.root[1]
    kept = remainder < half
    return Standardisation(
        input,
        rule,
        known,
        kept,
        torch.where(kept, 0.0, middle),
        _lines(known, rule),
        torch.where(kept, remainder, half),
    )


def _lines(known: _Moments, rule: Statistics) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return how a line in `mean(2 m c)` falls and where it starts, below the root and above it.

    Variance plus eps is between `mean(2 m c) - mean(m^2) + eps` and `mean(r^2)` more.
    """
    low, high = known.variance
    squares = known.centre.square().mean(2, keepdim=True)
    spread = known.radius.square().mean(2, keepdim=True)
    touch = torch.minimum(torch.maximum(squares + spread + rule.eps, low), high)
    fall = 0.5 * touch.rsqrt() / touch
    below = touch.rsqrt() + fall * (touch + squares - spread - rule.eps)
    small, large = high.rsqrt(), low.rsqrt()
    drop = torch.where(high > low, (large - small) / (high - low), fall)
    # Any slope will do whose line is above the inverse root, which is convex, at both ends.
    above = torch.maximum(large + drop * low, small + drop * high) + drop * (squares - rule.eps)
    size = large + (fall + drop) * (high + touch + squares + spread + rule.eps)
    size = size * (4 * rounding.gamma(known.centre.shape[2] + _ROUNDINGS, size.dtype))
    return fall, below - size, drop, above + size


def _normalising(describe: Callable[..., Statistics]) -> dict[str, Any]:
    """Return the rules of a normalisation, all with its arguments."""

    @wraps(describe)
    def interval(input: Interval, *args: Any, **kwargs: Any) -> Interval:
        return _interval(input, describe(input, *args, **kwargs))

    @wraps(describe)
    def relaxation(input: Interval, *args: Any, **kwargs: Any) -> Standardisation:
        return _relaxation(input, describe(input, *args, **kwargs))

    @wraps(describe)
    def open_(input: Interval, *args: Any, **kwargs: Any) -> list[tuple[Interval, Tensor]]:
        return _open(input, describe(input, *args, **kwargs))

    @wraps(describe)
    def evaluation(input: Interval, *args: Any, unit: float, **kwargs: Any) -> Tensor:
        return _evaluation(input, describe(input, *args, **kwargs), unit)

    return {
        "interval": interval,
        "relaxation": relaxation,
        "open": open_,
        "evaluation": evaluation,
    }


def instance_norm_arguments(module: nn.InstanceNorm2d) -> dict[str, Any]:
    """Return the arguments of an instance normalisation module."""
    names = ("running_mean", "running_var", "weight", "bias", "eps")
    return {name: getattr(module, name) for name in names}


LAYER_NORM = _normalising(_layer_norm)
GROUP_NORM = _normalising(_group_norm)
INSTANCE_NORM = _normalising(_instance_norm)
