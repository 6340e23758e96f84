"""The verifier's machinery for functions of one number: curves made of convex and concave pieces.

A line `a x + b` is below a function f on [l, u] exactly if b is at most the least of `f(x) - a x`
there. So any slope a is sound, and the offset alone carries the proof: slopes are searched for, and
trusted for nothing; the offset is bounded from the pieces, whatever the slope.

* On a concave or linear piece [p, q], `f(x) - a x` is least at p or q.
* On a convex piece, f is above its tangent at any t of [p, q], so that for every x of [p, q]

      f(x) - a x >= f(t) - a t + min((f'(t) - a) (p - t), (f'(t) - a) (q - t)).

  A search brings f'(t) close to a, which makes the right side tight; it is a bound for any t.

Every computed f and f' comes with a bound on its own error, and every sum is moved outward. Where a
piece ends at a rounded number (a point of inflection that is no float), it is off by one rounding
of that number: the function bends the wrong way there by less than the cube of a roundoff, and the
slope of the piece by less than its square, which the bounds on the errors exceed.
The upper line is the lower line of -f.

The slope aims at the line that is highest in the middle m of [l, u], which is the one that leaves
the least area: the chord, or a tangent of a convex piece at the point nearest to m at which the
tangent does not pass above the curve at l or u. Of all candidates the highest certified one wins.
A band is NaN where the interval of the result is NaN, or an end of the argument's is not finite.

References:
    Zhang et al. 2018, "Efficient Neural Network Robustness Certification with General Activation
    Functions", arXiv:1811.00866, section 3.2 and table 2: chords, and tangents found by bisection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.relaxations import Band, band


class Valued(NamedTuple):
    """Computed numbers.

    Attributes:
        value: The numbers.
        error: Returns how far each can be from the real one.
    """

    value: Tensor
    error: Callable[[], Tensor]


Function = Callable[[Tensor], Valued]

LIBRARY_ROUNDINGS = 16
"""Units in the last place that the functions of the libraries in use stay well within."""

_HALVINGS, _SECANTS = {torch.float32: 16, torch.float64: 24}, 3
"""Steps of a search for a point: until its binade and some digits are known; then for the rest."""

_UNDERFLOW = 1024
"""Smallest normal numbers that underflow within a formula can cost, with room to spare."""

_MODULE_FLOOR = 1e-30
"""More than an underflow or overflow within a module's float32 formula can cost."""


def near(values: Tensor, roundings: float | Tensor) -> Valued:
    """Return numbers with their error bound, given after how many roundings they come."""

    def error() -> Tensor:
        share = 2 * (roundings + 1) * rounding.roundoff(values.dtype)
        return values.abs().mul_(share).add_(_UNDERFLOW * rounding.tiny(values.dtype))

    return Valued(values, error)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a curve that bends one way.

    Attributes:
        start: Where it starts; pieces are closed, and may overlap.
        end: Where it ends.
        curvature: 1 for convex, -1 for concave, 0 for linear.
        value: The function on this piece.
        slope: Its derivative on this piece, one-sided at its ends.
    """

    start: float
    end: float
    curvature: int
    value: Function
    slope: Function

    def negated(self) -> Piece:
        """Return the piece of the negative function."""
        value, slope = self.value, self.slope
        return replace(
            self,
            curvature=-self.curvature,
            value=lambda x: _negative(value(x)),
            slope=lambda x: _negative(slope(x)),
        )

    def ends(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the piece starts and ends within [low, high]; both at its end if outside."""
        return low.clamp(self.start, self.end), high.clamp(self.start, self.end)


class Turn(NamedTuple):
    """The one place where a function may leave the range between its values at the ends.

    Attributes:
        place: A minimum, a jump, a pole, or the end of its domain.
        least: The least value of the function there, NaN at a pole.
        most: The largest.
    """

    place: float
    least: float
    most: float


class Rounded(NamedTuple):
    """How far the module's own result can be from the exact one, in roundoffs of its dtype.

    Attributes:
        value: Per unit of the largest magnitude of the result.
        input: Per unit of the largest magnitude of the argument, where a formula cancels.
        fixed: Plus this.
    """

    value: float = LIBRARY_ROUNDINGS
    input: float = 0.0
    fixed: float = 0.0


