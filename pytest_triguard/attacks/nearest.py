"""What a search for the nearest adversarial example is; the ball says what is near enough."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pytest_triguard.attacks.goals import reached
from pytest_triguard.attacks.searching import Searching, Stepping
from pytest_triguard.engine.geometry import Norm, length
from pytest_triguard.engine.rows import Rows


class InNorm(Stepping, Protocol):
    """An attack that measures distances."""

    @property
    def norm(self) -> Norm:
        """Norm of the ball."""


AnyInNorm = TypeVar("AnyInNorm", bound=InNorm)


class Nearest(Searching[AnyInNorm]):
    """A search that keeps the nearest point at which the goal is reached, if it is in the ball.

    What it found is the sample itself where there is none.
    """

    def distance(self, rows: Rows) -> Tensor:
        """Return how far the points are from their samples, `(n,)`."""
        return length(rows["points"] - rows["clean"], self.attack.norm)

    def won(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return whether the goal is reached inside the ball, `(n,)` bool."""
        return reached(logits, rows) & (self.distance(rows) <= rows["eps"])

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return the distance, negative, where the search has won, `(n,)`."""
        return torch.where(self.won(logits, rows), -self.distance(rows), -torch.inf)
