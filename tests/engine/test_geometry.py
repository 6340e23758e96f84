"""Balls, boxes and directions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard.engine.geometry import (
    ascent,
    box,
    l2_norm,
    per_row,
    project,
    stepped,
    stepped_in_box,
)
from tests.networks import images

few = settings(max_examples=20, deadline=None)
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])
SHAPE = (2, 3, 4)


def length(offset, norm):
    return offset.abs().amax((1, 2, 3)) if norm == "linf" else l2_norm(offset).flatten()


def problem(seed):
    generator = torch.Generator().manual_seed(seed)
    clean = images(SHAPE, 4, seed=seed)
    away = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    low = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    return clean, clean + away, (low, low + 1)


@both_norms
@few
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 2))
def test_a_projected_point_is_in_ball_and_box(norm, seed, eps):
    clean, points, bounds = problem(seed)
    radius = torch.full((4,), eps, dtype=torch.float64)
    found = project(points, clean, radius, norm, bounds)
    assert (length(found - clean, norm) <= eps * (1 + 1e-12) + 1e-15).all()
    assert ((found >= bounds[0]) & (found <= bounds[1])).all()


@both_norms
@few
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 2))
def test_projecting_again_changes_nothing(norm, seed, eps):
    clean, points, bounds = problem(seed)
    radius = torch.full((4,), eps, dtype=torch.float64)
    once = project(points, clean, radius, norm, bounds)
    assert torch.allclose(project(once, clean, radius, norm, bounds), once, rtol=0, atol=1e-12)


@both_norms
def test_projection_leaves_its_arguments_alone(norm):
    clean, points, bounds = problem(0)
    given_points, given_clean = points.clone(), clean.clone()
    project(points, clean, torch.full((4,), 0.1).double(), norm, bounds)
    assert torch.equal(points, given_points)
    assert torch.equal(clean, given_clean)


def test_without_clipping_the_l2_projection_keeps_the_direction():
    clean = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    offset = images((2, 3, 4), 1) - 0.5
    bounds = (torch.tensor(-9.0).double(), torch.tensor(9.0).double())
    found = (
        project(clean + offset, clean, torch.tensor([0.01], dtype=torch.float64), "l2", bounds)
        - clean
    )
    assert torch.allclose(found, 0.01 * offset / offset.norm(), rtol=0, atol=1e-14)


@both_norms
@pytest.mark.parametrize("power", [-40, -30, -20, 0, 20, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_steepest_direction_has_unit_length_at_every_scale(norm, power, dtype):
    gradient = (images(SHAPE, 3) - 0.5).to(dtype)
    direction = ascent(gradient * 10.0**power, norm)
    if dtype == torch.float32 and power == -40:  # fewer digits below the normal numbers
        assert torch.allclose(direction, ascent(gradient, norm), rtol=0, atol=1e-3)
    else:
        assert torch.allclose(direction, ascent(gradient, norm), rtol=1e-5, atol=1e-7)
    assert torch.allclose(length(direction, norm), torch.ones(3, dtype=dtype), atol=1e-5)


@both_norms
def test_no_gradient_has_no_direction(norm):
    gradient = torch.zeros(2, *SHAPE)
    gradient[1, 0, 0, 0] = -3
    direction = ascent(gradient, norm)
    assert not direction[0].any()
    assert direction[1].sum() == direction[1, 0, 0, 0] == -1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nan_is_not_hidden_by_a_projection(norm):
    clean, points, bounds = problem(1)
    points[2, 0, 0, 0] = torch.nan
    found = project(points, clean, torch.full((4,), 0.1).double(), norm, bounds)
    assert torch.isnan(found).flatten(1).any(1).tolist() == [False, False, True, False]


def test_values_per_row_go_along_with_the_samples():
    assert per_row(torch.arange(3), torch.zeros(3, 1, 2, 2)).shape == (3, 1, 1, 1)


@few
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 2), size=st.floats(0, 2))
def test_a_step_in_the_box_is_a_step_in_the_ball_and_the_range(seed, eps, size):
    clean, away, bounds = problem(seed)
    radius, sizes = torch.full((4,), eps).double(), torch.full((4,), size).double()
    start = project(away, clean, radius, "linf", bounds)
    direction = ascent(away - start, "linf")
    found = stepped_in_box(start, direction, sizes, box(clean, radius, bounds))
    expected = stepped(start, direction, sizes, clean, radius, "linf", bounds)
    assert torch.allclose(found, expected, rtol=0, atol=1e-15)
