"""Parts of a box: which of its inputs vary, how it is halved, and where it is best halved next."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.relaxations import first_largest

MOST = 16
"""Varying inputs up to which a box is halved. To halve all of them takes two to that power many
parts."""
FEW = 8
"""The same where splits of ReLUs would do. On networks of three layers of 24 ReLUs, halving
took a fifth of the parts with up to nine inputs, and three times as many with ten and twelve."""

_SHARE = 0.05
"""Share of the steepest slope that an input without slope counts as, so that in the end all of
them are halved."""


def varying(region: Interval) -> Tensor:
    """Return how many inputs of each sample vary, `(N,)`."""
    return _halves(region).sum(1)


def halved(region: Interval, places: Tensor, sides: Tensor) -> Interval:
    """Return what is left of boxes after halvings, one after the other.

    Both halves have the middle, rounded to a number between the ends, so that they cover the box.

    Args:
        region: `(D, C, H, W)` boxes.
        places: `(D, depth)` int64, the inputs that are halved, by their place in a sample.
        sides: `(D, depth)` 1 for the upper half, -1 for the lower, 0 for neither.
    """
    lower, upper = (each.flatten(1).clone() for each in (region.lower, region.upper))
    for step in range(places.shape[1]):
        place, side = places[:, step : step + 1], sides[:, step : step + 1]
        low, high = lower.gather(1, place), upper.gather(1, place)
        middle = (low + high) / 2
        lower.scatter_(1, place, torch.where(side > 0, middle, low))
        upper.scatter_(1, place, torch.where(side < 0, middle, high))
    return Interval(lower.view(region.shape), upper.view(region.shape))


def steepest(region: Interval, rows: Tensor) -> Tensor:
    """Return the input over which a row changes most, `(D,)`, by its place, or -1 for none.

    Args:
        region: `(D, C, H, W)` boxes.
        rows: `(D, C, H, W)` a row on the inputs of each.
    """
    slopes = rows.flatten(1).abs().nan_to_num(0.0)
    floor = _SHARE * slopes.amax(1, keepdim=True) + torch.finfo(slopes.dtype).tiny
    width = (region.upper - region.lower).flatten(1)
    change = (slopes + floor) / slopes.amax(1, keepdim=True).clamp_min(floor) * width
    halves = _halves(region)
    place = first_largest(torch.where(halves, change, -1.0))
    return torch.where(halves.any(1), place, -1)


def _halves(region: Interval) -> Tensor:
    """Return which inputs have a number between their ends, `(N, elements)` bool."""
    lower, upper = region.lower.flatten(1), region.upper.flatten(1)
    middle = (lower + upper) / 2
    return (middle > lower) & (middle < upper)
