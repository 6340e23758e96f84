"""How much of a backdoor's trigger an attribution finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import Facts
from pytest_triguard.metrics.base import Metric, check_beside, check_maps
from pytest_triguard.validation import describe


@dataclass(frozen=True, kw_only=True)
class TriggerRecall(Metric):
    """Share of a trigger's pixels among as many pixels of highest attribution.

    With `a_i` the absolute attribution of pixel `i` summed over channels and `M` the pixels of the
    trigger, it is `|top_|M|(a) ∩ M| / |M|`. Of equal pixels the first in reading order ranks
    higher. A zero map ranks nothing and is undefined, and so is an empty mask.

    A random ranking reaches `chance(mask)` on average, so a recall means little without it: a mask
    that covers the whole image gives a recall of 1, and a chance of 1, whatever the map.

    For the mask of an object it is the relevance rank accuracy.

    References:
        Arras et al. 2022, "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural
        Network Explanations", arXiv:2003.07258 (relevance rank accuracy).
    """

    name: ClassVar[str] = "trigger_recall"
    facts: ClassVar[Facts] = Facts(cost="none", sign="higher is better", checked="Quantus")

    @property
    def title(self) -> str:
        """What reports call the number."""
        return "trigger recall"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "zero map or empty mask"

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(0, 1)`."""
        return 0.0, 1.0

    def __call__(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Return the recall of each map.

        Args:
            maps: `(N, C, H, W)` floating.
            mask: `(N, 1, H, W)` bool on the device of the maps, True on the trigger's pixels.

        Returns:
            `(N,)` in the dtype and on the device of the maps, NaN where undefined.

        Raises:
            InputTypeError: If `maps` is no floating or `mask` no bool tensor.
            InputError: If their shapes or devices do not agree.
        """
        maps = check_maps("maps", maps)
        rows, _, height, width = maps.shape
        check_beside("mask", mask, (rows, 1, height, width), reference="maps", like=maps)
        pixels = at_least_single(maps).abs().sum(1).flatten(1)
        wanted = check_mask(mask).flatten(1)
        size = wanted.sum(1)
        order = pixels.argsort(dim=1, descending=True, stable=True)
        ranks = torch.arange(height * width, device=maps.device)
        found = wanted.gather(1, order) & (ranks < size.unsqueeze(1))
        # An empty mask is 0 / 0, which is NaN by itself.
        recall = found.sum(1).to(pixels.dtype) / size
        return recall.masked_fill(~(pixels.sum(1) > 0), math.nan).to(maps.dtype)

    def chance(self, mask: Tensor) -> Tensor:
        """Return the recall that a random ranking reaches on average, `|M| / (H W)`.

        Args:
            mask: `(N, 1, H, W)` bool.

        Returns:
            `(N,)` float32 on the device of the mask.

        Raises:
            InputTypeError: If `mask` is no bool tensor.
            InputError: If its shape is another.
        """
        return check_mask(mask).flatten(1).to(torch.float32).mean(1)


def check_mask(mask: Any) -> Tensor:
    """Return `mask` if it is a bool tensor `(N, 1, H, W)`.

    Raises:
        InputTypeError: If it is no bool tensor.
        InputError: If its shape is another.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise InputTypeError(f"mask must be a bool tensor (N, 1, H, W), but {describe(mask)} came")
    if mask.ndim != 4 or mask.shape[1] != 1 or not all(mask.shape[1:]):
        raise InputError(f"mask must have shape (N, 1, H, W), but {describe(mask)} came")
    return mask
