"""What is known about a value inside the network: an interval per element, perhaps a ball too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding

BallNorm = Literal["linf", "l2", "l1"]
BALL_NORMS: tuple[BallNorm, ...] = ("linf", "l2", "l1")
ORDERS: dict[BallNorm, float] = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}


@dataclass(frozen=True, slots=True)
class Ball:
    """The set `centre + scale * d` with `norm(d) <= radius`, sample by sample.

    Attributes:
        centre: `(N, ...)`.
        scale: `(1, ...)` or `(N, ...)`, at least 0, the same for every sample.
        radius: `(N,)`.
        norm: `"l2"` or `"l1"`; an L-inf ball is an interval.
    """

    centre: Tensor
    scale: Tensor
    radius: Tensor
    norm: BallNorm


ROOM = 24
"""Roundings that the radius of a product has to spare, for the operators that follow it."""


class Interval:
    """Bounds on a value, element by element: two ends, or a centre and a radius.

    Products yield a centre and a radius, and sums, averages and scaling go on with them; monotone
    functions want the ends. Either form is computed from the other where it is asked for.

    Args:
        lower: `(N, ...)` lower bounds.
        upper: `(N, ...)` upper bounds.
        ball: A ball that holds the value too, or None.
        positive: Whether the lower bounds are known to be at least zero, or NaN.
    """

    __slots__ = ("_centred", "_ends", "_largest", "_magnitude", "ball", "positive", "room")

    def __init__(
        self, lower: Tensor, upper: Tensor, ball: Ball | None = None, *, positive: bool = False
    ) -> None:
        self._ends: tuple[Tensor, Tensor] | None = (lower, upper)
        self._centred: tuple[Tensor, Tensor] | None = None
        self._magnitude: Tensor | None = None
        self._largest: Tensor | None = None
        self.ball = ball
        self.positive = positive
        self.room = 0

    @classmethod
    def around(cls, centre: Tensor, radius: Tensor, room: int) -> Interval:
        """Return bounds given as a centre `(N, ...)` and a radius `(N, ...)`.

        Args:
            centre: The centre c.
            radius: The radius r. Values x are so close to c that
                `|x - c| (1 + room u) + room u |c| <= r`, u the unit roundoff, where c is finite.
            room: At least 4, which pays for computing the ends.
        """
        value = cls.__new__(cls)
        value._ends = None
        value._centred = (centre, radius)
        value._magnitude = value._largest = None
        value.ball = None
        value.positive = False
        value.room = room
        return value

    def alike(self) -> Interval:
        """Return the same bounds, with nothing kept that was computed from them."""
        return Interval(self.lower, self.upper, self.ball, positive=self.positive)

    @property
    def lower(self) -> Tensor:
        """Lower bounds, `(N, ...)`."""
        return self._both()[0]

    @property
    def upper(self) -> Tensor:
        """Upper bounds, `(N, ...)`."""
        return self._both()[1]

    def _both(self) -> tuple[Tensor, Tensor]:
        if self._ends is None:
            self._ends = self.fresh_ends()
        return self._ends

    def fresh_ends(self) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds that may be overwritten."""
        if self._ends is not None:
            return self._ends[0].clone(), self._ends[1].clone()
        centre, radius = self.centre_and_radius()
        return centre - radius, radius.add_(centre)

    def _sides(self) -> tuple[Tensor, Tensor]:
        if self._centred is None:
            raise TypeError("an interval has ends, or a centre and a radius")
        return self._centred

    @property
    def is_centred(self) -> bool:
        """Whether only a centre and a radius are known so far."""
        return self._ends is None

    @property
    def known(self) -> Tensor:
        """A tensor of the value's shape, dtype and device."""
        return self._sides()[0] if self._ends is None else self._ends[0]

    @property
    def shape(self) -> torch.Size:
        """Shape of the value, samples first."""
        return self.known.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the bounds are computed in."""
        return self.known.dtype

    @property
    def device(self) -> torch.device:
        """The device the bounds are on."""
        return self.known.device

    @property
    def magnitude(self) -> Tensor:
        """The largest magnitude of each element, `(N, ...)`; not to be overwritten."""
        if self._magnitude is None:
            # The upper end is the larger unless the lower is below zero by more.
            upper = self.upper
            self._magnitude = upper if self.positive else torch.maximum(-self.lower, upper)
        return self._magnitude

    @property
    def largest(self) -> Tensor:
        """At least the largest magnitude of each sample's elements, `(N,)`."""
        if self._largest is None:
            dims = tuple(range(1, len(self.shape)))
            most = self.upper.amax(dims)
            self._largest = most if self.positive else torch.maximum(most, -self.lower.amin(dims))
        return self._largest

    def settle(self) -> None:
        """Keep nothing but the ends, and the ball: memory for what is asked for again."""
        self._both()
        self._centred = self._magnitude = None

    @property
    def middle(self) -> Tensor:
        """The middle of the bounds, rounded."""
        return (self.lower + self.upper) / 2

    def rearranged(self, change: Callable[[Tensor], Tensor]) -> Interval:
        """Return the value after its elements were only moved, or zeros put beside them."""
        if self.is_centred:
            centre, radius = self._sides()
            return Interval.around(change(centre), change(radius), self.room)
        ball = self.ball
        if ball is not None:
            scale = ball.scale.expand_as(ball.centre)
            ball = Ball(change(ball.centre), change(scale), ball.radius, ball.norm)
        lower, upper = self._both()
        return Interval(change(lower), change(upper), ball, positive=self.positive)

    def rectified(self) -> Interval:
        """Return the larger of the value and zero, whose magnitude is no larger."""
        if self.is_centred:
            lower, upper = self.fresh_ends()
            return Interval(lower.clamp_min_(0), upper.clamp_min_(0), positive=True)
        return _Rectified(self)

    def monotone(self, function: Callable[[Tensor], Tensor]) -> Interval:
        """Return the value after a function that never falls and that is computed exactly.

        The function keeps what is at least zero at least zero.
        """
        return Interval(function(self.lower), function(self.upper), positive=self.positive)

    def converted(self, dtype: torch.dtype) -> Interval:
        """Return bounds in another dtype; they are moved outward where that is a coarser one."""
        if dtype == self.dtype:
            return self
        lower, upper = self.lower.to(dtype), self.upper.to(dtype)
        if torch.finfo(dtype).bits > torch.finfo(self.dtype).bits:
            ball = self.ball
            if ball is not None:
                ball = Ball(
                    ball.centre.to(dtype), ball.scale.to(dtype), ball.radius.to(dtype), ball.norm
                )
            return Interval(lower, upper, ball, positive=self.positive)
        ball = None if self.ball is None else _coarser(self.ball, dtype)
        return Interval(rounding.down(lower, 1), rounding.up(upper, 1), ball)

    def widened(self, error: Tensor) -> Interval:
        """Return bounds that also hold what is off by up to an error, element by element."""
        error = error.to(self.dtype)
        ball = self.ball
        if ball is not None:
            moved = torch.where(error > 0, error / ball.scale, 0 * error)
            added = lengths(moved.expand_as(ball.centre), ball.norm)
            growth = 1 + rounding.gamma(ball.centre[0].numel(), self.dtype)
            ball = Ball(ball.centre, ball.scale, (ball.radius + added) * growth, ball.norm)
        lower, upper = self.lower - error, self.upper + error
        return Interval(rounding.down(lower, 1), rounding.up(upper, 1), ball)

    def centre_and_radius(self) -> tuple[Tensor, Tensor]:
        """Return `c` and `r` such that every value is within `r` of `c`, whatever was rounded.

        The centre is not to be overwritten.
        """
        if self.is_centred:
            centre, radius = self._sides()
            # Times nothing: a centre that overflowed makes the radius NaN, and so both ends.
            return centre, torch.add(radius, centre, alpha=0)
        lower, upper = self._both()
        centre = (lower + upper).mul_(0.5)
        unit = rounding.roundoff(self.dtype)
        radius = (upper - lower).mul_(0.5 * (1 + 8 * unit))
        radius.add_(centre.abs(), alpha=4 * unit).add_(rounding.tiny(self.dtype))
        return centre, radius

    def parts(self, share: float) -> tuple[Tensor, Tensor]:
        """Return `c` and `r` such that `|x - c| + share |c| <= r (1 + 16 u)`, underflow aside.

        An underflow costs less than four times the smallest normal number. The radius may be
        overwritten.

        Args:
            share: At least 16 u.
        """
        if self.is_centred:
            centre, radius = self._sides()
            return centre, torch.add(radius, centre.abs(), alpha=share)
        lower, upper = self._both()
        centre = torch.lerp(lower, upper, 0.5)  # off by u times itself and the radius
        unit = rounding.roundoff(centre.dtype)
        if self.positive:
            # As |c| is c, one subtraction makes the radius and its share.
            return centre, torch.sub(upper, centre, alpha=1 - (share + 8 * unit))
        radius = torch.sub(upper, centre)
        return centre, radius.add_(centre.abs(), alpha=share + 8 * unit)

    def centred(self) -> tuple[Tensor, Tensor, int]:
        """Return centre, radius and room as in `around`; they are not to be overwritten."""
        if self.is_centred:
            return *self._sides(), self.room
        if self._centred is None:
            unit = rounding.roundoff(self.dtype)
            centre, radius = self.parts((4 * ROOM) * unit)
            if not self.positive:
                radius.mul_(1 + (2 * ROOM) * unit)
            self._centred = centre, radius.add_(8 * rounding.tiny(self.dtype))
        return *self._centred, ROOM


