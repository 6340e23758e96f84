"""The nearest point of a hyperplane inside a box, against a solver and against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from pytest_triguard.engine.hyperplanes import offset_to_hyperplane

BOUNDS = tuple(torch.full((1, 1, 1, 1), end, dtype=torch.float64) for end in (0.0, 1.0))
SIZE = 6
few = settings(max_examples=20, deadline=None)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 1, 2, 3, generator=generator, dtype=torch.float64)
    normal = torch.randn(1, 1, 2, 3, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        normal[0, 0, 0, 0] = 0
    if seed % 4 == 0:
        points[0, 0, 1] = points[0, 0, 1].round()
    return points, normal


def shortest(points, normal, change, norm):
    """Return the least norm of an offset inside the box that brings the change."""
    points, normal = points.flatten().numpy(), normal.flatten().numpy()
    ends = list(zip(-points, 1 - points, strict=True))
    if norm == "linf":
        eye, ones = np.eye(SIZE), np.ones((SIZE, 1))
        found = linprog(
            np.r_[np.zeros(SIZE), 1],
            A_ub=np.block([[eye, -ones], [-eye, -ones]]),
            b_ub=np.zeros(2 * SIZE),
            A_eq=np.r_[normal, 0][None],
            b_eq=[change],
            bounds=[*ends, (0, None)],
        )
        return found.fun
    found = minimize(
        lambda offset: offset @ offset,
        np.zeros(SIZE),
        jac=lambda offset: 2 * offset,
        bounds=ends,
        constraints={"type": "eq", "fun": lambda offset: normal @ offset - change},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.fun**0.5


@few
@given(seed=st.integers(0, 10**6), share=st.floats(-1.5, 1.5), norm=st.sampled_from(["linf", "l2"]))
def test_the_offset_is_the_shortest_that_brings_the_change(seed, share, norm):
    points, normal = drawn(seed)
    room = torch.where(normal * share > 0, 1 - points, points)
    reach = float((normal.abs() * room).sum())
    change = share * reach
    wanted = torch.tensor([change], dtype=torch.float64)
    offset = offset_to_hyperplane(points, normal, wanted, norm, BOUNDS)
    assert ((points + offset >= -1e-12) & (points + offset <= 1 + 1e-12)).all()
    brought = float((normal * offset).sum())
    if abs(share) >= 1:  # the box does not reach so far
        assert abs(brought) == pytest.approx(reach, abs=1e-9)
        return
    assert brought == pytest.approx(change, abs=1e-9)
    order = torch.inf if norm == "linf" else 2
    length = float(torch.linalg.vector_norm(offset.flatten(), order))
    assert length <= shortest(points, normal, change, norm) + 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_far_from_the_ends_the_offset_is_the_textbook_one(norm):
    points = torch.full((2, 1, 2, 3), 0.5, dtype=torch.float64)
    normal = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(2)).double()
    change = torch.tensor([0.1, -0.2], dtype=torch.float64)
    offset = offset_to_hyperplane(points, normal, change, norm, BOUNDS)
    if norm == "linf":
        expected = normal.sign() * (change / normal.abs().sum((1, 2, 3))).view(-1, 1, 1, 1)
    else:
        expected = normal * (change / (normal**2).sum((1, 2, 3))).view(-1, 1, 1, 1)
    assert torch.allclose(offset, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_a_normal_nothing_moves(norm):
    points = torch.full((2, 1, 2, 3), 0.5)
    low, high = (each.float() for each in BOUNDS)
    offset = offset_to_hyperplane(
        points, torch.zeros_like(points), torch.tensor([1.0, 0.0]), norm, (low, high)
    )
    assert torch.equal(offset, torch.zeros_like(points))
