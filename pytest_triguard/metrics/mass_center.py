"""How far the centre of a map has moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.facts import Facts
from pytest_triguard.metrics.pair import Channels, PairMetric, reduced
from pytest_triguard.validation import one_of


@dataclass(frozen=True, kw_only=True)
class MassCenter(PairMetric):
    """Distance of the centres of mass of two maps in pixels; a distance.

    With `a_i` the absolute attribution of pixel `i`, reduced over channels, the centre is the mean
    of `(row_i, column_i)` weighted by `a_i`; the number is the Euclidean distance of the two
    centres. Negative mass has no centre, so the absolute value is always taken. A zero map is
    undefined.

    Args:
        channels: `"sum"` or `"max"` over channels.

    References:
        Ghorbani et al. 2019, "Interpretation of Neural Networks Is Fragile", arXiv:1710.10547,
        section 3.
    """

    name: ClassVar[str] = "mass_center"
    facts: ClassVar[Facts] = Facts(cost="none", sign="lower is more alike", checked="scipy")
    similarity: ClassVar[bool] = False

    channels: Channels = "sum"

    def __post_init__(self) -> None:
        one_of("channels", self.channels, ("sum", "max"))

    @property
    def title(self) -> str:
        """What reports call the number."""
        return "distance of mass centres in pixels"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "zero map"

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return 0 and the diagonal of the map, from pixel to pixel."""
        return 0.0, math.hypot(shape[-2] - 1, shape[-1] - 1)

    def compare(self, maps: Tensor, others: Tensor) -> Tensor:
        """Return the distance of each pair in pixels, `(N,)`."""
        first, second = (
            mass_centers(reduced(each, self.channels, absolute=True).squeeze(1))
            for each in (maps, others)
        )
        distance: Tensor = torch.linalg.vector_norm(first - second, dim=1)
        return distance


def mass_centers(mass: Tensor) -> Tensor:
    """Return the centre of mass of each map in pixels from the first pixel.

    Args:
        mass: `(N, H, W)`, never negative, not all zero.

    Returns:
        `(N, 2)` rows and columns; differentiable.
    """
    return first_moments(mass) / mass.sum((1, 2)).unsqueeze(1)


def first_moments(mass: Tensor) -> Tensor:
    """Return the sums of rows and of columns weighted by mass `(N, H, W)`; `(N, 2)`."""
    rows, columns = (
        torch.arange(size, dtype=mass.dtype, device=mass.device) for size in mass.shape[1:]
    )
    return torch.stack([(mass.sum(2) * rows).sum(1), (mass.sum(1) * columns).sum(1)], 1)
