"""Metrics of two maps: what is alike, what is far apart, and what cannot be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import metrics
from pytest_triguard.errors import InputError, InputTypeError

few = settings(max_examples=20, deadline=None)
shapes = st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6))
seeds = st.integers(0, 10**6)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
NAMES = ("topk_intersection", "spearman", "mass_center", "cosine")
PAIRS = (*NAMES, "drift")
REASONS = dict(
    zip(NAMES, ("zero map", "constant or zero map", "zero map", "zero map"), strict=True)
)
of_each = pytest.mark.parametrize("name", NAMES)
of_all_pairs = pytest.mark.parametrize("name", PAIRS)


def drawn(seed, shape, levels=None, rows=4):
    """Maps of both signs; with few levels they are full of ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    maps = torch.randint(-levels, levels + 1, (rows, *shape), generator=generator).double()
    maps[:, :, 0, :2] = torch.tensor([levels, 0.0])  # never zero, never constant
    return maps


def pixels(maps):
    return maps.abs().sum(1).flatten(1).numpy()


def overlap(first, second, k):
    """The share of one pair in plain Python: sort (score, place), count what both have."""
    tops = [
        {place for _, place in sorted((-value, place) for place, value in enumerate(each))[:k]}
        for each in (first, second)
    ]
    return len(tops[0] & tops[1]) / k


@pytest.mark.parametrize("levels", [None, 1, 2])
@few
@given(seed=seeds, shape=shapes, k=st.integers(1, 4))
def test_the_intersection_agrees_with_a_plain_loop(levels, seed, shape, k):
    first, second = drawn(seed, shape, levels), drawn(seed + 1, shape, levels)
    expected = [overlap(*pair, k) for pair in zip(pixels(first), pixels(second), strict=True)]
    assert metrics.get("topk_intersection", k=k)(first, second).tolist() == expected


@pytest.mark.parametrize("levels", [None, 1, 2])
@few
@given(seed=seeds, shape=shapes)
def test_the_rank_correlation_agrees_with_scipy(levels, seed, shape):
    first, second = drawn(seed, shape, levels), drawn(seed + 1, shape, levels)
    for channels, absolute in (("sum", True), ("none", False)):
        ends = [each.flatten(1).numpy() if channels == "none" else pixels(each)
                for each in (first, second)]  # fmt: skip
        with np.errstate(invalid="ignore"):
            expected = [_spearman(*pair) for pair in zip(*ends, strict=True)]
        metric = metrics.get("spearman", channels=channels, absolute=absolute)
        assert metric(first, second).tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def _spearman(first, second):
    constant = np.ptp(first) == 0 or np.ptp(second) == 0
    return math.nan if constant else scipy.stats.spearmanr(first, second).statistic


@few
@given(seed=seeds, shape=shapes)
def test_the_centres_of_mass_are_those_of_scipy(seed, shape):
    first, second = drawn(seed, shape), drawn(seed + 1, shape)
    expected = [
        math.dist(*(scipy.ndimage.center_of_mass(each.abs().sum(0).numpy()) for each in pair))
        for pair in zip(first, second, strict=True)
    ]
    assert metrics.get("mass_center")(first, second).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("absolute", [True, False])
@few
@given(seed=seeds, shape=shapes)
def test_the_cosine_distance_is_that_of_scipy(absolute, seed, shape):
    first, second = drawn(seed, shape), drawn(seed + 1, shape)
    ends = [(each.abs() if absolute else each).sum(1).flatten(1) for each in (first, second)]
    expected = [scipy.spatial.distance.cosine(*pair) for pair in zip(*ends, strict=True)]
    found = metrics.get("cosine", absolute=absolute)(first, second)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


# --- equal maps, order, scale -------------------------------------------------------------------


@of_all_pairs
@few
@given(seed=seeds, shape=shapes)
def test_equal_maps_are_as_close_as_can_be_and_order_does_not_matter(name, seed, shape):
    metric, first, second = metrics.get(name), drawn(seed, shape), drawn(seed + 1, shape)
    best = metric.reach(shape)[1] if metric.similarity else 0.0
    assert metric(first, first).tolist() == pytest.approx([best] * 4, abs=1e-12)
    assert torch.allclose(metric(first, second), metric(second, first), rtol=1e-12)


