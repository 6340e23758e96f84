"""Integrated gradients from noisy copies of the sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attributions.drawn_references import DrawnReferences
from pytest_triguard.attributions.lines import Lines
from pytest_triguard.attributions.smoothgrad import noise_scale, noisy
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import Facts
from pytest_triguard.validation import number


@dataclass(frozen=True, kw_only=True)
class IGSG(DrawnReferences):
    """Integrated gradients, averaged over noisy copies of the sample, clipped to the valid range.

    The displacements are as small as the noise, so the maps are too.

    Args:
        noise_level: Standard deviation of the noise, as a fraction of each sample's own range
            (largest minus smallest value).

    References:
        Yang et al. 2023, "Re-calibrating Feature Attributions for Model Interpretation", ICLR
        2023, section 5.
    """

    name: ClassVar[str] = "ig_sg"
    facts: ClassVar[Facts] = Facts(sign="signed", axioms=("complete on average", "linear"))

    noise_level: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        number("noise_level", self.noise_level, low=0)

    def lines(self, model: Model, batch: Batch) -> Lines:
        """Return the lines from the noisy copies."""
        spread = noise_scale(batch.inputs, self.noise_level)
        return replace(super().lines(model, batch), context=(spread,))

    def drawn(self, copies: Copies, low: Tensor, high: Tensor) -> Tensor:
        """Return noisy copies of the samples, `(m, C, H, W)`."""
        points = noisy(copies, copies.context[0], seed=self.drawn_seed, method="ig_sg")
        return points.clamp_min_(low).clamp_max_(high)


@dataclass(frozen=True, kw_only=True)
class IGSQ(IGSG):
    """IG-SG with squared gradients, from the same references.

    References:
        Yang et al. 2023, "Re-calibrating Feature Attributions for Model Interpretation", ICLR
        2023, section 5.
    """

    name: ClassVar[str] = "ig_sq"
    facts: ClassVar[Facts] = Facts(sign="signed")
    power: ClassVar[int] = 2
