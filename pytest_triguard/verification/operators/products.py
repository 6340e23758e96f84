"""Rules of matrix products of two values, and of averages with the weights of a softmax.

With X within R of M and Y within Q of L, the product `X Y` is within `R Q` of `M Y + X L - M L`,
the mean of McCormick's two planes on either side, and so within `|M| Q + R |L| + R Q` of `M L`.
Only matrix products are made, never a tensor with an entry for each product of two elements.

Where rows of the first factor are weights w in [a, b] that add up to one, an average `w y` is the
optimum of a continuous knapsack. Its dual bounds it for every level t by
`t + a (y - t) + (b - a) max(y - t, 0)`; the best level is one of the elements of y.

References:
    McCormick 1976, "Computability of Global Solutions to Factorable Nonconvex Programs"; Rump 1999,
    "Fast and Parallel Interval Arithmetic", section 3, for the product in centres and radii.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.affine import (
    linear,
    linear_evaluation,
    linear_relaxation,
)
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.relaxations import Carried, Relaxation, dot

_LEVELS = 16
"""Levels of the knapsack's dual that are tried, evenly among the sorted elements."""

Operand = Interval | Tensor


def attended(weights: Tensor, values: Tensor) -> Tensor:
    """Average values with weights that add up to one, as attention does.

    Args:
        weights: `(N, ..., I, J)`, a softmax over the last dimension.
        values: `(N, ..., J, K)`.

    Returns:
        `(N, ..., I, K)`.
    """
    return weights @ values


def matmul(input: Operand, other: Operand) -> Interval:
    """Bounds of `torch.matmul` with at least one matrix for each sample."""
    if _is_matrix(input, other):
        return linear(input, other.T)  # type: ignore[arg-type, union-attr]
    one, two = _factors(input, other)
    (first, reach), (second, spread) = one.centre_and_radius(), two.centre_and_radius()
    middle, inner = first @ second, one.shape[-1]
    radius = first.abs() @ spread + reach @ (second.abs() + spread)
    error = (first.abs() + reach) @ (second.abs() + spread) * (4 * rounding.gamma(inner, one.dtype))
    radius = radius + error + inner * rounding.tiny(one.dtype)
    return Interval(middle - radius, middle + radius)


def matmul_relaxation(input: Operand, other: Operand) -> Relaxation:
    """The product linearised in the middle, and what is left."""
    if _is_matrix(input, other):
        return linear_relaxation(input, other.T)  # type: ignore[arg-type, union-attr]
    return _bilinear(input, other, matmul(input, other), None)


def matmul_open(input: Operand, other: Operand) -> list[tuple[Interval, Tensor]]:
    """Every element that varies, where both factors do."""
    if not (isinstance(input, Interval) and isinstance(other, Interval)):
        return []
    return [(each, each.upper > each.lower) for each in (input, other)]


def matmul_evaluation(input: Operand, other: Operand, *, unit: float) -> Tensor:
    """Rounding of the module's own sums of products."""
    if _is_matrix(input, other):
        return linear_evaluation(input, other.T, unit=unit)  # type: ignore[arg-type, union-attr]
    one, two = _factors(input, other)
    first, second = one.magnitude, two.magnitude
    largest = first.amax(-1, keepdim=True) + second.amax(-2, keepdim=True)
    size, inner = first @ second, one.shape[-1]
    error = size * (2 * rounding.accumulated(inner, unit)) + rounding.lost(largest, inner)
    return rounding.unless_overflow(error, size)


def attended_interval(weights: Operand, values: Operand) -> Interval:
    """Bounds of `attended`."""
    one, two = _factors(weights, values)
    one = Interval(one.lower.clamp(0, 1), one.upper.clamp(0, 1))
    inner, size = one.shape[-1], 1 + one.upper.sum(-1, keepdim=True)
    error = size * two.magnitude.amax(-2, keepdim=True)
    error = error * (16 * rounding.gamma(inner, one.dtype)) + inner * rounding.tiny(one.dtype)
    return Interval(-_highest(one, -two.lower) - error, _highest(one, two.upper) + error)


def attended_relaxation(weights: Operand, values: Operand) -> Bilinear:
    """The product linearised in the middle, less an average that weights cannot change."""
    one, two = _factors(weights, values)
    common = two.centre_and_radius()[0].mean(-2, keepdim=True)
    return _bilinear(weights, values, attended_interval(one, two), common)


def attended_evaluation(weights: Operand, values: Operand, *, unit: float) -> Tensor:
    """Rounding of the module's own sums, and of its weights' sum to one."""
    one, two = _factors(weights, values)
    total = one.magnitude.sum(-1, keepdim=True).clamp_min(1)
    terms = 2 * rounding.accumulated(2 * one.shape[-1], unit)
    largest = two.magnitude.amax(-2, keepdim=True)
    size = total * largest
    return size * terms + rounding.lost(total + largest, 2 * one.shape[-1])