@of_each
@few
@given(seed=seeds, shape=shapes, log_scale=st.integers(-250, 250))
def test_the_scale_of_a_map_does_not_matter(name, seed, shape, log_scale):
    metric, first, second = metrics.get(name), drawn(seed, shape), drawn(seed + 1, shape)
    found = metric(first * 10.0**log_scale, second * 10.0**-log_scale)
    assert torch.allclose(found, metric(first, second), rtol=1e-9, atol=1e-12)


@of_each
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_nothing_overflows_or_vanishes_in_float32(name, scale):
    metric = metrics.get(name)
    first, second = (drawn(seed, (3, 6, 5)).float() for seed in range(2))
    found = metric(first * scale, second * scale)
    assert torch.allclose(found, metric(first, second), rtol=1e-5)


# --- known answers ------------------------------------------------------------------------------


@dtypes
def test_a_moved_pixel_has_moved_by_its_way(dtype):
    first, second = torch.zeros(2, 1, 5, 7, dtype=dtype), torch.zeros(2, 1, 5, 7, dtype=dtype)
    first[:, 0, 0, 0], second[0, 0, 3, 4], second[1, 0, 4, 6] = 2.0, -1.0, 1.0
    assert metrics.get("mass_center")(first, second).tolist() == pytest.approx(
        [5.0, math.hypot(4, 6)]
    )
    assert metrics.get("mass_center").reach((1, 5, 7)) == (0.0, math.hypot(4, 6))
    assert metrics.get("cosine")(first, second).tolist() == [1.0, 1.0]
    assert metrics.get("topk_intersection", k=1)(first, second).tolist() == [0.0, 0.0]


@dtypes
def test_opposite_maps_are_as_far_apart_as_signs_allow(dtype):
    maps = drawn(0, (2, 4, 5)).to(dtype)
    signed = {"channels": "none", "absolute": False}
    tolerance = {"abs": 1e-6} if dtype is torch.float32 else {"abs": 1e-12}
    for name, end in (("spearman", -1.0), ("cosine", 2.0), ("topk_intersection", 0.0)):
        found = metrics.get(name, **signed)(maps, -maps)
        assert found.tolist() == pytest.approx([end] * 4, **tolerance)
        found = metrics.get(name)(maps, -maps)
        assert found.tolist() == pytest.approx([0.0 if name == "cosine" else 1.0] * 4, **tolerance)


@dtypes
def test_equal_and_opposite_ranks_correlate_exactly(dtype):
    maps = drawn(4, (3, 9, 9)).to(dtype)
    metric = metrics.get("spearman", absolute=False)
    assert metric(maps, 3 * maps).tolist() == [1.0] * 4
    assert metric(maps, -maps).tolist() == [-1.0] * 4


def test_any_rising_function_of_a_map_has_its_ranks():
    maps = drawn(3, (1, 6, 6))
    metric = metrics.get("spearman", absolute=False)
    assert metric(maps, maps.exp()).tolist() == pytest.approx([1.0] * 4)


def test_a_close_pair_has_a_cosine_distance_of_its_own_in_float32():
    first = drawn(0, (1, 16, 16)).float()
    second = first * (1 + 1e-4 * drawn(1, (1, 16, 16)).float())
    exact = metrics.get("cosine")(first.double(), second.double())
    assert 0 < float(exact.max()) < 2e-8
    assert torch.allclose(metrics.get("cosine")(first, second).double(), exact, rtol=1e-2)


def test_a_fraction_is_rounded_up_and_a_whole_number_is_a_count():
    first, second = drawn(0, (1, 5, 7)), drawn(1, (1, 5, 7))
    for fraction, count in ((0.1, 4), (1e-9, 1), (1.0, 35), (1 / 35, 1)):
        found, expected = (
            metrics.get("topk_intersection", k=k)(first, second) for k in (fraction, count)
        )
        assert torch.equal(found, expected)
    assert expected.tolist() == metrics.get("topk_intersection", k=1)(first, second).tolist()


