"""Whether the most important pixel lies where it should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.facts import Facts
from pytest_triguard.metrics.base import Metric, check_beside, check_maps
from pytest_triguard.metrics.trigger_recall import check_mask
from pytest_triguard.validation import whole


@dataclass(frozen=True, kw_only=True)
class PointingGame(Metric):
    """1 where the pixel of highest absolute attribution lies in the mask, else 0.

    Of equal pixels the first in reading order is the highest. A zero map points nowhere and is
    undefined, and so is an empty mask. A random pixel hits with a chance of `|M| / (H W)`.

    Args:
        tolerance: Pixels by which the mask is widened, in rows and columns.

    References:
        Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop", arXiv:1608.00507,
        section 4.1.
    """

    name: ClassVar[str] = "pointing_game"
    facts: ClassVar[Facts] = Facts(cost="none", sign="higher is better", checked="Quantus")

    tolerance: int = 0

    def __post_init__(self) -> None:
        whole("tolerance", self.tolerance)

    @property
    def title(self) -> str:
        """What reports call the number."""
        return "pointing game"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "zero map or empty mask"

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(0, 1)`."""
        return 0.0, 1.0

    def __call__(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Return whether each map hits.

        Args:
            maps: `(N, C, H, W)` floating.
            mask: `(N, 1, H, W)` bool on the device of the maps, True where a hit counts.

        Returns:
            `(N,)` in the dtype and on the device of the maps, NaN where undefined.

        Raises:
            InputTypeError: If `maps` is no floating or `mask` no bool tensor.
            InputError: If their shapes or devices do not agree.
        """
        maps = check_maps("maps", maps)
        rows, _, height, width = maps.shape
        check_beside("mask", mask, (rows, 1, height, width), reference="maps", like=maps)
        wanted = check_mask(mask)
        if self.tolerance:
            reach = 2 * self.tolerance + 1
            wanted = functional.max_pool2d(wanted.float(), reach, 1, self.tolerance) > 0
        pixels = at_least_single(maps).abs().sum(1).flatten(1)
        highest = pixels.amax(1, keepdim=True)
        first = (pixels == highest).to(torch.int8).argmax(1, keepdim=True)
        hit = wanted.flatten(1).gather(1, first).squeeze(1).to(maps.dtype)
        defined = (highest.squeeze(1) > 0) & mask.flatten(1).any(1)
        return hit.masked_fill(~defined, math.nan)
