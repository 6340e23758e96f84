"""The least value of linear rows over a set of inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval, lengths, per_sample
from pytest_triguard.verification.relaxations import dot, largest, magnitudes
from pytest_triguard.verification.windows import Windowed, whole


def least_over(region: Interval, rows: Tensor | Windowed) -> Tensor:
    """Return the least value of rows over a region, rounded down, `(N, S)`.

    Over a box it is `rows c - |rows| r`; over a ball `rows c` minus the radius times the dual norm;
    in the intersection of both, at least the larger of the two.

    Args:
        region: Box, and perhaps a ball.
        rows: `(N, S, *shape)`.
    """
    if isinstance(rows, Windowed):
        if region.ball is None:
            return _least_over_box(region, rows, replace(rows, rows=magnitudes(rows.rows, 3)))
        rows = whole(rows)
    sizes = magnitudes(rows, 2)
    least = _least_over_box(region, rows, sizes)
    if region.ball is None:
        return least
    gamma = rounding.gamma(region.shape[1:].numel(), rows.dtype)
    ball = region.ball
    scaled = sizes * ball.scale.unsqueeze(1)
    if ball.norm == "l1":
        dual = largest(scaled.flatten(2))
    else:
        dual = lengths(scaled.flatten(0, 1), "l2").view(rows.shape[:2])
    floor = scaled[0, 0].numel() * rounding.tiny(rows.dtype) ** 0.5  # squares may underflow
    dual = (dual + floor) * per_sample(ball.radius, dual) * (1 + 2 * gamma)
    error = dot(sizes, (2 * gamma * ball.centre.abs()).unsqueeze(1))
    return torch.maximum(least, dot(rows, ball.centre.unsqueeze(1)) - dual - error)


def _least_over_box(region: Interval, rows: Tensor | Windowed, sizes: Tensor | Windowed) -> Tensor:
    gamma = rounding.gamma(region.shape[1:].numel(), region.dtype)
    centre, radius = region.centre_and_radius()
    reach = radius * (1 + 2 * gamma) + 2 * gamma * centre.abs()
    if isinstance(rows, Windowed) and isinstance(sizes, Windowed):
        return rows.dot(centre) - sizes.dot(reach)
    return dot(whole(rows), centre.unsqueeze(1)) - dot(whole(sizes), reach.unsqueeze(1))
