"""Bounds of the logits hold, for every operator, and are as tight as theory says."""

from __future__ import annotations

import weakref
from fractions import Fraction
from itertools import product
from operator import add, mul, sub

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_triguard import Classifier, verification
from pytest_triguard.verification import network as walk
from pytest_triguard.verification.intervals import Ball, Interval
from pytest_triguard.verification.operators import (
    Unsupported,
    activations,
    affine,
    arithmetic,
    convolution,
    max_pooling,
    pooling,
    rectifiers,
    scaling,
    shape,
    smooth,
)
from tests.verification.zoo import ZOO, exact_logits, images, network, points_inside

BOUNDS = ["alpha_crown", "crown", "crown_ibp", "ibp"]
few = settings(max_examples=8, deadline=None)
names = pytest.mark.parametrize("name", ZOO)


@names
@few
@given(
    method=st.sampled_from(BOUNDS),
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([1e-4, 0.01, 0.1, 1.0]),
)
def test_every_output_of_the_box_is_inside_the_bounds(method, name, seed, eps):
    subject = Classifier(network(name, seed), mean=0.4, std=0.3)
    clean = images(name, 2, seed)
    lower, upper = (clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1)
    low, high = verification.bounds(subject, lower, upper, method=method)
    for row in range(len(clean)):
        logits = exact_logits(subject, points_inside(lower[row], upper[row], 64, seed))
        room = 1e-12 * logits.abs().max()
        assert (logits >= low[row] - room).all()
        assert (logits <= high[row] + room).all()


@pytest.mark.parametrize("method", BOUNDS)
@names
def test_bounds_of_a_point_are_the_logits(method, name):
    subject, clean = Classifier(network(name)), images(name, 4)
    low, high = verification.bounds(subject, clean, clean, method=method)
    logits = exact_logits(subject, clean)
    assert torch.allclose(low, logits, rtol=0, atol=1e-11)
    assert torch.allclose(high, logits, rtol=0, atol=1e-11)
    assert (low < high).all()


@pytest.mark.parametrize("method", ["ibp"])
@names
def test_bounds_of_a_larger_box_hold_those_of_a_smaller_one(method, name):
    subject, clean = Classifier(network(name)), images(name, 3)
    last = verification.bounds(subject, clean, clean, method=method)
    for eps in (0.01, 0.05, 0.2):
        low, high = verification.bounds(subject, clean - eps, clean + eps, method=method)
        assert (low < last[0]).all()
        assert (high > last[1]).all()
        last = low, high


