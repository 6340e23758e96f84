"""Quotients by values are bounded where the divisor keeps away from zero, and only there."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from operator import truediv

import pytest
import torch

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import TABLE, Unsupported, division
from tests.verification.enclosures import box, lowest
from tests.verification.operator_table import DIVISION


def test_a_quotient_holds_its_exact_rational_range():
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(200, 2, generator=generator).sort(1).values
    second = torch.rand(200, 2, generator=generator).sort(1).values + 0.1
    second[::2] = -second[::2].flip(1)
    found = division.div(Interval(first[:, 0], first[:, 1]), Interval(second[:, 0], second[:, 1]))
    for place in range(200):
        values = [
            Fraction(one) / Fraction(two)
            for one, two in product(first[place].tolist(), second[place].tolist())
        ]
        assert Fraction(found.lower[place].item()) <= min(values)
        assert Fraction(found.upper[place].item()) >= max(values)


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0), (-1.0, 0.0), (-1.0, 2.0), (0.0, 0.0), (torch.nan, 1.0)]
)
def test_a_divisor_that_may_be_zero_leaves_nothing_known(ends):
    one = Interval(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    other = Interval(torch.tensor([[ends[0]]]), torch.tensor([[ends[1]]]))
    found = division.div(one, other)
    assert torch.isnan(found.lower).all()
    assert torch.isnan(found.upper).all()
    step = division.div_relaxation(one, other)
    carried, constant = step.back(torch.ones(1, 1, 1))
    total = constant + sum(part.sum() for _, part in carried) - step.error.sum()
    assert torch.isnan(total).all()


def test_the_relaxation_is_exact_to_first_order():
    case, slack = DIVISION["positive"], []
    for radius in (1e-3, 1e-4):
        arguments = box(case, radius, torch.float64)
        rows = torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(2)).double()
        (one, reach), (two, spread) = (each.centre_and_radius() for each in arguments)
        slopes = (1 / two).abs() * reach + (one / two.square()).abs() * spread
        first = (rows * (one / two).unsqueeze(1)).flatten(2).sum(2)
        first = first - (rows.abs() * slopes.unsqueeze(1)).flatten(2).sum(2)
        slack.append((first - lowest(case, arguments, rows)).max())
    assert slack[0] < 0.01
    assert slack[1] < 0.02 * slack[0]


def test_an_operand_that_is_no_number_is_refused():
    value = Interval(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(Unsupported, match="an operand of type str"):
        TABLE[truediv].interval("1", value)
