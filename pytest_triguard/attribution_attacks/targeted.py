"""Draws the map into a region."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.attribution_attacks.base import AttributionAttack
from pytest_triguard.attribution_attacks.search import Aim, share_of, shares
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.topk_intersection import check_k, highest, top_count
from pytest_triguard.validation import describe

LEAST = "least"


@dataclass(frozen=True, kw_only=True)
class Targeted(AttributionAttack):
    """Draws attribution into a region of the image.

    Ascends the sum of the shares inside the region. Its measure is the share of all attribution
    that lies there.

    Args:
        region: `(H, W)` bool for all samples or `(N, H, W)`, one each; or `"least"` for the `k`
            pixels of each sample that have least attribution, the hardest region there is.
        k: Size of the region `"least"`: a whole number counts pixels, a fraction in (0, 1] is a
            share of the map, rounded up.

    References:
        Ghorbani et al. 2019, "Interpretation of Neural Networks Is Fragile", arXiv:1710.10547,
        section 3, targeted perturbations.
    """

    name: ClassVar[str] = "targeted"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES} with saliency")
    larger_is_worse: ClassVar[bool] = True

    region: str | Tensor = LEAST
    k: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k)
        check_region(self.region)

    def aim(self, maps: Tensor, batch: Batch) -> Aim:
        """Return the region of each sample.

        Raises:
            InputError: If `k` is larger than the map, or the region does not go with the samples.
        """
        if isinstance(self.region, Tensor):
            return {"region": _given(self.region, maps, batch)}
        pixels = shares(maps).flatten(1)
        least = highest(-pixels, top_count(self.k, pixels.shape[1]))
        return {"region": least.view_as(maps[:, 0])}

    def objective(self, shares: Tensor, aim: Aim) -> Tensor:
        """Return the sum of the shares inside the region."""
        return share_of(shares, aim["region"])

    @property
    def measured(self) -> str:
        """What the attack's own measure is, in words."""
        return "share of the attribution inside the region"

    def own_measure(self, maps: Tensor, aim: Aim) -> Tensor:
        """Return the share inside the region."""
        found = shares(maps)
        inside = (found * aim["region"]).mean((1, 2))
        return inside.masked_fill(~(found.amax((1, 2)) > 0), math.nan)


def check_region(region: Any) -> None:
    """Refuse what is neither `"least"` nor a bool tensor of a region.

    Raises:
        InputTypeError: If it is of another type.
        InputError: If it has another shape, or no pixel.
    """
    if isinstance(region, str) and region == LEAST:
        return
    expected = f"region must be a bool tensor (H, W) or (N, H, W), or {LEAST!r}"
    if not isinstance(region, Tensor) or region.dtype != torch.bool:
        raise InputTypeError(f"{expected}, but {describe(region)} came")
    if region.ndim not in (2, 3) or not bool(region.flatten(-2).any(-1).all()):
        raise InputError(f"{expected}, with at least one pixel, but {describe(region)} came")


def _given(region: Tensor, maps: Tensor, batch: Batch) -> Tensor:
    if region.shape[-2:] != maps.shape[-2:]:
        raise InputError(
            f"region must have {maps.shape[-2]} x {maps.shape[-1]} pixels like the maps, but "
            f"{describe(region)} came"
        )
    if region.ndim == 2:
        return region.to(maps.device).expand(len(maps), -1, -1)
    if max(batch.positions) >= len(region):
        raise InputError(f"region must be one per sample, but only {len(region)} came")
    return region[torch.tensor(batch.positions, device=region.device)].to(maps.device)
