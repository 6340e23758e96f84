"""How many of the k largest elements of a map can change when the map moves by so much.

For m of the k largest elements to be overtaken, there is a threshold that m of them fall to and m
others rise to. The cheapest move takes the m weakest of the k and the m strongest of the rest:

    least(m)^2 = min over c of  sum_in (a_i - c)_+^2  +  sum_out (c - a_j)_+^2.

It is a projection, and any weights give a lower bound of it: with weights p on the one side and q
on the other, each summing to 1, the move is at least `(sum p a - sum q a) / |(p, q)|_2`. The
weights at the best threshold attain it, so a threshold that is found only approximately costs
tightness, never soundness.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.verification import rounding

_BISECTIONS = 60
"""Halvings of the threshold's range, which leave nothing of it in float64."""


@torch.no_grad()
def kept(lower: Tensor, upper: Tensor, k: int, distance: Tensor) -> Tensor:
    """Bound how many of a map's k largest elements stay when the map moves.

    Holds for every map between the bounds, every move of at most that length, and whichever
    elements a tie is broken for.

    Args:
        lower: `(N, D)` lower bounds of the map's elements.
        upper: `(N, D)` upper bounds.
        k: From 1 to D.
        distance: `(N,)` largest L2 norm of the move.

    Returns:
        `(N,)` int64, from `max(0, 2k - D)` to k.
    """
    rivals, lower, upper = _checked(lower, upper, k)
    # Sorted bounds bound the sorted map, place by place.
    members = lower.topk(k).values.flip(1)[:, :rivals]
    others = upper.topk(k + rivals).values[:, k:]
    return k - _most_swaps(members, others, distance)


@torch.no_grad()
def shared(estimate: Tensor, lower: Tensor, upper: Tensor, k: int) -> Tensor:
    """Bound how many of the k largest elements an estimated map and the true one have in common.

    Args:
        estimate: `(N, D)` the estimated map.
        lower: `(N, D)` lower bounds of the true map's elements.
        upper: `(N, D)` upper bounds.
        k: From 1 to D.

    Returns:
        `(N,)` int64, from `max(0, 2k - D)` to k.
    """
    rivals, lower, upper = _checked(lower, upper, k)
    order = estimate.argsort(1, descending=True)
    members = lower.gather(1, order[:, :k]).sort(1).values[:, :rivals]
    others = upper.gather(1, order[:, k:]).sort(1, descending=True).values[:, :rivals]
    return k - (members <= others).sum(1)


def _checked(lower: Tensor, upper: Tensor, k: int) -> tuple[int, Tensor, Tensor]:
    """Return how many swaps there can be, and bounds without NaN: to sort, it is the largest."""
    unknown = torch.isnan(lower) | torch.isnan(upper)
    low, high = torch.where(unknown, -torch.inf, lower), torch.where(unknown, torch.inf, upper)
    return min(k, lower.shape[1] - k), low, high


def _most_swaps(members: Tensor, others: Tensor, distance: Tensor) -> Tensor:
    """Return the largest number of swaps that a move can make, by bisection.

    Args:
        members: `(N, M)` what may be overtaken, weakest first.
        others: `(N, M)` what may overtake it, strongest first.
        distance: `(N,)` length of the move.
    """
    rivals = members.shape[1]
    possible = torch.zeros(len(members), dtype=torch.int64, device=members.device)
    impossible = torch.full_like(possible, rivals + 1)
    for _ in range(rivals.bit_length()):
        middle = (possible + impossible) // 2
        # A NaN proves nothing.
        proven = _least_move(members, others, middle) > distance
        undecided = impossible - possible > 1
        impossible = torch.where(undecided & proven, middle, impossible)
        possible = torch.where(undecided & ~proven, middle, possible)
    return possible


def _least_move(members: Tensor, others: Tensor, swaps: Tensor) -> Tensor:
    """Return a lower bound of the length of a move that makes so many swaps, `(N,)`."""
    taken = torch.arange(members.shape[1], device=members.device) < swaps.unsqueeze(1)

    def excess(threshold: Tensor) -> tuple[Tensor, Tensor]:
        fall = (members - threshold).clamp_min(0)
        rise = (threshold - others).clamp_min(0)
        return torch.where(taken, fall, 0), torch.where(taken, rise, 0)

    low = torch.minimum(members, others).amin(1, keepdim=True)
    high = torch.maximum(members, others).amax(1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fall, rise = excess(middle)
        above = fall.sum(1, keepdim=True) > rise.sum(1, keepdim=True)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    fall, rise = excess((low + high) / 2)
    total_fall, total_rise = fall.sum(1), rise.sum(1)
    gap = fall.square().sum(1) / total_fall + rise.square().sum(1) / total_rise
    weights = fall.square().sum(1) / total_fall**2 + rise.square().sum(1) / total_rise**2
    # Every sum is of positive terms, so its rounding is relative to itself.
    return gap / weights.sqrt() * (1 - 8 * rounding.gamma(members.shape[1], members.dtype))
