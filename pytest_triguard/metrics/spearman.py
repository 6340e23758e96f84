"""Whether two maps rank the pixels alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.facts import Facts
from pytest_triguard.metrics.pair import ReducedPair


@dataclass(frozen=True, kw_only=True)
class Spearman(ReducedPair):
    """Spearman's rank correlation of two maps; a similarity.

    The correlation of the ranks of the pixels, where equal pixels share the mean of their ranks:
    1 where both rank the pixels alike, -1 where one ranks them in the opposite order. A constant
    map, and with it a zero map, ranks nothing and is undefined.

    References:
        Spearman 1904, "The Proof and Measurement of Association between Two Things".
        Ghorbani et al. 2019, "Interpretation of Neural Networks Is Fragile", arXiv:1710.10547,
        section 3, as a measure of explanations under attack.
    """

    name: ClassVar[str] = "spearman"
    facts: ClassVar[Facts] = Facts(cost="none", sign="higher is more alike", checked="scipy")
    similarity: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What reports call the number."""
        return "Spearman rank correlation"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "constant or zero map"

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(-1, 1)`."""
        return -1.0, 1.0

    def compare(self, maps: Tensor, others: Tensor) -> Tensor:
        """Return the correlation of each pair, `(N,)`."""
        first, second = (_unit_ranks(self.reduced(each).flatten(1)) for each in (maps, others))
        # Half the squared distance of unit vectors is 1 - cos: of equal ranks exactly 0, where the
        # product of float32 vectors with themselves is 0.9999999, below any threshold of 1.
        alike = 1 - (first - second).square().sum(1) / 2
        opposite = (first + second).square().sum(1) / 2 - 1
        return torch.where(alike >= 0, alike, opposite).clamp(-1.0, 1.0)


def _unit_ranks(values: Tensor) -> Tensor:
    """Return centred ranks of length 1, `(N, M)`; NaN in rows that are constant or hold NaN."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    # Twice the distance from the middle rank: whole numbers, and of a constant row exactly 0.
    centred = (below + up_to - values.shape[1]).to(values.dtype)
    centred = centred / values.shape[1]
    length: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / length + 0 * values.sum(1, keepdim=True)
