"""Entropy: 1 where attribution is everywhere, 0 where it is in one place, and between."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import metrics
from pytest_triguard.errors import InputError, InputTypeError

few = settings(max_examples=20, deadline=None)
normalized = metrics.get("entropy")
raw = metrics.get("entropy", form="raw")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(2, 6))


def maps(seed, shape, rows=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)


def first_pixels(count, shape, dtype=torch.float64):
    """One map that is 2 on its first `count` pixels, in every channel."""
    channels, height, width = shape
    flat = torch.zeros(channels, height * width, dtype=dtype)
    flat[:, :count] = 2.0
    return flat.view(1, *shape)


@few
@given(seed=st.integers(0, 10**6), shape=shapes)
def test_normalized_agrees_with_scipy(seed, shape):
    given_maps = maps(seed, shape)
    pixels = given_maps.abs().sum(1).flatten(1).numpy()
    expected = scipy.stats.entropy(pixels, axis=1) / np.log(pixels.shape[1])
    np.testing.assert_allclose(normalized(given_maps).numpy(), expected, rtol=1e-12)


@few
@given(seed=st.integers(0, 10**6), shape=shapes)
def test_raw_agrees_with_scipy_where_its_offset_does_not_matter(seed, shape):
    given_maps = maps(seed, shape)
    expected = scipy.stats.entropy(given_maps.abs().flatten(1).numpy(), axis=1)
    np.testing.assert_allclose(raw(given_maps).numpy(), expected, rtol=1e-7)


def test_raw_follows_its_formula_where_the_offset_matters():
    given_maps = maps(0, (2, 3, 4)) * 1e-10
    elements = given_maps.abs().flatten(1).numpy()
    shares = elements / (elements.sum(1, keepdims=True) + 1e-10)
    expected = -(shares * np.log(shares + 1e-10)).sum(1)
    np.testing.assert_allclose(raw(given_maps).numpy(), expected, rtol=1e-12)


@dtypes
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (1, 1, 2), (3, 64, 64)])
def test_a_uniform_map_has_entropy_one_and_never_more(shape, dtype):
    value = normalized(first_pixels(shape[1] * shape[2], shape, dtype))
    assert 1 - 1e-6 <= float(value) <= 1


@dtypes
def test_a_single_pixel_has_entropy_zero(dtype):
    values = normalized(torch.cat([first_pixels(1, (3, 5, 7), dtype)] * 2))
    assert values.tolist() == [0.0, 0.0]
    assert not torch.signbit(values).any()


@pytest.mark.parametrize("count", [1, 2, 5, 17, 35])
def test_equal_pixels_have_the_logarithm_of_their_number(count):
    value = normalized(first_pixels(count, (2, 5, 7)))
    assert float(value) == pytest.approx(math.log(count) / math.log(35), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 17, 35])
def test_raw_counts_every_channel(count):
    value = raw(first_pixels(count, (2, 5, 7)))
    assert float(value) == pytest.approx(math.log(2 * count), abs=1e-7)


def test_raw_stays_at_zero_for_a_single_element():
    value = raw(first_pixels(1, (1, 5, 7)))
    assert float(value) == 0.0
    assert not torch.signbit(value)


@pytest.mark.parametrize(
    ("shape", "largest"),
    [((1, 1, 1), 1 / math.e), ((1, 1, 2), 2 / math.e), ((3, 4, 5), math.log(60))],
)
def test_the_raw_reach_is_where_uniform_maps_get_at_any_scale(shape, largest):
    sizes = torch.logspace(-14, 2, 2000, dtype=torch.float64).view(-1, 1, 1, 1)
    values = raw(torch.ones(1, *shape, dtype=torch.float64) * sizes)
    assert raw.reach(shape) == pytest.approx((0, largest))
    assert float(values.max()) == pytest.approx(largest, abs=1e-4)


@few
@given(seed=st.integers(0, 10**6), shape=shapes, log_scale=st.integers(-250, 250))
def test_normalized_ignores_scale_and_sign(seed, shape, log_scale):
    given_maps = maps(seed, shape)
    assert torch.allclose(
        normalized(-given_maps * 10.0**log_scale), normalized(given_maps), rtol=1e-12
    )


def test_normalized_neither_overflows_nor_vanishes_in_float32():
    given_maps = maps(1, (3, 8, 8)).float()
    expected = normalized(given_maps)
    for scale in (1e-37, 1e37):
        assert torch.allclose(normalized(given_maps * scale), expected, rtol=1e-5)


@few
@given(seed=st.integers(0, 10**6), shape=shapes)
def test_the_order_of_pixels_does_not_matter(seed, shape):
    given_maps = maps(seed, shape)
    order = torch.randperm(shape[1] * shape[2], generator=torch.Generator().manual_seed(seed))
    moved = given_maps.flatten(2)[:, :, order].view_as(given_maps)
    for metric in (normalized, raw):
        assert torch.allclose(metric(moved), metric(given_maps), rtol=1e-12)


def test_mixing_with_a_uniform_map_raises_entropy():
    given_maps = maps(2, (1, 6, 6)).abs()
    mixed = given_maps / given_maps.sum((1, 2, 3), keepdim=True) + 1 / 36
    assert (normalized(mixed) > normalized(given_maps)).all()


@pytest.mark.parametrize("metric", [normalized, raw])
@dtypes
def test_a_zero_map_is_undefined_and_leaves_its_neighbours_alone(metric, dtype):
    given_maps = maps(0, (3, 4, 5)).to(dtype)
    expected = metric(given_maps)
    given_maps[1] = 0
    found = metric(given_maps)
    assert found.isnan().tolist() == [False, True, False]
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert "zero map" in metric.undefined_reason


def test_an_image_of_one_pixel_is_undefined_when_normalized():
    assert normalized(torch.ones(2, 3, 1, 1)).isnan().all()
    assert "single pixel" in normalized.undefined_reason


@pytest.mark.parametrize(
    ("given_maps", "error", "message"),
    [
        ([1.0], InputTypeError, r"maps must be a tensor \(N, C, H, W\), but \[1\.0\] came"),
        (torch.ones(1, 1, 2, 2).int(), InputTypeError, "maps must be floating, .*torch.int32 came"),
        (torch.ones(4, 4), InputError, r"maps must have shape \(N, C, H, W\), .*\(4, 4\)"),
        (torch.ones(2, 0, 4, 4), InputError, r"maps must have shape .*\(2, 0, 4, 4\)"),
    ],
)
def test_what_is_no_map_is_refused(given_maps, error, message):
    with pytest.raises(error, match=message):
        normalized(given_maps)
