"""Rules of operators hold: their intervals, the rows they carry, and the error they state."""

from __future__ import annotations

import pytest
import torch

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import max_pooling
from tests.verification.enclosures import (
    RADII,
    check_evaluation,
    check_interval,
    check_point,
    check_relaxation,
)
from tests.verification.operator_table import FAMILIES

every_call = pytest.mark.parametrize(
    ("family", "case"),
    [
        pytest.param(family, case, id=f"{title}-{name}")
        for title, family in FAMILIES.items()
        for name, case in family.cases.items()
    ],
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@dtypes
@every_call
def test_every_result_is_in_the_interval(family, case, dtype):
    for seed, radius in enumerate(RADII):
        check_interval(case, radius, dtype, seed)


@dtypes
@every_call
def test_carried_rows_hold(family, case, dtype):
    for seed, radius in enumerate(RADII):
        check_relaxation(case, radius, dtype, seed)


@every_call
def test_the_module_in_float32_is_within_the_stated_error(family, case):
    for radius in RADII:
        if radius <= family.widest:
            check_evaluation(case, radius)


@every_call
def test_a_point_is_its_own_bound(family, case):
    check_point(case, family.point)


@pytest.mark.parametrize("low", [(0.1, 0.4, 0.4 + 1e-16), (0.1, 0.4 + 1e-16, 0.4)])
@pytest.mark.parametrize("high", [(0.9, 2.0, 2.0 + 4e-16), (0.9, 2.0 + 4e-16, 2.0)])
def test_the_last_digit_does_not_choose_the_elements_that_bound_a_maximum(low, high):
    """It is that of a kernel, which differs with the number of samples."""
    lower, upper = (torch.tensor([[[each]]], dtype=torch.float64) for each in (low, high))
    found = max_pooling.max_pool2d_relaxation(Interval(lower, upper), (1, 3))
    assert (found.below.item(), found.above.item()) == (1, 1)
    line = found.slope * torch.tensor([low[1], high[1]], dtype=torch.float64) + found.offset
    assert (line >= max(high)).all()
    assert line.flatten().tolist() == pytest.approx([2.0, 2.0])
