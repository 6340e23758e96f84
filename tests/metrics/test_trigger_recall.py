"""Trigger recall: all of the trigger found is 1, none of it 0, guessing reaches chance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import metrics
from pytest_triguard.errors import InputError, InputTypeError

few = settings(max_examples=20, deadline=None)
recall = metrics.get("trigger_recall")
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
seeds = st.integers(0, 10**6)


def drawn(seed, shape, levels=None):
    """Maps and masks; with few levels the maps are full of ties, and signs differ."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        maps = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    else:
        maps = torch.randint(-levels, levels + 1, (4, *shape), generator=generator).double()
    mask = torch.rand(4, 1, *shape[1:], generator=generator) < 0.4
    return maps, mask


def by_hand(one_map, mask):
    """The recall of one sample in plain Python: sort (score, place), count what is in the mask."""
    channels, height, width = one_map.shape
    scores = []
    for row in range(height):
        for column in range(width):
            total = sum(abs(float(one_map[channel, row, column])) for channel in range(channels))
            scores.append((-total, row * width + column))
    inside = {place for place in range(height * width) if mask[0, place // width, place % width]}
    if not inside or not any(score for score, _ in scores):
        return math.nan
    top = {place for _, place in sorted(scores)[: len(inside)]}
    return len(top & inside) / len(inside)


@pytest.mark.parametrize("levels", [None, 1, 2])
@few
@given(seed=seeds, shape=shapes)
def test_recall_agrees_with_a_plain_loop(levels, seed, shape):
    maps, mask = drawn(seed, shape, levels)
    expected = [by_hand(*pair) for pair in zip(maps, mask, strict=True)]
    assert recall(maps, mask).tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)


@few
@given(seed=seeds, shape=shapes)
def test_a_map_that_is_the_mask_finds_all_of_it(seed, shape):
    _, mask = drawn(seed, shape)
    mask[:, :, 0, 0] = True
    signed = torch.where(mask, -1.0, 0.0).expand(-1, shape[0], -1, -1)
    assert recall(signed, mask).tolist() == [1.0] * 4


@few
@given(seed=seeds, shape=st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)))
def test_a_map_that_avoids_a_small_mask_finds_none_of_it(seed, shape):
    _, mask = drawn(seed, shape)
    mask.flatten(1)[:, shape[1] * shape[2] // 2 :] = False
    mask[:, :, 0, 0] = True
    elsewhere = (~mask).double().expand(-1, shape[0], -1, -1)
    assert recall(elsewhere, mask).tolist() == [0.0] * 4


def test_random_maps_reach_chance():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2000, 1, 8, 8, generator=generator)
    mask = torch.zeros(2000, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 5:, 5:] = True
    found, chance = recall(maps, mask), recall.chance(mask)
    assert chance.tolist() == [9 / 64] * 2000
    assert float(found.mean()) == pytest.approx(9 / 64, abs=4 * float(found.std()) / 2000**0.5)


def test_of_equal_pixels_the_first_in_reading_order_ranks_higher():
    flat = torch.ones(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0, :3] = True
    mask[1, 0, 3, :3] = True
    assert recall(flat, mask).tolist() == [1.0, 0.0]


def test_channels_are_added_up_without_their_signs():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, :, 0, 0] = torch.tensor([2.0, -2.0])
    maps[0, 0, 1, 1] = 3.0
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    assert recall(maps, mask).tolist() == [1.0]


def test_every_sample_has_a_mask_of_its_own_size():
    maps = torch.tensor([4.0, 3.0, 2.0, 1.0]).view(1, 1, 2, 2).expand(4, -1, -1, -1)
    mask = torch.tensor(
        [[1, 0, 0, 0], [1, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool
    ).view(4, 1, 2, 2)
    assert recall(maps, mask).tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1])
    assert recall.chance(mask).tolist() == [0.25, 0.5, 0.75, 1.0]


def test_a_zero_map_and_an_empty_mask_are_undefined_and_leave_their_neighbours_alone():
    maps, mask = drawn(0, (3, 5, 4))
    expected = recall(maps, mask)
    maps[1] = 0
    mask[2] = False
    found = recall(maps, mask)
    assert found.isnan().tolist() == [False, True, True, False]
    assert torch.equal(found[[0, 3]], expected[[0, 3]])
    assert recall.chance(mask)[2] == 0


MASK = torch.ones(2, 1, 3, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, InputTypeError, r"mask must be a tensor of shape \(2, 1, 3, 3\), but None came"),
        (MASK.float(), InputTypeError, r"mask must be a bool tensor \(N, 1, H, W\), .*float32"),
        (MASK[:, :, :2], InputError, r"mask must have shape \(2, 1, 3, 3\) to go with maps"),
        (MASK[:1], InputError, r"mask must have shape \(2, 1, 3, 3\) to go with maps"),
        (MASK.expand(-1, 3, -1, -1), InputError, r"mask must have shape \(2, 1, 3, 3\) to go"),
        (MASK.to("meta"), InputError, "mask must be on cpu like maps, but a tensor on meta came"),
    ],
)
def test_a_mask_that_does_not_go_with_the_maps_is_refused(mask, error, message):
    with pytest.raises(error, match=message):
        recall(torch.ones(2, 3, 3, 3), mask)


def test_chance_refuses_what_is_no_mask():
    with pytest.raises(InputError, match=r"mask must have shape \(N, 1, H, W\)"):
        recall.chance(MASK[0])
    with pytest.raises(InputTypeError, match="mask must be a bool tensor"):
        recall.chance([True])