@dataclass(frozen=True)
class Bilinear:
    """A matrix product as a relaxation.

    Attributes:
        input: The first factor, `(N, ..., I, J)`, a constant's bounds if it is one.
        other: The second factor, `(N, ..., J, K)`.
        varying: Whether each of them depends on the input.
        slopes: What rows on each of them are made with, of the shapes of `input` and `other`.
        kept: `(N, ..., I, K)` elements whose linear bounds are used.
        offset: Constant of each element, `(N, ..., I, K)`.
        error: The remainder, and what `back` rounds, per unit of a coefficient.
    """

    input: Interval
    other: Interval
    varying: tuple[bool, bool]
    slopes: tuple[Tensor, Tensor]
    kept: Tensor
    offset: Tensor
    error: Tensor

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows back to both factors."""
        linear_rows = torch.where(self.kept.unsqueeze(1), rows, 0.0)
        carried: Carried = []
        if self.varying[0]:
            carried.append((self.input, linear_rows @ self.slopes[1].mT.unsqueeze(1)))
        if self.varying[1]:
            carried.append((self.other, self.slopes[0].mT.unsqueeze(1) @ linear_rows))
        return carried, dot(rows, self.offset.unsqueeze(1))


def _bilinear(input: Operand, other: Operand, ends: Interval, common: Tensor | None) -> Bilinear:
    """Linearise a product; constants where its own bounds are tighter.

    Args:
        input: The first factor.
        other: The second factor.
        ends: Bounds of the product.
        common: `(N, ..., 1, K)` to be taken off the second factor, if weights add up to one.
    """
    one, two = _factors(input, other)
    (first, reach), (second, spread) = one.centre_and_radius(), two.centre_and_radius()
    dtype, unit = one.dtype, rounding.roundoff(one.dtype)
    varying = isinstance(input, Interval), isinstance(other, Interval)
    remainder = reach @ spread if all(varying) else torch.zeros_like(ends.lower)
    middle = (ends.lower + ends.upper) / 2
    half = (ends.upper - ends.lower) / 2 + 4 * unit * (ends.lower.abs() + ends.upper.abs())
    kept = remainder < half
    around = second if common is None else second - common
    offset = -(first @ second) if all(varying) else torch.zeros_like(middle)
    if common is not None and varying[0]:
        offset = offset + common
    gamma = 8 * rounding.gamma(2 * (one.lower[0].numel() + two.lower[0].numel()), dtype)
    size = one.magnitude @ (two.magnitude + around.abs()) + offset.abs() + middle.abs()
    return Bilinear(
        one,
        two,
        varying,
        (first, around),
        kept,
        torch.where(kept, offset, middle),
        torch.where(kept, remainder, half) * (1 + gamma) + gamma * size,
    )


def _highest(weights: Interval, values: Tensor) -> Tensor:
    """Return an upper bound of averages with weights that add up to one, `(N, ..., I, K)`."""
    count = values.shape[-2]
    places = torch.linspace(0, count - 1, min(count, _LEVELS)).round().to(torch.int64).tolist()
    ordered = values.sort(-2).values
    width = weights.upper - weights.lower
    free = 1 - weights.lower.sum(-1, keepdim=True)
    fixed = weights.lower @ values
    best = torch.full_like(fixed, torch.inf)
    for place in places:
        level = ordered[..., place : place + 1, :]
        best = torch.minimum(best, free * level + width @ (values - level).clamp_min(0))
    return fixed + best


def _is_matrix(input: Operand, other: Operand) -> bool:
    """Return whether the second factor is one constant matrix."""
    return isinstance(input, Interval) and isinstance(other, Tensor) and other.ndim == 2


def _factors(input: Operand, other: Operand) -> tuple[Interval, Interval]:
    """Return both factors with a matrix for each sample, constants as bounds of themselves."""
    known = input if isinstance(input, Interval) else other
    if not isinstance(known, Interval) or len(known.shape) < 3:
        raise Unsupported("a product with no matrix for each sample")
    one, two = (
        each if isinstance(each, Interval) else _constant(each, known) for each in (input, other)
    )
    if one.shape[:-2] != two.shape[:-2]:
        raise Unsupported(f"factors of shapes {tuple(one.shape[1:])} and {tuple(two.shape[1:])}")
    return one, two


def _constant(factor: Tensor, known: Interval) -> Interval:
    if factor.ndim < 2 or factor.ndim > len(known.shape):
        raise Unsupported(f"a factor of {factor.ndim} dimensions")
    both = list(zip(reversed(factor.shape[:-2]), reversed(known.shape[:-2]), strict=False))
    if any(own not in (1, other) for own, other in both):
        raise Unsupported(f"factors of shapes {tuple(factor.shape)} and {tuple(known.shape[1:])}")
    value = factor.to(known.dtype).expand(*known.shape[:-2], *factor.shape[-2:])
    return Interval(value, value)
