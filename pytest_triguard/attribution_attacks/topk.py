"""Pushes the most important pixels down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attribution_attacks.base import AttributionAttack
from pytest_triguard.attribution_attacks.search import Aim, share_of, shares
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.topk_intersection import (
    TopKIntersection,
    check_k,
    highest,
    top_count,
)


@dataclass(frozen=True, kw_only=True)
class TopK(AttributionAttack):
    """Takes attribution away from the pixels that have most of it.

    Descends the sum of the shares of the `k` highest pixels of the sample's own map. Its measure
    is how many of them are still among the `k` highest.

    Args:
        k: Number of pixels: a whole number counts them, a fraction in (0, 1] is a share of the
            map, rounded up. With all of them there is nothing to move.

    References:
        Ghorbani et al. 2019, "Interpretation of Neural Networks Is Fragile", arXiv:1710.10547,
        section 3, algorithm 1.
    """

    name: ClassVar[str] = "topk"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES} with saliency")
    larger_is_worse: ClassVar[bool] = False

    k: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k)

    def aim(self, maps: Tensor, batch: Batch) -> Aim:
        """Return the highest pixels of each map.

        Raises:
            InputError: If `k` is larger than the map.
        """
        pixels = shares(maps).flatten(1)
        pushed = highest(pixels, top_count(self.k, pixels.shape[1]))
        # A zero map ranks nothing, and yet its stand-in may have something to push.
        return {"pushed": pushed, "top": TopKIntersection(k=self.k).top(maps)}

    def objective(self, shares: Tensor, aim: Aim) -> Tensor:
        """Return the negative sum of the shares of those pixels."""
        return -share_of(shares.flatten(1), aim["pushed"])

    @property
    def measured(self) -> str:
        """What the attack's own measure is, in words."""
        return "top-k intersection"

    def own_measure(self, maps: Tensor, aim: Aim) -> Tensor:
        """Return the top-k intersection."""
        return TopKIntersection(k=self.k).kept(aim["top"], maps)
