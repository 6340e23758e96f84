"""Rules of operators hold: their intervals, the rows they carry, and the error they state."""

from __future__ import annotations

import pytest
import torch

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
