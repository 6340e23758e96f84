"""The nearest point of a hyperplane inside the valid range, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.engine.geometry import Norm


def offset_to_hyperplane(
    points: Tensor, normal: Tensor, change: Tensor, norm: Norm, bounds: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the shortest offset after which `normal . points` has changed by `change`.

    Every element moves by the same multiple of its sign (L-inf) or of its weight (L2) until it
    meets the range; the multiple is found by sorting where that happens (Croce and Hein 2020,
    "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack", section 2.2).

    Args:
        points: `(N, C, H, W)` inside the bounds.
        normal: `(N, C, H, W)` normal of each hyperplane.
        change: `(N,)` change that is wanted.
        norm: Norm that is to be short.
        bounds: Valid range.

    Returns:
        `(N, C, H, W)`; the farthest that the range allows, where it does not allow the change.
    """
    sign = torch.where(change >= 0, 1.0, -1.0).to(points.dtype)
    wanted = change.abs().unsqueeze(1)
    along = normal.flatten(1) * sign.unsqueeze(1)
    weight = along.abs()
    upper, lower = bounds[1] - points, points - bounds[0]
    room = torch.where(along.view_as(points) > 0, upper, lower).clamp_min(0).flatten(1)
    moves = weight > 0
    # An element gives `slope` times the multiple, until that is `limit`.
    if norm == "linf":
        slope, limit = weight, room
    else:
        slope = weight**2
        limit = torch.where(moves, room / torch.where(moves, weight, 1.0), torch.inf)
    multiple = _multiple(slope, torch.where(moves, limit, torch.inf), weight * room, wanted)
    if norm == "linf":
        moved = torch.minimum(multiple.expand_as(room), room) * moves
    else:
        moved = torch.minimum(multiple * weight, room)
    return (moved * along.sign()).view_as(points)


def _multiple(slope: Tensor, limit: Tensor, most: Tensor, wanted: Tensor) -> Tensor:
    """Return for which `t` the sum of `min(t * slope, most)` is `wanted`, `(N, 1)`.

    Args:
        slope: `(N, d)` what each element gives per unit.
        limit: `(N, d)` where each element gives no more; infinity where it gives nothing.
        most: `(N, d)` what each element gives there.
        wanted: `(N, 1)` at least 0.
    """
    limit, order = limit.sort(dim=1)
    spent = most.gather(1, order).cumsum(1)
    slope = slope.gather(1, order)
    left = slope.flip(1).cumsum(1).flip(1) - slope  # of the elements that go on beyond each limit
    finite = limit.isfinite()
    reached = torch.where(finite, spent + torch.where(finite, limit, 0.0) * left, torch.inf)
    place = torch.searchsorted(reached, wanted).clamp_max(limit.shape[1] - 1)
    before = torch.where(place > 0, spent.gather(1, (place - 1).clamp_min(0)), 0.0)
    steep = left.gather(1, place) + slope.gather(1, place)
    multiple = (wanted - before) / torch.where(steep > 0, steep, 1.0)
    # Beyond the last limit nothing gives any more; all of them are at it.
    return torch.where(steep > 0, multiple, _largest(limit, finite))


def _largest(limit: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite, limit, 0.0).amax(1, keepdim=True)
