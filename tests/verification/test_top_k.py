"""How many of the largest elements stay: equal to an exhaustive search, never exceeded by one."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from pytest_triguard.verification import top_k

few = settings(max_examples=60, deadline=None)


def shortest_swap(values, k, swaps):
    """Return the least L2 move after which so many of the top k are overtaken, by search."""
    order = np.argsort(-values, kind="stable")
    best = math.inf
    for leaving in combinations(order[:k], swaps):
        for entering in combinations(order[k:], swaps):
            chosen = [*leaving, *entering]

            def length(c, leaving=leaving, entering=entering):
                fall = np.maximum(values[list(leaving)] - c, 0)
                rise = np.maximum(c - values[list(entering)], 0)
                return (fall**2).sum() + (rise**2).sum()

            ends = values[chosen].min(), values[chosen].max()
            found = optimize.minimize_scalar(
                length, bounds=ends, method="bounded", options={"xatol": 1e-12}
            )
            best = min(best, math.sqrt(found.fun))
    return best


@few
@given(
    values=st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=7, unique=True),
    data=st.data(),
)
def test_without_uncertainty_the_overlap_is_what_an_exhaustive_search_finds(values, data):
    k = data.draw(st.integers(1, len(values) - 1))
    known = torch.tensor([values]).double()
    for swaps in range(1, min(k, len(values) - k) + 1):
        exact = shortest_swap(np.array(values), k, swaps)
        under, over = exact * (1 - 1e-5) - 1e-6, exact * (1 + 1e-5) + 1e-6
        if under > 0:
            assert top_k.kept(known, known, k, torch.tensor([under]).double()) > k - swaps
        assert top_k.kept(known, known, k, torch.tensor([over]).double()) <= k - swaps


def overlap(one, two, k):
    return len(set(one.topk(k).indices.tolist()) & set(two.topk(k).indices.tolist()))


@few
@given(seed=st.integers(0, 10**6), distance=st.sampled_from([0.05, 0.3, 1.0, 3.0]))
def test_no_map_within_the_bounds_and_no_move_keeps_less(seed, distance):
    generator = torch.Generator().manual_seed(seed)
    count = 6 + seed % 7
    k = 1 + seed % (count - 1)
    estimate = torch.randn(count, generator=generator, dtype=torch.float64)
    radius = torch.rand(count, generator=generator, dtype=torch.float64) * 0.3
    low, high = (estimate - radius)[None], (estimate + radius)[None]
    kept = top_k.kept(low, high, k, torch.tensor([distance]).double()).item()
    shared = top_k.shared(estimate[None], low, high, k).item()
    assert max(0, 2 * k - count) <= kept <= k
    for draw in range(60):
        share = torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1
        if draw % 2:
            share = share.sign()
        if draw % 4 == 1:  # bring the two groups together
            share[estimate.topk(k).indices], share[(-estimate).topk(count - k).indices] = -1, 1
        true = estimate + radius * share
        assert overlap(estimate, true, k) >= shared
        order = true.argsort(descending=True)
        swaps = 1 + draw % max(1, min(k, count - k))
        leaving, entering = order[max(0, k - swaps) : k], order[k : k + swaps]
        towards = torch.zeros(count, dtype=torch.float64)
        middle = (true[leaving].mean() + true[entering].mean()) / 2
        towards[leaving] = middle - 1e-9 - true[leaving]
        towards[entering] = middle + 1e-9 - true[entering]
        moved = true + towards * (distance / towards.norm()).clamp_max(1)
        assert overlap(true, moved, k) >= kept


def test_the_overlap_falls_with_the_ball_and_rises_with_what_is_known():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(1, 200, generator=generator, dtype=torch.float64).sort(1).values
    distances = torch.tensor([0.0, 0.1, 0.5, 1.0, 5.0, 50.0]).double()
    rows = values.expand(len(distances), -1)
    sure = top_k.kept(rows, rows, 30, distances)
    unsure = top_k.kept(rows - 0.1, rows + 0.1, 30, distances)
    assert (sure.diff() <= 0).all()
    assert (unsure <= sure).all()
    assert sure[0] == 30
    assert sure[-1] == 0
    assert 0 < unsure[2] < 30


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_keeps_nothing(bad):
    low, high = torch.tensor([[3.0, 2.0, 1.0, -bad]]), torch.tensor([[3.0, 2.0, 1.0, bad]])
    assert top_k.kept(low * math.nan, high * math.nan, 2, torch.tensor([0.1])) == 0
    assert top_k.shared(high, low * math.nan, high * math.nan, 2) == 0
    assert top_k.kept(low, high, 3, torch.tensor([0.1])) <= 2


def test_a_tie_may_be_broken_either_way():
    tied = torch.tensor([[1.0, 0.5, 0.5, 0.0]]).double()
    assert top_k.kept(tied, tied, 2, torch.zeros(1).double()) == 1
    assert top_k.shared(tied, tied, tied, 2) == 1
