"""What an attack hands to the iteration; see `engine.iteration.Search`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from pytest_triguard.attacks.goals import reached
from pytest_triguard.engine.iteration import Stop
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.rows import Rows


class Stepping(Protocol):
    """The hyperparameters the iteration asks for."""

    @property
    def steps(self) -> int:
        """Steps per start."""

    @property
    def restarts(self) -> int:
        """Number of starts."""

    @property
    def stop(self) -> Stop:
        """Whether a row leaves at its first success or goes through all steps."""

    def radius(self, positions: list[int]) -> Tensor:
        """Return the radius of each sample's ball, `(n,)`, on the host."""


Method = TypeVar("Method", bound=Stepping)


@dataclass(frozen=True)
class Answers(Generic[Method]):
    """Answers the iteration with the hyperparameters of an attack.

    Args:
        attack: The attack.
    """

    attack: Method

    @property
    def steps(self) -> int:
        """Steps per start."""
        return self.attack.steps

    @property
    def restarts(self) -> int:
        """Number of starts."""
        return self.attack.restarts

    @property
    def stop(self) -> Stop:
        """Whether a row leaves at its first success or goes through all steps."""
        return self.attack.stop

    def radius(self, positions: list[int]) -> Tensor:
        """Return the radius of each sample's ball, `(n,)`, on the host."""
        return self.attack.radius(positions)

    def won(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return whether the goal is reached, `(n,)` bool."""
        return reached(logits, rows)


@dataclass(frozen=True)
class Searching(Answers[Method]):
    """Answers for a search that keeps its best point and no trajectory.

    Args:
        attack: The attack.
        model: The network.
    """

    model: Model

    @property
    def record(self) -> bool:
        """Whether the trajectory is kept."""
        return False

    @property
    def best(self) -> bool:
        """Whether the best point of a start is what it found."""
        return True

    def passes(self, steps: int) -> int:
        """Return the passes that a start and so many estimates take."""
        return steps

    def begin(self, model: Model, rows: Rows) -> None:
        """Start at the sample."""
        rows["points"] = rows["clean"].clone()
