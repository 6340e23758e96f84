"""The angle between two maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.facts import Facts
from pytest_triguard.metrics.pair import ReducedPair


@dataclass(frozen=True, kw_only=True)
class Cosine(ReducedPair):
    """Cosine distance of two maps, `1 - cos(A, B)`; a distance.

    0 where both point the same way, whatever their scale; 1 where they share nothing; 2 where one
    is the opposite of the other, which needs `absolute=False`. A zero map has no direction and is
    undefined.

    References:
        Wang et al. 2020, "Smoothed Geometry for Robust Attribution", arXiv:2006.06643, section 5.
    """

    name: ClassVar[str] = "cosine"
    facts: ClassVar[Facts] = Facts(cost="none", sign="lower is more alike", checked="scipy")
    similarity: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """What reports call the number."""
        return "cosine distance"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "zero map"

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(0, 1)`, or `(0, 2)` for maps that keep their signs."""
        return 0.0, 1.0 if self.absolute else 2.0

    def compare(self, maps: Tensor, others: Tensor) -> Tensor:
        """Return the distance of each pair, `(N,)`."""
        first, second = (_unit(self.reduced(each).flatten(1)) for each in (maps, others))
        # Half the squared distance of unit vectors is 1 - cos, and exact where that is small.
        distance = (first - second).square().sum(1) / 2
        return distance.clamp_max(1.0 if self.absolute else 2.0)


def _unit(values: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return values / length