def test_a_share_that_is_a_whole_number_of_pixels_is_not_rounded_up():
    """Although 0.07 * 100 is more than 7."""
    first, second = drawn(0, (3, 10, 10)), drawn(1, (3, 10, 10))
    for count in range(1, 101):
        found, expected = (
            metrics.get("topk_intersection", k=k)(first, second) for k in (count / 100, count)
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("channels", "absolute", "expected"),
    [("sum", True, [5.0, 3.0]), ("sum", False, [-1.0, 3.0]), ("max", True, [3.0, 3.0]),
     ("max", False, [2.0, 3.0]), ("none", False, [2.0, 3.0, -3.0, 0.0])],
)  # fmt: skip
def test_channels_are_reduced_as_asked(channels, absolute, expected):
    maps = torch.tensor([[2.0, 3.0], [-3.0, 0.0]]).view(1, 2, 1, 2)
    metric = metrics.get("cosine", channels=channels, absolute=absolute)
    found = metric.reduced(maps).flatten()
    largest = max(map(abs, expected))
    assert found.tolist() == pytest.approx([each / largest for each in expected])


# --- what is undefined --------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0, 1])
@of_each
def test_a_zero_map_is_undefined_and_leaves_its_neighbours_alone(name, zero):
    metric, pair = metrics.get(name), [drawn(0, (3, 5, 4)), drawn(1, (3, 5, 4))]
    expected = metric(*pair)
    pair[zero][1] = 0
    found = metric(*pair)
    assert found.isnan().tolist() == [False, True, False, False]
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])
    assert metric.undefined_reason == REASONS[name]


def test_a_constant_map_has_no_ranks():
    first = drawn(0, (3, 5, 4))
    second = torch.full_like(first, 0.3)
    assert metrics.get("spearman")(first, second).isnan().all()
    assert not metrics.get("mass_center")(first, second).isnan().any()


@pytest.mark.parametrize("name", ["topk_intersection", "spearman", "cosine"])
def test_a_map_whose_channels_cancel_is_undefined(name):
    first = drawn(0, (2, 5, 4))
    second = torch.cat([first[:, :1], -first[:, :1]], 1)
    assert metrics.get(name, absolute=False)(first, second).isnan().all()
    assert not metrics.get(name)(first, second).isnan().any()


# --- bad input ----------------------------------------------------------------------------------

ONES = torch.ones(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ("blur", InputTypeError, "others must be a tensor .* but 'blur' came"),
        (ONES.long(), InputTypeError, "others must be floating, .*torch.int64"),
        (ONES[..., :2], InputError, r"others must have shape \(2, 1, 3, 3\) to go with maps"),
        (ONES.to("meta"), InputError, "others must be on cpu like maps"),
    ],
)
@of_all_pairs
def test_maps_that_do_not_go_together_are_refused(name, others, error, message):
    with pytest.raises(error, match=message):
        metrics.get(name)(ONES, others)


def test_more_pixels_than_the_map_has_are_refused():
    with pytest.raises(InputError, match="k must not exceed the 9 pixels of a map, but 10 came"):
        metrics.get("topk_intersection", k=10)(ONES, ONES)
    assert metrics.get("topk_intersection", k=9)(ONES, ONES).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("topk_intersection", {"k": 0}, InputError, "k must be at least 1, but 0 came"),
        ("topk_intersection", {"k": 1.5}, InputError, r"k must be from 0 to 1 \(0 excluded\)"),
        ("topk_intersection", {"k": 0.0}, InputError, r"k must be from 0 to 1 \(0 excluded\)"),
        ("topk_intersection", {"k": "all"}, InputTypeError, "k must be a number, but 'all' came"),
        ("topk_intersection", {"k": True}, InputTypeError, "k must be a whole number, but True"),
        ("spearman", {"channels": "mean"}, InputError, "channels must be one of 'sum', 'max', 'n"),
        ("mass_center", {"channels": "none"}, InputError, "channels must be one of 'sum', 'max', "),
        ("cosine", {"absolute": 1}, InputTypeError, "absolute must be True or False, but 1 came"),
    ],
)  # fmt: skip
def test_a_bad_hyperparameter_is_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        metrics.get(name, **options)