_LIBRARY = Rounded()


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A function of one number, applied to every element.

    Attributes:
        value: The function.
        pieces: Its pieces, which cover its domain.
        turn: Where it stops rising or falling, or ends; without one it rises everywhere.
        span: Numbers between which all its values are.
        rounded: The error of the module's own function.
        ends: A faster `interval` of this function, or None.
    """

    value: Function
    pieces: tuple[Piece, ...]
    turn: Turn | None = None
    span: tuple[float, float] = (-inf, inf)
    rounded: Rounded = _LIBRARY
    ends: Callable[[Interval], Interval] | None = None

    def interval(self, input: Interval) -> Interval:
        """Bound the function: by its values at the ends, and at the turn where that is inside.

        NaN where the function has a pole inside, or is not defined at an end.
        """
        if self.ends is not None:
            return self.ends(input)
        first, last = self.value(input.lower), self.value(input.upper)
        if self.turn is None:
            lower, upper = _down(first), _up(last)
        else:
            lower = torch.minimum(_down(first), _down(last))
            upper = torch.maximum(_up(first), _up(last))
            inside = (input.lower <= self.turn.place) & (input.upper >= self.turn.place)
            least, most = (input.lower.new_tensor(each) for each in self.turn[1:])
            lower = torch.where(inside, torch.minimum(lower, _down(near(least, 1))), lower)
            if self.turn.most != self.turn.least:
                upper = torch.where(inside, torch.maximum(upper, _up(near(most, 1))), upper)
        if self.span != (-inf, inf):
            lower, upper = lower.clamp_(*self.span), upper.clamp_(*self.span)
        return Interval(lower, upper, positive=self.span[0] >= 0)

    @torch.no_grad()
    def band(self, input: Interval) -> Band:
        """Return lines below and above the function, each highest or lowest in the middle."""
        low, high = input.lower, input.upper
        result = self.interval(input)
        hole = result.lower.isnan() | result.upper.isnan() | (high - low).mul(0).isnan()
        first, last = self.value(low).value, self.value(high).value
        slope, offset = _highest_below(self.pieces, input, first, last)
        mirrored = tuple(piece.negated() for piece in self.pieces)
        fall, depth = _highest_below(mirrored, input, -first, -last)
        return band(
            input,
            (slope, offset.masked_fill(hole, torch.nan)),
            (-fall, (-depth).masked_fill(hole, torch.nan)),
        )

    def open(self, input: Interval) -> list[tuple[Interval, Tensor]]:
        """Return the elements that are neither points nor inside one linear piece."""
        loose = input.upper > input.lower
        for piece in self.pieces:
            if piece.curvature == 0:
                loose &= (input.lower < piece.start) | (input.upper > piece.end)
        return [(input, loose)]

    def evaluation(self, input: Interval, unit: float) -> Tensor:
        """Bound how far the module's own function can be from the exact one.

        Where the function jumps, the module may take either side.
        """
        of_value, of_input, fixed = self.rounded
        error = self.interval(input).magnitude * (of_value * unit) + (fixed * unit + _MODULE_FLOOR)
        if of_input:
            error = error + input.magnitude * (of_input * unit)
        if self.turn is not None and self.turn.most > self.turn.least:
            place, room = self.turn.place, 8 * unit * abs(self.turn.place)
            close = (input.lower <= place + room) & (input.upper >= place - room)
            error = torch.where(close, error + (self.turn.most - self.turn.least), error)
        return error


def smooth(value: Function, slope: Function, *breaks: float, first: int) -> tuple[Piece, ...]:
    """Return the pieces of a smooth function that bends the other way at each break.

    Args:
        value: The function.
        slope: Its derivative.
        *breaks: Its points of inflection, in order.
        first: Curvature of the first piece.
    """
    ends = (-inf, *breaks, inf)
    return tuple(
        Piece(start, end, first * (-1) ** number, value, slope)
        for number, (start, end) in enumerate(pairwise(ends))
    )


def linear(start: float, end: float, value: Function, slope: float) -> Piece:
    """Return a linear piece."""
    return Piece(start, end, 0, value, lambda x: near(torch.full_like(x, slope), 0))


def rules(build: Callable[..., Curve]) -> dict[str, Any]:
    """Return the rules of an operator that applies a curve, all with the arguments of `build`.

    Args:
        build: From the operator's arguments to its curve; raises `Unsupported`.
    """

    @wraps(build)
    def interval(input: Interval, *args: Any, **kwargs: Any) -> Interval:
        return build(input, *args, **kwargs).interval(input)

    @wraps(build)
    def relaxation(input: Interval, *args: Any, **kwargs: Any) -> Band:
        return build(input, *args, **kwargs).band(input)

    @wraps(build)
    def opened(input: Interval, *args: Any, **kwargs: Any) -> list[tuple[Interval, Tensor]]:
        return build(input, *args, **kwargs).open(input)

    @wraps(build)
    def evaluation(input: Interval, *args: Any, unit: float, **kwargs: Any) -> Tensor:
        return build(input, *args, **kwargs).evaluation(input, unit)

    return {
        "interval": interval,
        "relaxation": relaxation,
        "open": opened,
        "evaluation": evaluation,
        "mixing": "none",
    }


def _down(found: Valued) -> Tensor:
    return found.error().neg_().add_(found.value)


def _up(found: Valued) -> Tensor:
    return found.error().add_(found.value)


def _negative(found: Valued) -> Valued:
    return Valued(-found.value, found.error)


def _highest_below(
    pieces: tuple[Piece, ...], input: Interval, first: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    """Return slope and offset of a line below a function, the highest in the middle of several.

    Args:
        pieces: The function.
        input: Where.
        first: About the function at the lower end.
        last: At the upper end.
    """
    low, high = input.lower, input.upper
    middle = torch.minimum(torch.maximum(low / 2 + high / 2, low), high)
    lines: list[tuple[Tensor, dict[Piece, Tensor]]] = [(_finite((last - first) / (high - low)), {})]
    for piece in pieces:
        if piece.curvature >= 0:
            touch, slope = _tangent(piece, input, middle, first, last)
            lines.append((slope, {piece: touch}))
    best, touches = lines[0]
    offset = _offset(pieces, input, best, touches)
    for slope, touches in lines[1:]:
        other = _offset(pieces, input, slope, touches)
        height, level = best * middle + offset, slope * middle + other
        better = (level > height) | height.isnan()
        best, offset = torch.where(better, slope, best), torch.where(better, other, offset)
    return best, offset


def _tangent(
    piece: Piece, input: Interval, middle: Tensor, first: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    """Return where a line touches a convex piece, near the middle if it can, and its slope.

    The tangent at t passes below the curve at the lower end for all t from some point on, and
    below it at the upper end for all t up to some point. Where it touches to one side of the
    middle, the line from there to the far end is taken: where the piece ends in a kink it is
    steeper or flatter than the tangent, and a small error of t hardly changes its slope.
    """
    low, high = input.lower, input.upper
    start, end = piece.ends(low, high)

    def above_lower(t: Tensor) -> Tensor:
        over = piece.value(t).value + piece.slope(t).value * (low - t) - first
        return torch.where(low >= piece.start, 0.0, over)

    def above_upper(t: Tensor) -> Tensor:
        over = piece.value(t).value + piece.slope(t).value * (high - t) - last
        return torch.where(high <= piece.end, 0.0, over)

    touch = torch.minimum(torch.maximum(middle, start), end)
    if piece.curvature and (piece.start, piece.end) != (-inf, inf):
        later = above_lower(touch) > 0
        goal = torch.where(later, end, torch.where(above_upper(touch) > 0, start, touch))
        far, value = torch.where(later, low, high), torch.where(later, first, last)
        touch = _root(
            lambda t: piece.value(t).value + piece.slope(t).value * (far - t) - value, goal, touch
        )
    value, slope = piece.value(touch).value, piece.slope(touch).value
    before, after = (last - value) / (high - touch), (value - first) / (touch - low)
    line = torch.where(middle > touch, before, torch.where(middle < touch, after, slope))
    return touch, _finite(line)


def _offset(
    pieces: tuple[Piece, ...], input: Interval, slope: Tensor, touches: dict[Piece, Tensor]
) -> Tensor:
    """Return a lower bound of the function less `slope * x`: the proof.

    Args:
        pieces: The function.
        input: Where.
        slope: Any slope.
        touches: For some convex pieces, points of theirs that are about as steep.
    """
    least = torch.full_like(slope, inf)
    for piece in pieces:
        inside = (input.upper >= piece.start) & (input.lower <= piece.end)
        start, end = piece.ends(input.lower, input.upper)
        if piece.curvature > 0:
            touch = touches[piece] if piece in touches else _steep(piece, slope, start, end)
            bound = _tangent_bound(piece, start, end, touch, slope)
        else:
            bound = torch.minimum(_gap(piece, start, slope), _gap(piece, end, slope))
        least = torch.where(inside, torch.minimum(least, bound), least)
    return least


def _steep(piece: Piece, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return about where a convex piece is as steep as a line."""
    return _root(lambda t: piece.slope(t).value - slope, start, end)


