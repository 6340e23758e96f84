"""Softmax, matrix products and attention are bounded soundly, and jointly where that pays."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from scipy.optimize import linprog
from torch import nn
from torch.nn import functional

from pytest_triguard import Classifier, verification
from pytest_triguard.errors import ModelError
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import TABLE, Unsupported, products
from tests.verification.enclosures import RADII, Case, box, lowest
from tests.verification.operator_table import ATTENTION


def averaged(scores, values):
    """Weights of a softmax times values: what `attended` is for."""
    return products.attended(scores.softmax(-1), values)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_long_sums_in_float32_hold_the_value_in_float64(scale):
    """Where terms cancel, rounding is much larger than the result."""
    generator = torch.Generator().manual_seed(7)
    one, two = (scale * torch.randn(1, 3, 3000, generator=generator) for _ in range(2))
    one = torch.cat([one, -one * (1 + 1e-6)], 2)
    two = torch.cat([two, two], 2).mT
    found = products.matmul(Interval(one, one), Interval(two, two))
    value = one.double() @ two.double()
    assert (found.lower.double() <= value).all()
    assert (found.upper.double() >= value).all()
    found = TABLE[torch.softmax].interval(Interval(one, one), 2)
    value = one.double().softmax(2)
    assert (found.lower.double() <= value).all()
    assert (found.upper.double() >= value).all()
    average = products.attended_interval(found, Interval(two, two))
    value = value @ two.double()
    assert (average.lower.double() <= value).all()
    assert (average.upper.double() >= value).all()


def corners(argument):
    shares = torch.tensor(list(product([0.0, 1.0], repeat=argument.lower.numel()))).double()
    flat = argument.lower.flatten() + shares * (argument.upper - argument.lower).flatten()
    return flat.view(-1, *argument.shape[1:])


def test_the_softmax_is_exact_over_all_vertices():
    generator = torch.Generator().manual_seed(2)
    for scale in (0.1, 3.0, 200.0):
        lower = scale * torch.randn(1, 6, generator=generator, dtype=torch.float64)
        upper = lower + scale * torch.rand(1, 6, generator=generator, dtype=torch.float64)
        value = Interval(lower, upper)
        outputs = corners(value).softmax(1)
        found = TABLE[torch.softmax].interval(value, 1)
        assert torch.allclose(found.lower[0], outputs.amin(0), rtol=1e-10, atol=1e-300)
        assert torch.allclose(found.upper[0], outputs.amax(0), rtol=1e-10, atol=1e-300)


def test_the_product_is_at_most_half_as_wide_again_as_its_range():
    generator = torch.Generator().manual_seed(3)
    for width in (1.0, 1e-5):
        one, two = (
            Interval(middle - width, middle + width)
            for shape in ((2, 3), (3, 2))
            for middle in [torch.randn(1, *shape, generator=generator, dtype=torch.float64)]
        )
        every = torch.stack([x @ y for x in corners(one) for y in corners(two)])
        found = products.matmul(one, two)
        true = every.amax(0) - every.amin(0)
        assert (found.lower[0] <= every.amin(0)).all()
        assert (found.upper[0] >= every.amax(0)).all()
        limit = 1.5 if width == 1.0 else 1 + 1e-4
        assert ((found.upper - found.lower)[0] <= limit * true).all()


def test_an_average_is_the_optimum_of_its_linear_programme():
    generator = torch.Generator().manual_seed(4)
    for size in (1, 2, 5, 16):
        scores = torch.randn(1, 1, size, generator=generator, dtype=torch.float64)
        weights = TABLE[torch.softmax].interval(Interval(scores - 0.5, scores + 1), 2)
        ends = torch.randn(2, 1, size, 1, generator=generator, dtype=torch.float64).sort(0).values
        found = products.attended_interval(weights, Interval(ends[0], ends[1]))
        limits = torch.stack([weights.lower.flatten(), weights.upper.flatten()], 1).tolist()
        for sign, end, bound in ((1, ends[0], found.lower), (-1, ends[1], found.upper)):
            aims = (sign * end.flatten()).tolist()
            best = linprog(aims, A_eq=[[1.0] * size], b_eq=1, bounds=limits)
            assert bound.item() == pytest.approx(sign * best.fun, abs=1e-8)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_average_holds_for_weights_that_add_up_to_one(radius, dtype):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        case = Case(None, averaged, ((2, 3, 4), (2, 4, 3)))
        scores, values = box(case, radius, dtype, seed)
        weights = TABLE[torch.softmax].interval(scores, -1)
        found = products.attended_interval(weights, values)
        step = products.attended_relaxation(weights, values)
        rows = torch.randn(2, 3, 2, 3, 3, generator=generator, dtype=dtype)
        carried, constant = step.back(rows)
        for _ in range(20):
            share = torch.rand(2, *scores.shape, generator=generator).double().round()
            inner = scores.lower.double() + share[0] * (scores.upper - scores.lower).double()
            other = torch.rand(values.shape, generator=generator).double()
            other = values.lower.double() + other * (values.upper - values.lower).double()
            chance = inner.softmax(-1)
            result = chance @ other
            room = 1e-13 * (1 + result.abs().max())
            assert (found.lower.double() <= result + room).all()
            assert (found.upper.double() >= result - room).all()
            left = (rows.double() * result.unsqueeze(1)).flatten(2).sum(2)
            left = left + (rows.double().abs() * step.error.double().unsqueeze(1)).flatten(2).sum(2)
            right = constant.double()
            for (owner, part), point in zip(carried, (chance, other), strict=True):
                assert owner is (weights if point is chance else values)
                right = right + (part.double() * point.unsqueeze(1)).flatten(2).sum(2)
            assert (left >= right - 1e-12 * right.abs().max()).all()


@pytest.mark.parametrize("name", ["softmax", "log-softmax"])
def test_the_relaxation_is_exact_to_first_order(name):
    """Where the box is small, the bound of rows is that of their gradient, less second order."""
    case, slack = ATTENTION[name], []
    for radius in (1e-2, 1e-3):
        arguments = box(case, radius, torch.float64)
        rows = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(2)).double()
        middle, reach = arguments[0].centre_and_radius()

        def product_of_rows(values, rows=rows):
            return (rows * case.own(values, -1).unsqueeze(1)).flatten(2).sum(2)

        gradient = torch.autograd.functional.jacobian(product_of_rows, middle)
        gradient = torch.stack([gradient[place, :, place] for place in range(2)])
        first = product_of_rows(middle) - (gradient.abs() * reach.unsqueeze(1)).flatten(2).sum(2)
        slack.append((first - lowest(case, arguments, rows)).max())
    assert slack[0] < 1e-3
    assert slack[1] < 0.02 * slack[0]


def test_a_wide_softmax_is_never_worse_than_its_ends():
    """Planes give way to constants, so that a row on one element is bounded as its interval is."""
    case = ATTENTION["softmax"]
    arguments = box(case, 40.0, torch.float64)
    ends = TABLE[case.key].interval(*arguments, **case.kwargs)
    rows = torch.eye(15, dtype=torch.float64).view(1, 15, 3, 5).expand(2, -1, -1, -1)
    half = (ends.upper - ends.lower).flatten(1)
    assert (lowest(case, arguments, rows) >= ends.lower.flatten(1) - half).all()
    assert (-lowest(case, arguments, -rows) <= ends.upper.flatten(1) + half).all()


def test_what_is_not_finite_leaves_no_finite_softmax():
    lower = torch.tensor([[0.0, torch.nan, 1.0]], dtype=torch.float64)
    found = TABLE[torch.softmax].interval(Interval(lower, lower), 1)
    assert torch.isnan(found.lower).all()
    assert torch.isnan(found.upper).all()


class Attending(nn.Module):
    """One layer of attention between two linear ones."""

    def __init__(self, build=None, attend=None, **arguments):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 8)
        self.attention = build(8, 2, **arguments) if build else None
        self.attend = attend
        self.last = nn.Linear(8, 3)

    def forward(self, inputs):
        hidden = self.first(inputs.flatten(1, 2))
        if self.attention is None:
            hidden = self.attend(hidden)
        else:
            hidden = self.attend(self.attention, hidden)
        return self.last(hidden.sum(1))


def self_attention(attention, hidden):
    return attention(hidden, hidden, hidden, need_weights=False)[0]


def cross_attention(attention, hidden):
    result, weights = attention(hidden[:, :2], hidden, hidden + 1)
    return result + weights.sum(-1, keepdim=True)


def by_hand(hidden):
    heads = [each.unflatten(-1, (2, 4)).transpose(1, 2) for each in (hidden, -hidden, 2 * hidden)]
    return functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def with_a_scale(hidden):
    return functional.scaled_dot_product_attention(hidden, hidden, hidden, scale=0.3)


MODULES = {
    "self": lambda: Attending(nn.MultiheadAttention, self_attention, batch_first=True),
    "no bias": lambda: Attending(
        nn.MultiheadAttention, self_attention, batch_first=True, bias=False
    ),
    "cross": lambda: Attending(nn.MultiheadAttention, cross_attention, batch_first=True),
    "own sizes": lambda: Attending(
        nn.MultiheadAttention, cross_attention, batch_first=True, kdim=8, vdim=8
    ),
    "function": lambda: Attending(None, by_hand),
    "scale": lambda: Attending(None, with_a_scale),
}


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
@pytest.mark.parametrize("name", MODULES)
def test_attention_is_bounded_as_it_is(name, method):
    module = MODULES[name]().double().eval()
    clean = torch.rand(2, 2, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    last = 0.0
    for eps in (0.0, 1e-3, 0.1):
        low, high = verification.bounds(Classifier(module), clean - eps, clean + eps, method=method)
        noise = torch.rand(50, *clean.shape, generator=torch.Generator().manual_seed(2)).double()
        with torch.no_grad():
            logits = module((clean + eps * (2 * noise - 1)).flatten(0, 1)).view(50, 2, 3)
        assert (logits >= low - 1e-12).all()
        assert (logits <= high + 1e-12).all()
        assert (high - low).mean() > last
        last = (high - low).mean()
    low, high = verification.bounds(Classifier(module), clean, clean, method=method)
    assert (high - low).max() < 1e-9


@pytest.mark.parametrize("order", list(permutations((0, 1, 2)))[:3])
def test_tokens_that_change_places_change_no_bound(order):
    """A property of attention without positions that its bounds keep."""
    module = MODULES["self"]().double().eval()
    clean = torch.rand(1, 3, 1, 3, generator=torch.Generator().manual_seed(1)).double()
    first = verification.bounds(Classifier(module), clean - 0.01, clean + 0.01, method="crown_ibp")
    moved = clean[:, list(order)]
    second = verification.bounds(Classifier(module), moved - 0.01, moved + 0.01, method="crown_ibp")
    for one, two in zip(first, second, strict=True):
        assert torch.allclose(one, two, atol=1e-10)


REFUSED = {
    "mask": (
        Attending(
            nn.MultiheadAttention,
            lambda attention, x: attention(x, x, x, attn_mask=torch.zeros(4, 4))[0],
            batch_first=True,
        ),
        "attention with a mask",
    ),
    "batch first": (
        Attending(
            nn.MultiheadAttention,
            lambda attention, x: self_attention(attention, x.transpose(0, 1)).transpose(0, 1),
        ),
        "batch_first=False",
    ),
    "added keys": (
        Attending(nn.MultiheadAttention, self_attention, batch_first=True, add_zero_attn=True),
        "added keys",
    ),
    "causal": (
        Attending(None, lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True)),
        "attention with a mask",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attention_that_is_not_known_is_refused_by_name(case):
    module, words = REFUSED[case]
    clean = torch.zeros(1, 2, 2, 3)
    with pytest.raises(ModelError, match=words):
        verification.bounds(Classifier(module), clean, clean, method="ibp")


def test_attention_with_a_hook_is_not_trusted():
    module = MODULES["self"]()
    module.attention.register_forward_hook(lambda module, inputs, output: (output[0] * 2, None))
    clean = torch.zeros(1, 2, 2, 3)
    with pytest.raises(ModelError, match=r"MultiheadAttention in .*attention.* has a hook"):
        verification.bounds(Classifier(module), clean, clean, method="ibp")


VALUE = Interval(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TABLE[torch.softmax].interval(VALUE, 0), "dim=0"),
        (lambda: TABLE[nn.Softmax].interval(VALUE, None), "dim=None"),
        (lambda: TABLE[torch.softmax].interval(VALUE, 1, dtype=torch.float64), "dtype"),
        (lambda: products.matmul(VALUE, torch.ones(4)), "a factor of 1 dimensions"),
        (lambda: products.matmul(torch.ones(3, 2, 2), VALUE.lower), "no matrix for each sample"),
        (
            lambda: products.matmul(
                VALUE, Interval(torch.zeros(2, 1, 4, 2), torch.ones(2, 1, 4, 2))
            ),
            "factors of shapes",
        ),
    ],
)
def test_a_call_that_a_rule_does_not_know_is_refused(call, words):
    with pytest.raises(Unsupported, match=words):
        call()
