"""The pointing game: hits, misses, ties and what is undefined."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_triguard import metrics
from pytest_triguard.errors import InputError, InputTypeError


def a_map(row, column, value=1.0):
    found = torch.zeros(1, 2, 5, 7)
    found[0, 1, row, column] = value
    return found


def a_mask(row, column):
    found = torch.zeros(1, 1, 5, 7, dtype=torch.bool)
    found[0, 0, row, column] = True
    return found


def test_the_pixel_of_highest_absolute_attribution_hits_or_misses():
    metric = metrics.get("pointing_game")
    assert metric(a_map(2, 3, -1.0), a_mask(2, 3)).tolist() == [1.0]
    assert metric(a_map(2, 3), a_mask(2, 4)).tolist() == [0.0]


def test_a_tolerance_widens_the_mask_in_rows_and_columns():
    metric = metrics.get("pointing_game", tolerance=1)
    assert metric(a_map(3, 4), a_mask(2, 3)).tolist() == [1.0]
    assert metric(a_map(4, 3), a_mask(2, 3)).tolist() == [0.0]


def test_of_equal_pixels_the_first_counts():
    tied = a_map(1, 1) + a_map(3, 3)
    assert metrics.get("pointing_game")(tied, a_mask(1, 1)).tolist() == [1.0]
    assert metrics.get("pointing_game")(tied, a_mask(3, 3)).tolist() == [0.0]


def test_a_zero_map_and_an_empty_mask_are_undefined():
    metric = metrics.get("pointing_game")
    assert math.isnan(metric(a_map(0, 0, 0.0), a_mask(0, 0)))
    assert math.isnan(metric(a_map(0, 0), a_mask(0, 0) & False))


def test_what_is_no_mask_is_refused():
    metric = metrics.get("pointing_game")
    with pytest.raises(InputTypeError, match="mask must be a bool tensor"):
        metric(a_map(0, 0), torch.zeros(1, 1, 5, 7))
    with pytest.raises(InputError, match=r"mask must have shape \(1, 1, 5, 7\)"):
        metric(a_map(0, 0), a_mask(0, 0)[:, :, :4])
    with pytest.raises(InputError, match="tolerance must be at least 0"):
        metrics.get("pointing_game", tolerance=-1)
