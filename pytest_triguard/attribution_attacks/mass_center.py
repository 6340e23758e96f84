"""Moves the centre of the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attribution_attacks.base import AttributionAttack
from pytest_triguard.attribution_attacks.search import Aim, shares
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.mass_center import MassCenter, first_moments


@dataclass(frozen=True, kw_only=True)
class MassCenterAttack(AttributionAttack):
    """Carries the centre of mass of the map away from where it was.

    Ascends the squared distance of the centre of the shares from that of the sample's own map, in
    pixels. At the sample itself the distance has no slope, so that the start is drawn at random.
    Its measure is the distance in pixels.

    Args:
        random_start: Whether a start is drawn uniformly from the ball or is the sample itself.

    References:
        Ghorbani et al. 2019, "Interpretation of Neural Networks Is Fragile", arXiv:1710.10547,
        section 3, algorithm 1.
    """

    name: ClassVar[str] = "mass_center"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES} with saliency")
    larger_is_worse: ClassVar[bool] = True

    random_start: bool = True

    def aim(self, maps: Tensor, batch: Batch) -> Aim:
        """Return the centre of each map."""
        return {"centre": _centres(shares(maps))}

    def objective(self, shares: Tensor, aim: Aim) -> Tensor:
        """Return the squared distance of the centres."""
        return (_centres(shares) - aim["centre"]).square().sum(1)

    @property
    def measured(self) -> str:
        """What the attack's own measure is, in words."""
        return "distance of mass centres in pixels"

    def own_measure(self, maps: Tensor, aim: Aim) -> Tensor:
        """Return the distance of the centres in pixels."""
        return MassCenter()(aim["maps"], maps)


def _centres(shares: Tensor) -> Tensor:
    """Return the centres of shares of mean 1, `(n, 2)` in pixels; of a zero map the first pixel."""
    return first_moments(shares) / shares[0].numel()
