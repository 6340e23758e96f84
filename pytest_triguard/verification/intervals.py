"""What is known about a value inside the network: an interval per element, perhaps a ball too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds on a value, element by element.

    Attributes:
        lower: `(N, ...)` lower bounds.
        upper: `(N, ...)` upper bounds.
        ball: A ball that holds the value too, or None.
    """

    lower: Tensor
    upper: Tensor
    ball: Ball | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the value, samples first."""
        return self.lower.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the bounds are computed in."""
        return self.lower.dtype

    @property
    def middle(self) -> Tensor:
        """The middle of the bounds, rounded."""
        return (self.lower + self.upper) / 2

    def rearranged(self, change: Callable[[Tensor], Tensor]) -> Interval:
        """Return the value after its elements were only moved."""
        ball = self.ball
        if ball is not None:
            scale = ball.scale.expand_as(ball.centre)
            ball = Ball(change(ball.centre), change(scale), ball.radius, ball.norm)
        return Interval(change(self.lower), change(self.upper), ball)

    def monotone(self, function: Callable[[Tensor], Tensor]) -> Interval:
        """Return the value after a function that never falls and that is computed exactly."""
        return Interval(function(self.lower), function(self.upper))

    def widened(self, error: Tensor) -> Interval:
        """Return bounds that also hold what is off by up to an error, element by element."""
        error = error.to(self.dtype)
        ball = self.ball
        if ball is not None:
            moved = torch.where(ball.scale > 0, error / ball.scale, torch.inf * error)
            added = lengths(moved.expand_as(ball.centre), ball.norm)
            growth = 1 + rounding.gamma(ball.centre[0].numel(), self.dtype)
            ball = Ball(ball.centre, ball.scale, (ball.radius + added) * growth, ball.norm)
        lower, upper = self.lower - error, self.upper + error
        return Interval(rounding.down(lower, 1), rounding.up(upper, 1), ball)

    def centre_and_radius(self) -> tuple[Tensor, Tensor]:
        """Return `c` and `r` such that every value is within `r` of `c`, whatever was rounded."""
        centre = (self.lower + self.upper).mul_(0.5)
        unit = rounding.roundoff(self.dtype)
        radius = (self.upper - self.lower).mul_(0.5 * (1 + 8 * unit))
        radius.add_(centre.abs(), alpha=4 * unit).add_(rounding.tiny(self.dtype))
        return centre, radius


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return `(N,)` values shaped to go with `(N, ...)`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def lengths(values: Tensor, norm: BallNorm) -> Tensor:
    """Return the norm of each sample, `(N,)`."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), ord=ORDERS[norm], dim=1)
    return norms
