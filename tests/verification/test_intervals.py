"""Two forms of an interval: whatever is rounded, both hold the value, and so does what is made."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pytest_triguard import Classifier
from pytest_triguard.verification.intervals import ROOM, Ball, Interval
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import (
    affine,
    arithmetic,
    arranging,
    pooling,
    rectifiers,
    scaling,
)
from pytest_triguard.verification.operators import shape as shapes

UNIT = {torch.float32: Fraction(1, 2**24), torch.float64: Fraction(1, 2**53)}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
few = settings(max_examples=60, deadline=None)
ends = st.lists(
    st.tuples(
        st.floats(-1e4, 1e4, width=32),
        st.floats(0, 1, width=32),
        st.sampled_from([0, 1e-6, 1, 1e4]),
    ),
    min_size=4,
    max_size=12,
)


def interval(drawn, dtype, *, positive=False):
    lower = torch.tensor([[low for low, _, _ in drawn]], dtype=dtype)
    lower = lower.abs() if positive else lower
    upper = lower + torch.tensor([[share * scale for _, share, scale in drawn]], dtype=dtype)
    return Interval(lower, upper, positive=positive)


def exact(values):
    return [Fraction(each) for each in values.flatten().tolist()]


@DTYPES
@pytest.mark.parametrize("positive", [False, True])
@few
@given(drawn=ends, share=st.sampled_from([16, 100, 3000]))
def test_centre_and_radius_hold_the_ends_and_the_share(dtype, positive, drawn, share):
    value, unit = interval(drawn, dtype, positive=positive), UNIT[dtype]
    least = [float(share * unit)] * len(drawn)
    for low, high, c, r, s in zip(
        exact(value.lower),
        exact(value.upper),
        *map(exact, value.parts(least[0])),
        least,
        strict=True,
    ):
        assert max(high - c, c - low) + Fraction(s) * abs(c) <= r * (1 + 16 * unit) + Fraction(
            1, 10**37
        )
    centre, radius, room = value.centred()
    for low, high, c, r in zip(
        *map(exact, (value.lower, value.upper, centre, radius)), strict=True
    ):
        assert max(high - c, c - low) * (1 + room * unit) + room * unit * abs(c) <= r


@DTYPES
@few
@given(drawn=ends, seed=st.integers(0, 99))
def test_what_is_made_of_products_holds_what_is_made_of_their_exact_ends(dtype, drawn, seed):
    """A product, scaled, beside a value, summed with itself: in rational numbers at corners."""
    generator = torch.Generator().manual_seed(seed)
    value = interval(drawn, dtype)
    weight = torch.randn(2, len(drawn), generator=generator).to(dtype)
    bias = torch.randn(2, generator=generator).to(dtype)
    mean, factor = torch.randn(2, generator=generator).to(dtype), torch.randn(2).to(dtype)
    one = torch.ones(2, dtype=dtype)
    product = affine.linear(value, weight, bias)
    scaled = scaling.batch_norm(product, mean, one, factor, bias, eps=0.0)
    found = arithmetic.add(shapes.cat((scaled, scaled), 1), shapes.cat((product, product), 1))
    for share in (0, 1):
        point = [
            (low, high)[(place + share) % 2]
            for place, (low, high) in enumerate(
                zip(exact(value.lower), exact(value.upper), strict=True)
            )
        ]
        for row in range(2):
            own = sum(w * x for w, x in zip(exact(weight[row]), point, strict=True))
            own += exact(bias)[row]
            total = (own - exact(mean)[row]) * exact(factor)[row] + exact(bias)[row] + own
            for place in (row, row + 2):
                assert exact(found.lower)[place] <= total <= exact(found.upper)[place]


def test_a_centre_that_overflowed_leaves_no_bound():
    """Not even behind a function that would make an infinite value finite."""
    big = torch.full((1, 2), -3e38)
    product = affine.linear(Interval(big, big), torch.ones(1, 2))
    assert product.is_centred
    for found in (product, rectifiers.relu(product), pooling.SUM["interval"](product, 1)):
        assert not (torch.isfinite(found.lower).any())
        assert not (torch.isfinite(found.upper).any())
    assert rectifiers.relu(product).lower.isnan().all()


def test_a_coarser_dtype_moves_all_bounds_outward():
    generator = torch.Generator().manual_seed(0)
    lower = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    ball = Ball(lower, torch.rand(1, 4, dtype=torch.float64), torch.rand(3).double(), "l2")
    coarse = Interval(lower, lower + 1e-9, ball).converted(torch.float32)
    assert coarse.dtype == torch.float32
    assert (coarse.lower.double() <= lower).all()
    assert (coarse.upper.double() >= lower + 1e-9).all()
    direction = torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    point = lower + ball.scale * direction * ball.radius[:, None]
    moved = (point - coarse.ball.centre.double()) / coarse.ball.scale.double()
    assert (moved.norm(dim=1) <= coarse.ball.radius.double()).all()


def test_the_ball_of_a_value_off_by_nothing_stays():
    ball = Ball(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1), "l2")
    value = Interval(torch.zeros(1, 3), torch.ones(1, 3), ball)
    same = value.widened(torch.zeros(()))
    assert 1 <= same.ball.radius.item() < 1 + 1e-5
    assert value.widened(torch.tensor([[0.1, 0.0, 0.0]])).ball.radius.isinf()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_normalisation_in_the_weights_is_as_tight_as_one_of_its_own(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Flatten())
    nn.init.normal_(module[1].running_mean)
    nn.init.uniform_(module[1].running_var, 0.1, 2)
    nn.init.normal_(module[1].weight)
    box = Interval(torch.rand(2, 2, 4, 4), torch.rand(2, 2, 4, 4) + 1).converted(dtype)
    with Classifier(module.eval()).prepared() as model:
        net = Network(model, torch.float32)
        net = net.own if dtype == torch.float32 else net
        merged = net.enclose(box).logits
        apart = Network(model, torch.float32)
        apart = apart.own if dtype == torch.float32 else apart
        apart._norms = {}
        single = apart.enclose(box).logits
    tolerance = 1e-3 if dtype == torch.float32 else 1e-11
    assert torch.allclose(merged.lower, single.lower, rtol=0, atol=tolerance)
    assert torch.allclose(merged.upper, single.upper, rtol=0, atol=tolerance)
    assert not torch.equal(merged.lower, single.lower)


def test_converted_weights_are_kept_up_to_a_limit(monkeypatch):
    module = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    box = Interval(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2))
    with Classifier(module).prepared() as model:
        network = Network(model, torch.float32).own
        first = network.enclose(box).logits
        assert len(network._kept) == 2
        assert torch.equal(network.enclose(box).logits.lower, first.lower)
        monkeypatch.setattr("pytest_triguard.verification.network._KEPT", 100)
        small = Network(model, torch.float32).own
        assert torch.equal(small.enclose(box).logits.lower, first.lower)
        assert len(small._kept) == 1


def test_the_room_pays_for_the_longest_chain():
    assert ROOM >= 2 * scaling._SCALING


def test_a_ball_without_extent_hides_no_rounding():
    """In a padding nothing varies, so that no radius could pay for what a scaling rounds there."""
    inner = torch.rand(1, 1, 2, 2)
    ball = Ball(inner, torch.ones(1, 1, 2, 2), torch.tensor([0.01]), "l2")
    padded = arranging.pad(Interval(inner - 0.01, inner + 0.01, ball), (1, 1, 1, 1))
    factor, centre = torch.full((1, 1, 1, 1), 1.3), torch.full((1, 1, 1, 1), 1234567.8)
    shift = factor * centre + 0.3
    moved = scaling.scaled(padded, factor, centre, shift)
    border = functional.pad(torch.zeros(1, 2, 2), (1, 1, 1, 1), value=1.0).flatten(1)
    found = affine.linear(moved.rearranged(lambda values: values.flatten(1)), border)
    exact = 12 * (shift.double() - factor.double() * centre.double())
    assert found.lower.double() <= exact <= found.upper.double()
    assert scaling.scaled(padded, torch.zeros_like(factor), centre, shift).ball is not None


CHANGES = {
    "ends": lambda value: (value.lower, value.upper),
    "fresh ends": lambda value: value.fresh_ends(),
    "parts": lambda value: value.parts(1e-3),
    "centre and radius": lambda value: value.centre_and_radius(),
    "centred": lambda value: value.centred()[:2],
    "magnitude": lambda value: (value.magnitude, value.largest),
    "moved": lambda value: CHANGES["ends"](value.rearranged(lambda ends: ends.flip(1))),
    "moved and padded": lambda value: CHANGES["parts"](
        value.rearranged(lambda ends: functional.pad(ends, (1, 2)))
    ),
    "rectified": lambda value: CHANGES["ends"](value.rectified()),
    "settled": lambda value: (value.settle(), *CHANGES["ends"](value))[1:],
    "sum": lambda value: CHANGES["ends"](arithmetic.add(value, value)),
    "product": lambda value: CHANGES["ends"](affine.linear(value, torch.eye(4).to(value.dtype))),
}


@DTYPES
@pytest.mark.parametrize("change", CHANGES)
def test_a_rectified_value_is_one_with_rectified_ends(change, dtype):
    lower = torch.tensor([[-2.0, -1.0, 0.5, float("nan")]], dtype=dtype)
    value = Interval(lower, lower + 1.5)
    own = value.rectified()
    plain = Interval(lower.relu(), (lower + 1.5).relu(), positive=True)
    assert own.shape == plain.shape
    assert own.dtype == dtype
    assert own.positive
    assert not own.is_centred
    for found, expected in zip(CHANGES[change](own), CHANGES[change](plain), strict=True):
        assert torch.equal(found.nan_to_num(9.0), expected.nan_to_num(9.0))


def test_a_rectified_value_keeps_no_ends():
    own = Interval(-torch.ones(1, 2), torch.ones(1, 2)).rectified()
    own.lower.add_(1.0)
    own.fresh_ends()[1].add_(1.0)
    assert own.lower.tolist() == [[0.0, 0.0]]
    assert own.upper.tolist() == [[1.0, 1.0]]


def test_the_largest_magnitude_of_a_rectified_value_is_known():
    value = Interval(-3 * torch.ones(1, 2), torch.ones(1, 2))
    assert value.largest.tolist() == [3.0]
    assert value.rectified().largest.tolist() == [3.0]
    assert value.rectified().rearranged(lambda ends: ends.flip(1)).largest.tolist() == [3.0]
