"""Gradients accumulated over the steps of a search."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_mean(gradient: Tensor) -> Tensor:
    """Return each sample's gradient divided by the mean of its absolute values, zero where zero.

    Infinite elements are alike and outweigh all others, which keep at most their sign.
    """
    limits = torch.finfo(gradient.dtype)
    tiny = limits.tiny
    # In two steps, as the mean of huge or tiny values is out of range.
    largest = gradient.abs().amax((1, 2, 3), keepdim=True).clamp(tiny, limits.max)
    # The sign of NaN is 0: with it, a sample would stand still and pass for robust.
    scaled = (gradient / largest).clamp_(-1, 1)
    return scaled / scaled.abs().mean((1, 2, 3), keepdim=True).clamp_min(tiny)


def accumulated(before: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """Return `momentum * before + gradient / <|gradient|>`, sample by sample.

    Args:
        before: `(n, C, H, W)` what was accumulated so far; zero at the start.
        gradient: `(n, C, H, W)` the gradient of this step.
        momentum: Decay of what was accumulated.
    """
    return unit_mean(gradient).add_(before, alpha=momentum)