@names
@few
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.0, 1e-6, 0.05]))
def test_bounds_computed_in_float32_hold_those_computed_in_float64(name, seed, eps):
    subject = Classifier(network(name, seed, torch.float32), mean=0.4, std=0.3)
    clean = images(name, 2, seed, torch.float32)
    box = clean - eps, clean + eps
    exact = verification.bounds(subject, *box, method="ibp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "supports_float64", lambda device: False)
        rough = verification.bounds(subject, *box, method="ibp")
    assert rough[0].dtype == torch.float32
    assert (rough[0].double() <= exact[0]).all()
    assert (rough[1].double() >= exact[1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@few
@given(data=st.data())
def test_a_product_holds_its_exact_rational_range(dtype, data):
    """The extremes of a linear layer over a box, in rational arithmetic, at any scale."""
    number = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1, max_value=1)
    scale = data.draw(st.sampled_from([1e-8, 1.0, 1e8]))
    row = [data.draw(number) * scale for _ in range(5)]
    bias = data.draw(number) * scale
    centre = [data.draw(number) for _ in range(5)]
    eps = data.draw(st.sampled_from([0.0, 1e-8, 0.25]))
    weight = torch.tensor([row], dtype=dtype)
    offset = torch.tensor([bias], dtype=dtype)
    middle = torch.tensor([centre], dtype=dtype)
    lower, upper = middle - eps, middle + eps
    found = affine.linear(Interval(lower, upper), weight, offset)
    ends = [
        (Fraction(w) * Fraction(low), Fraction(w) * Fraction(high))
        for w, low, high in zip(
            weight[0].tolist(), lower[0].tolist(), upper[0].tolist(), strict=True
        )
    ]
    least = Fraction(offset.item()) + sum(min(pair) for pair in ends)
    most = Fraction(offset.item()) + sum(max(pair) for pair in ends)
    assert Fraction(found.lower.item()) <= least
    assert Fraction(found.upper.item()) >= most


def exact_product(row, values):
    return sum(
        Fraction(w) * Fraction(x) for w, x in zip(row.tolist(), values.tolist(), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_that_nearly_cancels_holds_its_exact_rational_value(dtype):
    """Here the rounding error is far larger than the result."""
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(50, 20, generator=generator, dtype=dtype)
    values = torch.rand(1, 20, generator=generator, dtype=dtype)
    weight, values = torch.cat([weight, -weight], 1), torch.cat([values, values * (1 + 1e-5)], 1)
    found = affine.linear(Interval(values, values), weight)
    for place, row in enumerate(weight):
        exact = exact_product(row, values[0])
        assert Fraction(found.lower[0, place].item()) <= exact
        assert Fraction(found.upper[0, place].item()) >= exact


def test_batch_normalisation_holds_its_exact_rational_value():
    """Variance and eps are chosen so that the root is rational."""
    values = torch.linspace(-3, 3, 64).view(-1, 1, 1, 1)
    mean, variance = torch.tensor([0.3]), torch.tensor([0.5])
    weight, bias = torch.tensor([-1.7]), torch.tensor([0.1])
    found = scaling.batch_norm(
        Interval(values, values), mean, variance, weight, bias, eps=2.25 - 0.5
    )
    for place, value in enumerate(values.flatten().tolist()):
        exact = (Fraction(value) - Fraction(mean.item())) / Fraction(3, 2)
        exact = exact * Fraction(weight.item()) + Fraction(bias.item())
        assert Fraction(found.lower[place].item()) <= exact <= Fraction(found.upper[place].item())


def test_an_average_holds_its_exact_rational_value():
    values = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    found = pooling.avg_pool2d(Interval(values, values), 5)
    for place in range(3):
        exact = sum(Fraction(each) for each in values[place].flatten().tolist()) / 25
        assert Fraction(found.lower[place].item()) <= exact <= Fraction(found.upper[place].item())


@pytest.mark.parametrize("rule", [arithmetic.add, arithmetic.sub, arithmetic.mul])
def test_arithmetic_between_values_holds_its_exact_rational_range(rule):
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 200, 2, generator=generator).sort(2).values
    found = rule(Interval(first[:, 0], first[:, 1]), Interval(second[:, 0], second[:, 1]))
    exact = {arithmetic.add: add, arithmetic.sub: sub, arithmetic.mul: mul}[rule]
    for place in range(200):
        values = [
            exact(Fraction(one), Fraction(two))
            for one in first[place].tolist()
            for two in second[place].tolist()
        ]
        assert Fraction(found.lower[place].item()) <= min(values)
        assert Fraction(found.upper[place].item()) >= max(values)


@pytest.mark.parametrize(
    ("rule", "function"),
    [
        (smooth.SIGMOID["interval"], torch.sigmoid),
        (smooth.TANH["interval"], torch.tanh),
        (rectifiers.leaky_relu, functional.leaky_relu),
    ],
)
def test_rounding_activations_hold_the_value_in_higher_precision(rule, function):
    values = torch.linspace(-100, 100, 4001)
    found = rule(Interval(values, values))
    exact = function(values.double())
    assert (found.lower.double() <= exact).all()
    assert (found.upper.double() >= exact).all()
    assert torch.allclose(found.lower, found.upper, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("rule", "function"),
    [
        (rectifiers.relu, functional.relu),
        (activations.RELU6["interval"], functional.relu6),
        (rectifiers.leaky_relu, functional.leaky_relu),
        (activations.HARDTANH["interval"], functional.hardtanh),
        (smooth.SIGMOID["interval"], torch.sigmoid),
        (smooth.TANH["interval"], torch.tanh),
    ],
)
def test_activations_are_bounded_by_their_ends(rule, function):
    ends = torch.linspace(-9, 9, 37, dtype=torch.float64)
    lower, upper = (each.flatten() for each in torch.meshgrid(ends, ends, indexing="ij"))
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
    found = rule(Interval(lower, upper))
    assert (found.lower <= function(lower)).all()
    assert (found.upper >= function(upper)).all()
    assert torch.allclose(found.lower, function(lower), rtol=1e-14, atol=1e-300)
    assert torch.allclose(found.upper, function(upper), rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 1, "dilation": 2},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0), "ceil_mode": True},
    ],
    ids=["overlapping", "dilated", "uneven"],
)
def test_max_pooling_is_exact_over_all_vertices(arguments):
    """The bounds are reached: nothing is lost where windows overlap."""
    generator = torch.Generator().manual_seed(3)
    lower = torch.randn(1, 1, 3, 4, generator=generator, dtype=torch.float64)
    upper = lower + torch.rand(1, 1, 3, 4, generator=generator, dtype=torch.float64)
    corners = torch.tensor(list(product([0.0, 1.0], repeat=12))).double().view(-1, 1, 3, 4)
    outputs = functional.max_pool2d(lower + corners * (upper - lower), **arguments)
    found = max_pooling.max_pool2d(Interval(lower, upper), **arguments)
    assert torch.allclose(found.lower[0], outputs.amin(0), atol=1e-15)
    assert torch.allclose(found.upper[0], outputs.amax(0), atol=1e-15)


