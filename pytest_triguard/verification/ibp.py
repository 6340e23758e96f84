"""Interval bound propagation."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Ball, Interval, per_sample
from pytest_triguard.verification.methods import Effort, Margins
from pytest_triguard.verification.network import Head, Network
from pytest_triguard.verification.specification import Rows

_BLOCK = 2**22
"""Elements of merged weights that are held at a time."""


@dataclass(frozen=True)
class IBP:
    """Boxes through the graph, the last product merged with what is to be proven.

    Costs about two forward passes: every product is taken of centres and, with the magnitudes of
    the weights, of radii. The least value of a row c on the logits `W z + b` is bounded jointly,
    by `c (W m + b) - |c W| r` for z within r of m; where the last operator is no product with
    weights, by the difference of the bounds.

    References:
        Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation for Training
        Verifiably Robust Models", arXiv:1810.12715, sections 2 and 3.
    """

    name: ClassVar[str] = "ibp"

    def samples(self, network: Network) -> int:
        """Return how many samples may be bounded at once: as many as may be predicted."""
        del network
        return sys.maxsize

    def logits(self, network: Network, region: Interval, effort: Effort) -> Interval:
        """Return bounds of the logits over a set of inputs, `(n, K)`."""
        del effort
        return network.enclose(region).logits

    def margins(self, network: Network, region: Interval, rows: Rows, effort: Effort) -> Margins:
        """Return a lower bound of the least row over a set of inputs, and bounds of the logits."""
        del effort
        with network.untracked():
            found = network.enclose(region.alike())
            margin = interval_margin(found.logits, found.head, rows)
            lower, upper = found.logits.lower, found.logits.upper
        logits = Interval(lower.clone(), upper.clone())
        return Margins(margin.clone(), logits, forward=2 * len(margin))


def interval_margin(logits: Interval, head: Head | None, rows: Rows) -> Tensor:
    """Return a lower bound of the least row, `(n,)`, from intervals.

    Args:
        logits: Bounds of the logits, `(n, K)`.
        head: The last product, with which rows are merged, or None.
        rows: What is to be proven.
    """
    return _separate(logits, rows) if head is None else _joint(head, rows)


def _separate(logits: Interval, rows: Rows) -> Tensor:
    """Bound the rows by the bounds of the logits."""
    gamma = rounding.gamma(logits.shape[1], logits.dtype)
    magnitude = rows.magnitudes_times(logits.magnitude)
    error = magnitude.mul_(2 * gamma).add_(rounding.tiny(logits.dtype))
    return rows.least(rows.lowest(logits.lower, logits.upper) - error)


def _joint(head: Head, rows: Rows) -> Tensor:
    """Bound the rows merged with the last product.

    The error is gamma times `|c| (|W| |z| + |b|)`, which pays for merging, for both products, and
    for applying the row. What underflows in a logit counts as often as a row says, and what does in
    merging as often as the inputs.
    """
    classes, features = head.weight.shape
    gamma = rounding.gamma(2 * classes + features, head.weight.dtype)
    centre, radius = head.inputs.centre_and_radius()
    reach = centre.abs() + radius
    floor = reach.sum(1, keepdim=True).add_(features + 1)
    floor.mul_(2 * classes * rounding.tiny(head.weight.dtype))
    magnitude = _magnitude(head, reach).mul_(2 * gamma).add_(floor)
    error = rows.magnitudes_times(magnitude).add_(floor)
    spread = _spread(head.weight, rows, radius).mul_(1 + 2 * gamma)
    bound = rows.times(_product(head, centre)) - spread - error
    if head.inputs.ball is not None:
        ball = head.inputs.ball
        spread = _dual(head.weight, rows, ball).mul_(1 + 2 * gamma)
        bound = torch.maximum(bound, rows.times(_product(head, ball.centre)) - spread - error)
    return rows.least(bound)


def _product(head: Head, values: Tensor) -> Tensor:
    return torch.nn.functional.linear(values, head.weight, head.bias)


def _magnitude(head: Head, values: Tensor) -> Tensor:
    bias = None if head.bias is None else head.bias.abs()
    return torch.nn.functional.linear(values, head.weight.abs(), bias)


def _spread(weight: Tensor, rows: Rows, radius: Tensor) -> Tensor:
    """Return how far each row moves when each input moves by up to its radius, `(n, S)`."""
    parts = [
        (merged.abs() @ radius.unsqueeze(1).mT).squeeze(2)
        for merged in _merged(weight, rows, radius)
    ]
    return torch.cat(parts, dim=1)


def _dual(weight: Tensor, rows: Rows, ball: Ball) -> Tensor:
    """Return how far each row moves over a ball: its dual norm times the radius, `(n, S)`."""
    order = torch.inf if ball.norm == "l1" else 2
    floor = math.sqrt(weight.shape[1] * rounding.tiny(weight.dtype))  # squares may underflow
    parts = [
        torch.linalg.vector_norm(merged * ball.scale.unsqueeze(1), ord=order, dim=2)
        for merged in _merged(weight, rows, ball.centre)
    ]
    dual = torch.cat(parts, dim=1) + floor
    return dual * per_sample(ball.radius, dual)


def _merged(weight: Tensor, rows: Rows, like: Tensor) -> Iterator[Tensor]:
    """Hand out the rows times the weights, a few rows at a time."""
    step = max(1, _BLOCK // like.numel())
    for start in range(0, rows.count, step):
        yield rows.merged(weight, slice(start, start + step))
