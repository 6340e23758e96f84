"""Layer, group and instance normalisation are bounded with their statistics, not around them."""

from __future__ import annotations

from itertools import product
from math import sqrt

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import TABLE, Unsupported
from tests.verification.enclosures import box, lowest
from tests.verification.operator_table import NORMALISATION


def ends_by_search(lower, upper):
    """Return the range of each standardised value of four, by corners and by a fine grid."""
    shares = torch.tensor(list(product(torch.linspace(0, 1, 9).tolist(), repeat=4))).double()
    values = lower + shares * (upper - lower)
    found = functional.layer_norm(values, (4,), eps=1e-5)
    return found.amin(0), found.amax(0)


def test_the_interval_is_much_tighter_than_that_of_the_parts():
    """Centring, squares, root and product on their own lose three times as much and more."""
    generator = torch.Generator().manual_seed(1)
    for radius in (0.01, 0.1):
        middle = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        lower, upper = middle - radius, middle + radius
        least, most = ends_by_search(lower, upper)
        (found,) = (TABLE[nn.LayerNorm].interval(Interval(lower, upper), (4,)),)
        assert (found.lower <= least).all()
        assert (found.upper >= most).all()
        assert ((found.upper - found.lower) <= 4 * (most - least)).all()


def test_no_result_exceeds_the_root_of_the_size():
    """However wide the box, and reached in the limit."""
    lower = torch.full((1, 10), -1e6, dtype=torch.float64)
    found = TABLE[nn.LayerNorm].interval(Interval(lower, -lower), (10,))
    assert torch.allclose(found.upper, torch.full_like(lower, sqrt(9)), rtol=1e-9)
    assert torch.allclose(found.lower, torch.full_like(lower, -sqrt(9)), rtol=1e-9)


def test_the_relaxation_is_exact_to_first_order():
    """Where the box is small the bound of rows is that of their gradient, less second order."""
    case = NORMALISATION["layer"]
    slack = []
    for radius in (1e-3, 1e-4):
        arguments = box(case, radius, torch.float64)
        generator = torch.Generator().manual_seed(2)
        rows = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
        middle, reach = arguments[0].centre_and_radius()
        kwargs = {
            name: value.double() if isinstance(value, torch.Tensor) else value
            for name, value in case.kwargs.items()
        }

        def product_of_rows(values, rows=rows, kwargs=kwargs):
            return (rows * functional.layer_norm(values, **kwargs).unsqueeze(1)).flatten(2).sum(2)

        gradient = torch.autograd.functional.jacobian(product_of_rows, middle)
        gradient = torch.stack([gradient[place, :, place] for place in range(2)])
        first = product_of_rows(middle) - (gradient.abs() * reach.unsqueeze(1)).flatten(2).sum(2)
        slack.append((first - lowest(case, arguments, rows)).max())
    assert slack[0] < 0.02
    assert slack[1] < 0.02 * slack[0]


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0, 5.0])
def test_moments_and_lines_hold_at_every_corner(radius):
    """What the remainder of a whole row would hide: magnitudes, variance, root and its lines."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        middle = torch.randn(1, 6, generator=generator, dtype=torch.float64)
        value = Interval(middle - radius, middle + radius)
        step = TABLE[nn.LayerNorm].relaxation(value, (6,), eps=0.01)
        known = step.known
        shares = torch.tensor(list(product([0.0, 1.0], repeat=6))).double()
        points = value.lower + shares * (value.upper - value.lower)
        centred = points - points.mean(1, keepdim=True)
        variance = centred.square().mean(1) + 0.01
        root = variance.rsqrt()
        assert (centred.abs() >= known.least[0]).all()
        assert (centred.abs() <= known.most[0]).all()
        assert variance.min() >= known.variance[0]
        assert variance.max() <= known.variance[1]
        assert ((root - known.root[0]).abs() <= known.root[1] + 1e-15).all()
        along = (2 * known.centre[0, 0] * centred).mean(1)
        fall, below, drop, above = (each.item() for each in step.lines)
        assert (root >= below - fall * along).all()
        assert (root <= above - drop * along).all()


def test_overflow_leaves_no_finite_bound_behind():
    ends = torch.tensor([[1e200, -1e200, 0.0, 1.0]], dtype=torch.float64)
    found = TABLE[nn.LayerNorm].interval(Interval(ends, ends), (4,))
    assert torch.isnan(found.lower).all()
    assert torch.isnan(found.upper).all()


VALUE = Interval(torch.zeros(2, 6, 4), torch.ones(2, 6, 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TABLE[nn.LayerNorm].interval(VALUE, (6,)), "normalized_shape"),
        (lambda: TABLE[nn.LayerNorm].interval(VALUE, (2, 6, 4)), "normalized_shape"),
        (
            lambda: TABLE[nn.InstanceNorm2d].interval(VALUE, torch.zeros(6), torch.ones(6)),
            "running statistics",
        ),
    ],
)
def test_a_call_that_a_rule_does_not_know_is_refused(call, words):
    with pytest.raises(Unsupported, match=words):
        call()
