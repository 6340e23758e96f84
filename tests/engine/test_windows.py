"""Square windows and the bumps that fill them."""

from __future__ import annotations

import pytest
import torch

from pytest_triguard.engine.windows import bump, corner, inside, placed

SHAPE = torch.Size((3, 2, 5, 7))
TOP, LEFT, SIDE = torch.tensor([0, 2, 4]), torch.tensor([6, 1, 0]), torch.tensor([1, 3, 1])


def test_corners_are_everywhere_a_window_fits():
    draws = torch.linspace(0, 1 - 1e-6, 1000)
    places = corner(draws, torch.full((1000,), 3), 5)
    assert places.bincount().tolist() == pytest.approx([333, 333, 334], abs=2)
    assert corner(torch.tensor([0.9]), torch.tensor([5]), 5).tolist() == [0]


def test_a_window_is_where_it_was_placed():
    mask = inside(TOP, LEFT, SIDE, SHAPE)
    for place, (top, left, side) in enumerate(zip(TOP, LEFT, SIDE, strict=True)):
        expected = torch.zeros(5, 7, dtype=torch.bool)
        expected[top : top + side, left : left + side] = True
        assert torch.equal(mask[place, 0], expected)


def test_a_pattern_fills_its_window_and_nothing_else():
    patterns = torch.arange(1.0, 28.0).view(3, 3, 3)
    filled = placed(patterns, TOP, LEFT, SIDE, SHAPE)
    for place, (top, left, side) in enumerate(zip(TOP, LEFT, SIDE, strict=True)):
        expected = torch.zeros(5, 7)
        expected[top : top + side, left : left + side] = patterns[place, :side, :side]
        assert torch.equal(filled[place, 0], expected)


@pytest.mark.parametrize("size", range(1, 9))
def test_a_bump_is_a_hill_above_a_valley(size):
    pattern = bump(size)
    assert pattern.norm() == pytest.approx(1)
    upper, lower = pattern[: size // 2], pattern[size // 2 :]
    assert (upper > 0).all()
    assert (lower < 0).all()


def test_a_hill_falls_by_the_squares():
    """Of the lower half of five rows, the middle is 1 + 1/4 + 1/9 high, its rings less."""
    lower = -bump(5)[2:]
    ratio = lower / lower.max()
    top = 1 + 1 / 4 + 1 / 9
    assert ratio[1, 2] == 1
    assert ratio[0, 2] == pytest.approx((1 / 4 + 1 / 9) / top)
    assert ratio[1, 4] == pytest.approx((1 / 9) / top)