class _Rectified(Interval):
    """The larger of a value and zero: its ends are computed when asked for, and not kept.

    What it is taken of is kept anyway, for relaxations, and computing them takes next to nothing.

    Args:
        argument: The value, which has ends.
    """

    __slots__ = ("_argument",)

    def __init__(self, argument: Interval) -> None:
        self._argument = argument
        self._ends = self._centred = self._magnitude = self.ball = None
        self._largest = argument._largest
        self.positive = True
        self.room = 0

    @property
    def lower(self) -> Tensor:
        """Lower bounds, `(N, ...)`."""
        return functional.relu(self._argument.lower)

    @property
    def upper(self) -> Tensor:
        """Upper bounds, `(N, ...)`."""
        return functional.relu(self._argument.upper)

    def _both(self) -> tuple[Tensor, Tensor]:
        return self.lower, self.upper

    def fresh_ends(self) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds that may be overwritten."""
        return self._both()

    @property
    def is_centred(self) -> bool:
        """Whether only a centre and a radius are known so far."""
        return False

    @property
    def known(self) -> Tensor:
        """A tensor of the value's shape, dtype and device."""
        return self._argument.known

    def settle(self) -> None:
        """Keep nothing: the argument keeps its ends."""
        self._centred = self._magnitude = None

    def rearranged(self, change: Callable[[Tensor], Tensor]) -> Interval:
        """Return the value after its elements were only moved, or zeros put beside them."""
        moved = Interval(change(self._argument.lower), change(self._argument.upper))
        moved._largest = self._largest
        return _Rectified(moved)


