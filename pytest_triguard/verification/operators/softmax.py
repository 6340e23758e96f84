"""Rules of softmax and log-softmax, with all elements of the dimension bounded jointly.

Interval: an element of the result grows with its own argument and falls with all others, so that
its ends are at corners of the box: `1 / (1 + exp(u - l_i))` with u the log-sum-exp of the others'
upper bounds. Differences and logistic functions keep it from overflow.

Relaxation: `log p_i = x_i - lse(x)`. The log-sum-exp is convex, so it is above its tangent; each
exponential is below its chord and the logarithm of their sum below its tangent, so it is below a
linear function, too. The exponential of `log p_i` is between a tangent and a chord. Both planes
have the form `k_i (x_i - w x) + b_i` with one w for all i.

References:
    Wei et al. 2023, "Convex Bounds on the Softmax Function with Applications to Robustness
    Verification", arXiv:2303.01713, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.relaxations import Carried, dot, positive

_ROUNDINGS = 32
"""Roundings of one element's formula, at most, its sums aside, library functions included."""

_NARROW = 1e-6
"""Width below which a chord is replaced by a line with the slope of its upper end."""


def softmax(
    input: Interval, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Interval:
    """Bounds of `torch.softmax`."""
    logarithms = log_softmax(input, dim, _stacklevel, dtype)
    lower = rounding.down(logarithms.lower.exp(), _ROUNDINGS)
    upper = rounding.up(logarithms.upper.exp(), _ROUNDINGS)
    return Interval(lower.clamp_min(0), upper.clamp_max(1))


def log_softmax(
    input: Interval, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Interval:
    """Bounds of `torch.log_softmax`."""
    along = _along(input, dim, _stacklevel, dtype)
    low, high = input.lower.movedim(along, -1), input.upper.movedim(along, -1)
    lower = rounding.down(functional.logsigmoid(_ahead(low, high, -1)), _ROUNDINGS)
    upper = rounding.up(functional.logsigmoid(_ahead(high, low, 1)), _ROUNDINGS)
    return Interval(lower.movedim(-1, along), upper.movedim(-1, along))


def _along(input: Interval, dim: int | None, _stacklevel: Any, dtype: Any) -> int:
    """Return the dimension, counted from the front."""
    if isinstance(_stacklevel, torch.dtype):  # third of `torch.softmax` and of the method
        dtype = _stacklevel
    if dtype is not None:
        raise Unsupported(f"dtype={dtype}")
    if dim is None or dim % len(input.shape) == 0:
        raise Unsupported(f"dim={dim}")
    return dim % len(input.shape)


def _ahead(own: Tensor, others: Tensor, sign: int) -> Tensor:
    """Return each element less the log-sum-exp of the other elements, moved outward by the sign.

    Args:
        own: `(..., n)` ends of each element.
        others: `(..., n)` ends of the other elements.
        sign: 1 to move up, -1 to move down.
    """
    top, place = others.max(-1, keepdim=True)
    powers = (others - top).exp()
    # All but the largest: at least half of the sum is left, so that nothing cancels.
    total = top + (powers.sum(-1, keepdim=True) - powers).log()
    rest = others.scatter(-1, place, -torch.inf).logsumexp(-1, keepdim=True)
    total = total.scatter(-1, place, rest).clamp_min(torch.finfo(own.dtype).min / 4)
    error = (own.abs() + total.abs() + 2) * (_ROUNDINGS * rounding.roundoff(own.dtype))
    error = error + 8 * rounding.gamma(own.shape[-1], own.dtype)
    return own - total + sign * error


def _chord(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset of a line above the exponential between two ends."""
    slope = (high.exp() - low.exp()) / (high - low).clamp_min(_NARROW)
    slope = torch.where(high - low > _NARROW, slope, high.exp())
    # Any slope will do with an offset that holds at both ends, as the exponential is convex.
    return slope, torch.maximum(low.exp() - slope * low, high.exp() - slope * high)


def softmax_open(
    input: Interval, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> list[tuple[Interval, Tensor]]:
    """Every element that varies."""
    del dim, _stacklevel, dtype
    return [(input, input.upper > input.lower)]


def softmax_evaluation(
    input: Interval,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: Any = None,
    *,
    unit: float,
) -> Tensor:
    """Rounding of the module's own exponentials, their sum and the quotient."""
    share = log_softmax_evaluation(input, dim, _stacklevel, dtype, unit=unit)
    share = torch.where(share < 0.5, 2 * share, torch.inf)
    return softmax(input, dim).upper * share + rounding.lost(torch.zeros_like(share))


def log_softmax_evaluation(
    input: Interval,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: Any = None,
    *,
    unit: float,
) -> Tensor:
    """Rounding of the module's own differences, and of the logarithm of the sum."""
    along = _along(input, dim, _stacklevel, dtype)
    largest = input.magnitude.amax(along, keepdim=True).expand(input.shape)
    return 8 * unit * (largest + 8) + 2 * rounding.accumulated(2 * input.shape[along], unit)


@dataclass(frozen=True)
class Planes:
    """A result between planes `k_i (x_i - w x) + b_i`, as a relaxation.

    Attributes:
        input: The argument.
        dim: The dimension of the sum `w x`, counted from the front.
        slopes: `k` of the lower planes, then of the upper ones, `(N, ..., n)` with `dim` last.
        shared: `w` likewise.
        offsets: `b` likewise.
        error: Per unit of a coefficient, `(N, *shape)`.
    """

    input: Interval
    dim: int
    slopes: tuple[Tensor, Tensor]
    shared: tuple[Tensor, Tensor]
    offsets: tuple[Tensor, Tensor]
    error: Tensor

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows back: the lower planes for positive coefficients, the upper for others."""
        last = rows.movedim(self.dim + 1, -1)
        constant = rows.new_zeros(rows.shape[:2])
        carried = torch.zeros_like(last)
        above = positive(last, 2)
        for place, part in enumerate((above, last - above)):
            scaled = part * self.slopes[place].unsqueeze(1)
            shared = scaled.sum(-1, keepdim=True) * self.shared[place].unsqueeze(1)
            carried = carried + scaled - shared
            constant = constant + dot(part, self.offsets[place].unsqueeze(1))
        return [(self.input, carried.movedim(-1, self.dim + 1))], constant


def softmax_relaxation(
    input: Interval, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Planes:
    """Tangent and chord of the exponential over those of the log-sum-exp."""
    along = _along(input, dim, _stacklevel, dtype)
    sums = _Sums.of(input, along)
    logarithms, ends = log_softmax(input, along), softmax(input, along)
    low, high = (each.movedim(along, -1) for each in (logarithms.lower, logarithms.upper))
    start = sums.at_centre(0)
    tangent = start.exp()
    chord, start_above = _chord(low, high)
    offsets = tangent * (1 - start + sums.rests[0]), start_above + chord * sums.rests[1]
    extra = tangent * (1 + start.abs()), start_above.abs() + chord * (1 + low.abs())
    return sums.planes(ends, (tangent, chord), offsets, torch.maximum(*extra))


def log_softmax_relaxation(
    input: Interval, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Planes:
    """Tangent and chord of the log-sum-exp."""
    along = _along(input, dim, _stacklevel, dtype)
    sums = _Sums.of(input, along)
    one = torch.ones_like(sums.middle)
    offsets = sums.rests[0] * one, sums.rests[1] * one
    return sums.planes(log_softmax(input, along), (one, one), offsets, one)


@dataclass(frozen=True)
class _Sums:
    """Linear bounds `x_i - w x + rest` of the logarithm of a softmax, below and above.

    Attributes:
        input: The argument.
        dim: The dimension of the softmax, last in all that follows.
        middle: Middle of the argument.
        radius: Its radius.
        shared: `w`, below and above, `(N, ..., n)`.
        rests: `rest`, below and above, `(N, ..., 1)`.
        size: Magnitude of the terms of the bounds, `(N, ..., n)`.
    """

    input: Interval
    dim: int
    middle: Tensor
    radius: Tensor
    shared: tuple[Tensor, Tensor]
    rests: tuple[Tensor, Tensor]
    size: Tensor

    @staticmethod
    def of(input: Interval, dim: int) -> _Sums:
        """Bound the log-sum-exp by its tangent and by a line through the chords' sum."""
        middle, radius = (each.movedim(dim, -1) for each in input.centre_and_radius())
        low, high = (each.movedim(dim, -1) for each in (input.lower, input.upper))
        shift = high.amax(-1, keepdim=True)
        slope, start = _chord(low - shift, high - shift)
        start = start - slope * shift
        total = (slope * middle + start).sum(-1, keepdim=True)
        below = slope / total
        rest_below = 1 - total.log() - shift - start.sum(-1, keepdim=True) / total
        above = middle.softmax(-1)
        rest_above = (above * middle).sum(-1, keepdim=True) - middle.logsumexp(-1, keepdim=True)
        size = input.magnitude.movedim(dim, -1) + shift.abs()
        reach = (torch.maximum(above, below) * size).sum(-1, keepdim=True)
        starts = (start.abs() + 1).sum(-1, keepdim=True) / total
        size = size + 2 * reach + starts + rest_below.abs() + rest_above.abs() + total.log().abs()
        rests = rest_below, rest_above
        return _Sums(input, dim, middle, radius, (below, above), rests, size + 2)

    def at_centre(self, place: int) -> Tensor:
        """Return the bound below (0) or above (1) in the middle of the box."""
        shared = (self.shared[place] * self.middle).sum(-1, keepdim=True)
        return self.middle - shared + self.rests[place]

    def planes(
        self,
        ends: Interval,
        slopes: tuple[Tensor, Tensor],
        offsets: tuple[Tensor, Tensor],
        extra: Tensor,
    ) -> Planes:
        """Return the planes, and the ends instead where those are tighter on the whole.

        Args:
            ends: Bounds of the result.
            slopes: `k` of the planes, below and above.
            offsets: `b` of the planes, below and above.
            extra: Magnitude of terms that are not multiples of the sums.
        """
        known = tuple(each.movedim(self.dim, -1) for each in (ends.lower, ends.upper))
        chosen = []
        for place, sign in enumerate((1, -1)):
            slope, shared = slopes[place], self.shared[place]
            centre = slope * (self.at_centre(place) - self.rests[place]) + offsets[place]
            others = (shared * self.radius).sum(-1, keepdim=True) - shared * self.radius
            spread = slope * ((1 - shared).abs() * self.radius + others)
            kept = sign * 2 * (centre - known[place]) > spread
            chosen.append(
                (torch.where(kept, slope, 0.0), torch.where(kept, offsets[place], known[place]))
            )
        gamma = 4 * rounding.gamma(2 * self.input.shape[1:].numel() + _ROUNDINGS, self.input.dtype)
        size = torch.maximum(chosen[0][0], chosen[1][0]) * self.size + extra
        size = size + torch.maximum(chosen[0][1].abs(), chosen[1][1].abs())
        floor = self.size * (8 * size.shape[-1] * rounding.tiny(size.dtype))
        return Planes(
            self.input,
            self.dim,
            (chosen[0][0], chosen[1][0]),
            self.shared,
            (chosen[0][1], chosen[1][1]),
            (gamma * size + floor).movedim(-1, self.dim),
        )