def test_a_convolution_is_exact_over_all_vertices():
    generator = torch.Generator().manual_seed(4)
    layer = nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=1, dilation=(1, 2), groups=2).double()
    lower = torch.randn(1, 2, 2, 3, generator=generator, dtype=torch.float64)
    upper = lower + torch.rand(1, 2, 2, 3, generator=generator, dtype=torch.float64)
    corners = torch.tensor(list(product([0.0, 1.0], repeat=12))).double().view(-1, 2, 2, 3)
    with torch.no_grad():
        outputs = layer(lower + corners * (upper - lower))
        found = convolution.conv2d(Interval(lower, upper), **convolution.conv2d_arguments(layer))
    assert torch.allclose(found.lower[0], outputs.amin(0), atol=1e-13)
    assert torch.allclose(found.upper[0], outputs.amax(0), atol=1e-13)


@pytest.mark.parametrize("size", [1, 3], ids="{0}x{0}".format)
@pytest.mark.parametrize("channels", [1, 4])
def test_a_convolution_in_float32_is_bounded_in_any_layout(size, channels):
    """Its result has the channels last, where the next convolution is fastest."""
    generator = torch.Generator().manual_seed(5)
    layer = nn.Conv2d(channels, 6, size, padding=size // 2)
    centre = torch.randn(2, channels, 4, 5, generator=generator)
    with torch.no_grad():
        bounds = [
            convolution.conv2d(
                Interval(centre - 0.1, centre + 0.1).rearranged(
                    lambda values, layout=layout: values.to(memory_format=layout)
                ),
                **convolution.conv2d_arguments(layer),
            )
            for layout in (torch.contiguous_format, torch.channels_last)
        ]
        exact = layer.double()(centre.double())
        reach = functional.conv2d(
            0.1 * torch.ones_like(exact[:, :1]).expand(-1, channels, -1, -1),
            layer.weight.abs(),
            None,
            1,
            size // 2,
        )
    for found in bounds:
        assert found.lower.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(found.lower.double(), exact - reach, atol=1e-4)
        assert torch.allclose(found.upper.double(), exact + reach, atol=1e-4)
        assert (found.lower <= exact - reach + 1e-7).all()


@pytest.mark.parametrize(
    ("norm", "dual", "padding"), [("l2", 2, 0), ("l2", 2, 2), ("l1", torch.inf, 0)]
)
def test_a_product_over_a_ball_is_its_dual_norm(norm, dual, padding):
    """Reached exactly where the box around the ball does not cut in."""
    layer = nn.Conv2d(4, 6, (2, 3), groups=2, padding=padding, stride=(1, 2)).double()
    generator = torch.Generator().manual_seed(6)
    centre = torch.randn(3, 4, 4, 5, generator=generator, dtype=torch.float64)
    scale = torch.rand(1, 4, 1, 1, generator=generator, dtype=torch.float64) + 0.5
    scale = scale.expand(1, 4, 4, 5)
    radius = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    wide = torch.full_like(centre, 1e3)
    ball = Ball(centre, scale, radius, norm)
    with torch.no_grad():
        layer.weight.mul_(0.1)
        value = layer(centre)
        rows = torch.autograd.functional.jacobian(layer, centre[:1])[0, ..., 0, :, :, :]
        found = convolution.conv2d(
            Interval(-wide, wide, ball), **convolution.conv2d_arguments(layer)
        )
    length = torch.linalg.vector_norm((rows * scale).flatten(-3), ord=dual, dim=-1)
    reach = radius.view(3, 1, 1, 1) * length
    assert torch.allclose(found.lower, value - reach, atol=1e-12)
    assert torch.allclose(found.upper, value + reach, atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_overflow_leaves_no_finite_bound_behind(sign):
    """A sum that overflowed says nothing, also after an activation that would hide it."""
    ends = torch.full((1, 3), 8e307, dtype=torch.float64)
    found = affine.linear(Interval(ends, ends), sign * torch.ones(1, 3, dtype=torch.float64))
    for rule in (rectifiers.relu, smooth.TANH["interval"], activations.RELU6["interval"]):
        bounded = rule(found)
        assert torch.isnan(bounded.lower if sign > 0 else bounded.upper).all()


VALUE = Interval(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
STATISTICS = torch.zeros(3), torch.ones(3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: shape.dropout(VALUE, 0.5, training=True),
        lambda: shape.RESHAPE["interval"](VALUE, torch.float64),
        lambda: max_pooling.max_pool2d(VALUE, 2, return_indices=True),
        lambda: pooling.avg_pool2d(VALUE, 2, divisor_override=-2),
        lambda: pooling.mean(VALUE),
        lambda: max_pooling.amax(VALUE, (-4, 1)),
        lambda: scaling.batch_norm(VALUE, *STATISTICS, training=True),
        lambda: scaling.batch_norm(VALUE, None, None),
        lambda: affine.linear(VALUE, torch.ones(4)),
        lambda: arithmetic.add(VALUE, VALUE, alpha=2),
        lambda: arithmetic.sub(VALUE, 1.0, alpha=2),
        lambda: arithmetic.mul(VALUE, "2"),
        lambda: activations.CLAMP["interval"](VALUE, torch.zeros(4)),
        lambda: rectifiers.leaky_relu(VALUE, float("nan")),
    ],
)
def test_a_call_that_a_rule_does_not_know_is_refused(call):
    with pytest.raises(Unsupported):
        call()


class Alive(TorchFunctionMode):
    """Counts the tensors of a size that are alive at once."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.most = numel, 0
        self.tensors = weakref.WeakValueDictionary()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.numel:
            self.tensors[id(result)] = result
            self.most = max(self.most, len(self.tensors))
        return result


def test_a_deeper_network_holds_no_more_values_at_once():
    most = []
    for depth in (3, 12):
        layers = [each for _ in range(depth) for each in (nn.Linear(6, 6), nn.ReLU())]
        subject = Classifier(nn.Sequential(nn.Flatten(), *layers))
        box = torch.zeros(7, 1, 2, 3)
        with Alive(7 * 6) as alive:
            verification.bounds(subject, box, box, method="ibp")
        most.append(alive.most)
    assert most[0] == most[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", BOUNDS)
def test_bounds_are_the_same_in_inference_mode(method, dtype):
    """Derivatives are taken of some, and of inputs that were made there."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    subject = Classifier(module.append(nn.Linear(8, 3)).to(dtype).eval())
    lower = torch.rand(2, 1, 2, 2, dtype=dtype) / 2
    expected = verification.bounds(subject, lower, lower + 0.3, method=method)
    with torch.inference_mode():
        found = verification.bounds(subject, lower.clone(), lower + 0.3, method=method)
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-12, atol=1e-12)
