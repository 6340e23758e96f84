"""Drift: 0 between equal maps, 2 between maps that share nothing, and a distance between."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import metrics
from pytest_triguard.errors import InputError, InputTypeError

few = settings(max_examples=20, deadline=None)
FORMS = ("allocation", "l2", "completeness_orthogonal")
allocation, l2, orthogonal = (metrics.get("drift", form=form) for form in FORMS)
of_each_form = pytest.mark.parametrize("metric", [allocation, l2, orthogonal], ids=FORMS)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
seeds = st.integers(0, 10**6)


def maps(seed, shape, rows=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)


def with_numpy(form, first, second):
    if form == "allocation":
        return np.abs(first / np.abs(first).sum() - second / np.abs(second).sum()).sum()
    if form == "l2":
        return np.linalg.norm((first - second).ravel())
    return np.std(first - second)


@pytest.mark.parametrize("form", FORMS)
@few
@given(seed=seeds, shape=shapes)
def test_each_form_agrees_with_numpy(form, seed, shape):
    first, second = maps(seed, shape), maps(seed + 1, shape)
    expected = [with_numpy(form, *pair) for pair in zip(first.numpy(), second.numpy(), strict=True)]
    found = metrics.get("drift", form=form)(first, second).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@of_each_form
@few
@given(seed=seeds, shape=shapes)
def test_equal_maps_have_not_drifted_and_order_does_not_matter(metric, seed, shape):
    first, second = maps(seed, shape), maps(seed + 1, shape)
    assert metric(first, first).tolist() == [0, 0, 0]
    assert torch.allclose(metric(first, second), metric(second, first), rtol=1e-12)


@of_each_form
@few
@given(seed=seeds, shape=shapes)
def test_the_order_of_elements_does_not_matter(metric, seed, shape):
    first, second = maps(seed, shape), maps(seed + 1, shape)
    order = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(seed))
    moved = [each.flatten(1)[:, order].view_as(each) for each in (first, second)]
    assert torch.allclose(metric(*moved), metric(first, second), rtol=1e-11, atol=1e-14)


@of_each_form
def test_going_through_a_third_map_is_never_shorter(metric):
    first, second, third = (maps(seed, (2, 4, 5), rows=50) for seed in range(3))
    detour = metric(first, third) + metric(third, second)
    assert (metric(first, second) <= detour + 1e-12).all()


@few
@given(seed=seeds, shape=shapes, log_scale=st.integers(-250, 250))
def test_allocation_ignores_the_scale_of_each_map(seed, shape, log_scale):
    first, second = maps(seed, shape), maps(seed + 1, shape)
    scaled = first * 10.0**log_scale, second * 10.0**-log_scale
    assert torch.allclose(allocation(*scaled), allocation(first, second), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disjoint_and_opposite_maps_have_drifted_by_two_and_never_more(dtype):
    first = maps(0, (3, 16, 16), rows=40).to(dtype)
    left = torch.zeros_like(first)
    left[..., :8] = first[..., :8]
    for other in (first - left, -left):
        values = allocation(left, other)
        assert (values <= 2).all()
        assert torch.allclose(values, torch.full_like(values, 2), rtol=1e-6)


def test_moving_a_tenth_of_the_attribution_is_a_drift_of_a_fifth():
    first = torch.full((1, 1, 2, 5), 3.0)
    second = first.clone()
    second[0, 0, 0, 0], second[0, 0, 1, 4] = 0.0, 6.0
    assert float(allocation(first, second)) == pytest.approx(0.2)


def test_sign_counts_in_allocation():
    first = torch.tensor([[[[1.0, 1.0]]]])
    second = torch.tensor([[[[1.0, -1.0]]]])
    assert float(allocation(first, second)) == pytest.approx(1.0)


@few
@given(seed=seeds, shape=shapes, offset=st.floats(-5, 5))
def test_orthogonal_drift_leaves_a_constant_out(seed, shape, offset):
    first, second = maps(seed, shape), maps(seed + 1, shape)
    found = orthogonal(first + offset, second)
    assert torch.allclose(found, orthogonal(first, second), rtol=1e-9, atol=1e-12)


def test_orthogonal_drift_and_the_change_of_the_sum_make_up_the_distance():
    first, second = maps(0, (3, 4, 5)), maps(1, (3, 4, 5))
    mean = (first - second).mean((1, 2, 3))
    together = (60 * (orthogonal(first, second).square() + mean.square())).sqrt()
    assert torch.allclose(together, l2(first, second), rtol=1e-12)


@pytest.mark.parametrize("metric", [l2, orthogonal])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_distance_neither_vanishes_nor_overflows_when_it_is_squared(metric, scale):
    first, second = (maps(seed, (3, 4, 5)).float() for seed in range(2))
    expected = metric(first, second) * scale
    assert torch.allclose(metric(first * scale, second * scale), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("zero", [0, 1])
def test_allocation_of_a_zero_map_is_undefined_and_leaves_its_neighbours_alone(zero):
    pair = [maps(0, (3, 4, 5)), maps(1, (3, 4, 5))]
    expected = allocation(*pair)
    pair[zero][1] = 0
    found = allocation(*pair)
    assert found.isnan().tolist() == [False, True, False]
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert allocation.undefined_reason == "zero map"


@pytest.mark.parametrize("metric", [l2, orthogonal])
def test_forms_that_do_not_divide_are_defined_for_zero_maps(metric):
    zeros = torch.zeros(2, 1, 3, 3)
    assert metric(zeros, zeros).tolist() == [0, 0]
    assert metric.undefined_reason == ""


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ("blur", InputTypeError, "others must be a tensor .* but 'blur' came"),
        (torch.ones(2, 1, 3, 3).long(), InputTypeError, "others must be floating, .*torch.int64"),
        (torch.ones(2, 1, 3, 4), InputError, r"others must have shape \(2, 1, 3, 3\) to go with"),
        (torch.ones(1, 1, 3, 3), InputError, r"others must have shape \(2, 1, 3, 3\) to go with"),
        (torch.ones(2, 1, 3, 3, device="meta"), InputError, "others must be on cpu like maps"),
    ],
)
def test_maps_that_do_not_go_together_are_refused(others, error, message):
    with pytest.raises(error, match=message):
        allocation(torch.ones(2, 1, 3, 3), others)
