"""Points of a ball that attacks start from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from pytest_triguard.classifier import PerChannel
from pytest_triguard.engine import draws
from pytest_triguard.engine.geometry import NORMS, Norm, random_offset
from pytest_triguard.strategies.balls import Ball
from pytest_triguard.strategies.strokes import LEVELS, capped
from pytest_triguard.validation import one_of

PLACES = ("sample", "corner", "stripes", "uniform")
"""Where a start is, the simplest first."""

_SEEDS = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where an attack starts.

    Attributes:
        place: `"sample"`, the sample itself; `"corner"`, all elements moved alike with random
            signs; `"stripes"`, one random sign for each column and channel; `"uniform"`, drawn
            uniformly from the ball.
        seed: Seed of what is random.
        strength: Share of the way there, in (0, 1].
    """

    place: str
    seed: int = 0
    strength: float = 1.0


def adversarial_starts(
    inputs: Tensor,
    eps: float | Tensor,
    norm: str = "linf",
    *,
    bounds: tuple[PerChannel, PerChannel] = (0.0, 1.0),
) -> st.SearchStrategy[Tensor]:
    """Return a strategy for points of the balls around inputs that attacks start from.

    Use it to test a search of your own: that it stays in the ball, or finds as much, from
    wherever it starts. A draw is the sample itself, a corner of the ball (of the L2 ball: a point
    of the sphere in the direction of a corner), the stripes that the Square attack begins with
    (Andriushchenko et al. 2020), or a point drawn uniformly. The uniform start of seed s at full
    strength is that of `attacks.get("pgd", seed=s)` for the same samples without ids, so that a
    failure can be followed there.

    It shrinks towards the samples themselves: to simpler places, smaller seeds and less strength.
    A failing test prints the place, the seed and the strength. Every draw is inside although it
    is rounded, as with `perturbations`, whose draws find more where nothing is searched.

    Args:
        inputs: `(N, C, H, W)`, or one sample `(C, H, W)`; floating and inside the bounds. It is
            copied, and left as it is.
        eps: Radius in the units of the inputs, one number or `(N,)`, one per sample.
        norm: `"linf"` or `"l2"`.
        bounds: Lower and upper end of the valid range, each one number or one per channel.

    Returns:
        A strategy for tensors of the shape and dtype and on the device of the inputs, in memory
        of their own.

    Raises:
        InputTypeError: If an argument has the wrong type.
        InputError: If a value is refused, or the arguments do not go together.

    Example:
        >>> import torch
        >>> from hypothesis import given
        >>> @given(adversarial_starts(torch.full((2, 1, 4, 4), 0.5), eps=0.1))
        ... def test_it_starts_in_the_ball(start):
        ...     assert (start - 0.5).abs().max() <= 0.1
        >>> test_it_starts_in_the_ball()
    """
    one_of("norm", norm, NORMS)
    ball = Ball.around(inputs, eps, norm, bounds)
    return _starts().map(_Placed(ball, next(each for each in NORMS if each == norm)))


@st.composite
def _starts(draw: st.DrawFn) -> Start:
    place = draw(st.sampled_from(PLACES))
    if place == "sample":
        return Start(place=place)
    seed = draw(st.integers(0, _SEEDS - 1))
    strength = 1 + capped(draw, LEVELS - 1, after=7 * LEVELS)
    return Start(place=place, seed=seed, strength=strength / LEVELS)


@dataclass(frozen=True, eq=False)
class _Placed:
    """Turns a start into the points it means."""

    ball: Ball
    norm: Norm

    def __repr__(self) -> str:
        return repr(self.ball)

    def __call__(self, start: Start) -> Tensor:
        with torch.device("cpu"):
            return self.ball.at(self._offset(start))

    def _offset(self, start: Start) -> Tensor:
        clean, radii = self.ball.clean, self.ball.eps
        if start.place == "sample":
            return torch.zeros(clean.shape, dtype=torch.float64)
        keys = draws.row_keys(
            torch.tensor([draws.id_key(place) for place in range(len(clean))]),
            seed=start.seed,
            method="pgd/start",
            restart=torch.zeros(len(clean), dtype=torch.int64),
        )
        if start.place == "uniform":
            drawn = random_offset(keys, clean, radii.to(clean.dtype), self.norm)
            return drawn.double() * start.strength
        _, channels, height, width = clean.shape
        rows = height if start.place == "corner" else 1
        noise = draws.uniform(keys, (channels, rows, width), dtype=torch.float64, low=-1.0)
        signs = (1.0 - 2.0 * (noise < 0).double()).expand(clean.shape)
        return self.ball.scaled(signs, start.strength)
