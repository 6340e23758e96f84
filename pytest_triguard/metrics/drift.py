"""How far two attributions of one sample lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.facts import Facts
from pytest_triguard.metrics.base import scaled
from pytest_triguard.metrics.pair import PairMetric
from pytest_triguard.validation import one_of

DriftForm = Literal["allocation", "l2", "completeness_orthogonal"]
DRIFT_FORMS: tuple[DriftForm, ...] = ("allocation", "l2", "completeness_orthogonal")

_TITLES: dict[DriftForm, str] = {
    "allocation": "attribution drift",
    "l2": "L2 attribution drift",
    "completeness_orthogonal": "completeness-orthogonal attribution drift",
}


@dataclass(frozen=True, kw_only=True)
class Drift(PairMetric):
    """Distance between two maps `A` and `B` of each sample, such as those of two baselines.

    * `"allocation"`: `sum |A / |A|_1 - B / |B|_1|` over all elements, signed: 0 where both divide
      their attribution alike, 2 where they share none of it or have opposite signs. It does not
      change when a map is scaled, and is undefined if either is zero.
    * `"l2"`: `|A - B|_2`, in the units of the maps.
    * `"completeness_orthogonal"`: root mean square of `A - B` after its mean is taken out. Two
      complete attributions differ in their sum by what their baselines' outputs differ; this form
      leaves that difference out.

    Args:
        form: `"allocation"`, `"l2"` or `"completeness_orthogonal"`.
    """

    name: ClassVar[str] = "drift"
    facts: ClassVar[Facts] = Facts(cost="none", sign="lower is more alike")
    similarity: ClassVar[bool] = False

    form: DriftForm = "allocation"

    def __post_init__(self) -> None:
        one_of("form", self.form, DRIFT_FORMS)

    @property
    def title(self) -> str:
        """What reports call the number."""
        return _TITLES[self.form]

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined; empty for the forms that do not divide."""
        return "zero map" if self.form == "allocation" else ""

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(0, 2)`, or `(0, inf)` for the forms that keep the units of the maps."""
        return 0.0, 2.0 if self.form == "allocation" else math.inf

    def compare(self, maps: Tensor, others: Tensor) -> Tensor:
        """Return the distance of each pair, `(N,)`."""
        if self.form == "allocation":
            return _allocation(maps, others)
        difference = (at_least_single(maps) - at_least_single(others)).flatten(1)
        return _length(difference) if self.form == "l2" else _spread(difference)


def _allocation(maps: Tensor, others: Tensor) -> Tensor:
    return (_shares(maps) - _shares(others)).abs().sum(1).clamp_max(2.0)


def _shares(maps: Tensor) -> Tensor:
    elements = scaled(maps).flatten(1)
    return elements / elements.abs().sum(1, keepdim=True)


def _length(difference: Tensor) -> Tensor:
    # Scaled before it is squared: gradients of a saturated network are small enough to vanish.
    peak = difference.abs().amax(1, keepdim=True).clamp_min(torch.finfo(difference.dtype).tiny)
    return (difference / peak).square().sum(1).sqrt() * peak.squeeze(1)


def _spread(difference: Tensor) -> Tensor:
    centred = difference - difference.mean(1, keepdim=True)
    return _length(centred) / math.sqrt(difference.shape[1])
