"""Integrated gradients from references that are drawn anew for every sample."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attributions.lines import AlongLines, Lines
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.validation import whole


@dataclass(frozen=True, kw_only=True)
class DrawnReferences(AlongLines):
    """The mean over drawn references of the displacement times the mean gradient on the line.

    The points lie at equal distances from the reference to the sample, both included; a single
    one is the sample itself.

    Args:
        references: Number of references of each sample.
        points: Number of points on the line from each.
    """

    power: ClassVar[int] = 1

    references: int = 20
    points: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("references", self.references, low=1)
        whole("points", self.points, low=1)

    @property
    def passes_per_sample(self) -> int:
        """One per point and reference."""
        return self.references * self.points

    @abstractmethod
    def drawn(self, copies: Copies, low: Tensor, high: Tensor) -> Tensor:
        """Return the references of some copies, inside the range."""

    def lines(self, model: Model, batch: Batch) -> Lines:
        """Return the lines from the drawn references."""
        low, high = model.bounds(batch.inputs.dtype)
        last = self.points - 1
        places = [place / last for place in range(self.points)] if last else [1.0]
        return Lines(
            self.references,
            places,
            [1 / self.points] * self.points,
            lambda copies: self.drawn(copies, low, high),
            power=self.power,
        )