def _tangent_bound(
    piece: Piece, start: Tensor, end: Tensor, touch: Tensor, slope: Tensor
) -> Tensor:
    """Return a lower bound of a convex piece less `slope * x`, by its tangent at one point."""
    unit = rounding.roundoff(slope.dtype)
    own, own_error = piece.slope(touch)
    steeper = own - slope
    error = own_error() + 4 * unit * (own.abs() + slope.abs())
    # An infinite slope times no distance is no fall.
    back = torch.where(touch > start, (steeper + error) * (start - touch), 0.0)
    ahead = torch.where(end > touch, (steeper - error) * (end - touch), 0.0)
    fall = torch.minimum(back, ahead).clamp_max(0)
    return rounding.down(_gap(piece, touch, slope) + fall * (1 + 8 * unit), 2)


def _gap(piece: Piece, place: Tensor, slope: Tensor) -> Tensor:
    """Return a lower bound of the function less `slope * x` at a place."""
    value, own_error = piece.value(place)
    rise = slope * place
    error = own_error() + 8 * rounding.roundoff(value.dtype) * (value.abs() + rise.abs())
    return value - rise - error - rounding.tiny(value.dtype)


def _root(residual: Callable[[Tensor], Tensor], inside: Tensor, outside: Tensor) -> Tensor:
    """Return about where a residual that is at most zero `inside` and more `outside` is zero.

    The number of floats in between is halved, which narrows any interval to neighbours of the same
    scale; then secants finish. If the residual has one sign, that is the end nearer to zero.
    """
    near_rank, far_rank = _ranked(inside), _ranked(outside)
    for _ in range(_HALVINGS[inside.dtype]):
        middle = (near_rank >> 1) + (far_rank >> 1) + (near_rank & far_rank & 1)
        held = residual(_flipped(middle).view(inside.dtype)) <= 0
        near_rank = torch.where(held, middle, near_rank)
        far_rank = torch.where(held, far_rank, middle)
    inside, outside = (_flipped(each).view(inside.dtype) for each in (near_rank, far_rank))
    first, last = residual(inside), residual(outside)
    for _ in range(_SECANTS):
        cut = inside - first * ((outside - inside) / (last - first))
        cut = torch.maximum(cut, torch.minimum(inside, outside))
        cut = torch.minimum(cut, torch.maximum(inside, outside))
        cut = torch.where(cut.isnan(), inside, cut)
        found = residual(cut)
        held = found <= 0
        inside, outside = torch.where(held, cut, inside), torch.where(held, outside, cut)
        first, last = torch.where(held, found, first), torch.where(held, last, found)
    return torch.where(first.abs() <= last.abs(), inside, outside)


def _ranked(values: Tensor) -> Tensor:
    """Return integers in the order of floats: those of negative floats have their bits flipped."""
    return _flipped(values.view(torch.int64 if values.element_size() == 8 else torch.int32))


def _flipped(bits: Tensor) -> Tensor:
    largest = torch.iinfo(bits.dtype).max
    return bits ^ ((bits >> (8 * bits.element_size() - 1)) & largest)


def _finite(slope: Tensor) -> Tensor:
    return torch.where(slope.isfinite(), slope, 0.0)