def both(value: Interval, other: Interval) -> Interval:
    """Return the tighter of two bounds of a value, end by end; NaN stays."""
    return Interval(
        torch.maximum(value.lower, other.lower), torch.minimum(value.upper, other.upper), value.ball
    )


def _coarser(ball: Ball, dtype: torch.dtype) -> Ball:
    """Return a ball in a coarser dtype that holds it; what its centre rounds widens its radius."""
    centre, scale = ball.centre.to(dtype), ball.scale.to(dtype)
    radius = rounding.up(ball.radius.to(dtype), 1)
    error = rounding.up(centre.abs(), 1) - centre.abs()
    moved = torch.where(error > 0, error / scale, 0 * error)
    growth = 1 + rounding.gamma(centre[0].numel(), dtype)
    radius = (radius + lengths(moved, ball.norm)) * growth
    return Ball(centre, rounding.up(scale, 1), radius, ball.norm)


def per_sample(values: Tensor, like: Tensor | Interval) -> Tensor:
    """Return `(N,)` values shaped to go with `(N, ...)`."""
    return values.view(-1, *[1] * (len(like.shape) - 1))


def lengths(values: Tensor, norm: BallNorm) -> Tensor:
    """Return the norm of each sample, `(N,)`."""
    flat = values.flatten(1) if values.ndim > 1 else values[:, None]  # one number for each sample
    norms: Tensor = torch.linalg.vector_norm(flat, ord=ORDERS[norm], dim=1)
    return norms
