"""Max-pooling with channels last inside: the same values and gradients, to the bit."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pytest_triguard.engine import lighter, max_pool
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import max_pooling
from tests.engine.looking import Looking, node_of

NODE = "_PooledBackward"
PLAIN = "MaxPool2DWithIndicesBackward0"

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture
def always(monkeypatch):
    """Let it be used however few the numbers are."""
    monkeypatch.setattr(max_pool, "_LEAST", 0)


def images(*shape, dtype=torch.float32):
    """Return numbers of which many are alike."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand(shape, generator=generator).mul(5).round().to(dtype)


def lightened(layer):
    [layer] = lighter.lighten(copy.deepcopy(layer))
    return layer


def assert_same(layer, inputs):
    """Assert that a layer gives the same values and gradients while it is held, to the bit."""
    lighter_layer = lightened(layer)
    points = inputs.clone().requires_grad_()
    expected, found = layer(points), lighter_layer(points)
    assert found.grad_fn.name() == NODE
    without = lighter_layer(inputs)
    assert without.grad_fn is None
    for each in (found, without):
        assert torch.equal(each.nan_to_num(9.0), expected.nan_to_num(9.0))
        assert each.stride() == expected.stride()
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(6)).to(inputs)
    back = [torch.autograd.grad(each, points, weights)[0] for each in (expected, found)]
    assert torch.equal(*back)
    assert back[0].stride() == back[1].stride()


# --- one layer ----------------------------------------------------------------------------------

LAYERS = {
    "side by side": nn.MaxPool2d(2),
    "overlapping": nn.MaxPool2d(3, 2, 1),
    "dilated": nn.MaxPool2d(2, 1, dilation=3),
    "oblong": nn.MaxPool2d((3, 1), (1, 2), (1, 0), (2, 1)),
    "ends outside": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
}


@DTYPES
@pytest.mark.parametrize("held", [1, 2**7, 2**18])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_what_it_was(name, held, dtype, always, monkeypatch):
    monkeypatch.setattr(max_pool, "_HELD", held)
    monkeypatch.setattr(max_pool, "_TOGETHER", 4)
    assert_same(LAYERS[name], images(3, 10, 9, 8, dtype=dtype))


@DTYPES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_pooled_as_ever(value, dtype, always):
    inputs = images(2, 8, 6, 6, dtype=dtype)
    inputs[0, 0, 1:3, 1:3] = value
    inputs[1, 2] = value
    assert_same(nn.MaxPool2d(3, 2, 1), inputs)


@settings(deadline=None)
@given(
    samples=st.integers(1, 3),
    channels=st.integers(6, 20),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 4),
    held=st.integers(1, 2000),
)
def test_any_shape_is_pooled_as_ever(samples, channels, height, width, kernel, stride, held):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(max_pool, "_LEAST", 0)
        patch.setattr(max_pool, "_HELD", held)
        assert_same(
            nn.MaxPool2d(kernel, stride, kernel // 2), images(samples, channels, height, width)
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_derivatives_of_second_order_are_right(always):
    layer = lightened(nn.MaxPool2d(2, 1))
    points = torch.rand(
        1, 6, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    assert node_of(layer, points) == NODE
    assert torch.autograd.gradcheck(layer, points, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda each: layer(each) ** 3, points)


def test_tangents_go_forward_without_a_way_back(always):
    layer, inputs = lightened(nn.MaxPool2d(2)), images(2, 6, 4, 4)
    with forward_ad.dual_level():
        pooled = layer(forward_ad.make_dual(inputs, torch.ones_like(inputs)))
        tangent = forward_ad.unpack_dual(pooled).tangent
    assert torch.equal(tangent, torch.ones(2, 6, 2, 2))


def test_a_layer_without_a_stride_has_windows_side_by_side(always):
    layer = nn.MaxPool2d(2)
    layer.stride = None
    assert_same(layer, images(2, 6, 4, 4))


def test_a_layer_can_be_called_on_each_sample(always):
    layer, inputs = nn.MaxPool2d(2), images(3, 6, 4, 4)

    def total(sample):
        return (layer(sample.unsqueeze(0)) ** 2).sum()

    expected = torch.func.vmap(torch.func.grad(total))(inputs)
    layer = lightened(layer)
    assert torch.equal(torch.func.vmap(torch.func.grad(total))(inputs), expected)


# --- where it is used ---------------------------------------------------------------------------


def test_it_is_used_where_it_takes_less_time():
    layer = lightened(nn.MaxPool2d(2))
    assert node_of(layer, images(8, 8, 32, 32)) == NODE
    assert node_of(layer, images(3, 8, 32, 32)) == PLAIN
    assert node_of(layer, images(64, 3, 32, 32)) == PLAIN
    last = images(8, 8, 32, 32).contiguous(memory_format=torch.channels_last)
    assert node_of(layer, last) == PLAIN
    assert node_of(layer, images(8, 8, 32, 32)[..., ::2]) == PLAIN
    assert node_of(layer, images(64, 32, 32)) == PLAIN
    assert node_of(layer, images(8, 8, 32, 32, dtype=torch.bfloat16)) == PLAIN


def test_places_that_are_asked_for_are_given():
    layer = nn.MaxPool2d(2, return_indices=True)
    inputs = images(8, 8, 32, 32)
    expected, places = layer(inputs)
    found, again = lightened(layer)(inputs)
    assert torch.equal(found, expected)
    assert torch.equal(places, again)


def test_a_wrong_layer_is_refused_as_ever():
    layer, inputs = nn.MaxPool2d(2, padding=2), images(8, 8, 32, 32)
    for each in (layer, lightened(layer)):
        with pytest.raises(RuntimeError, match="pad should be at most half"):
            each(inputs)


def test_whoever_looks_on_sees_the_layers_own_operator():
    layer, inputs = lightened(nn.MaxPool2d(2)), images(8, 8, 32, 32)
    with Looking() as looking:
        layer(inputs)
        assert node_of(layer, inputs) == PLAIN
    assert "contiguous" not in looking.names


def test_what_is_saved_elsewhere_is_saved_as_ever():
    layer, points = lightened(nn.MaxPool2d(2)), images(8, 8, 32, 32).requires_grad_()
    expected = torch.autograd.grad(layer(points).sum(), points)
    outputs = checkpoint(layer, points, use_reentrant=False)
    lighter.restore([layer])
    assert torch.equal(*torch.autograd.grad(outputs.sum(), points), *expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_whoever_traces_a_held_layer_sees_no_sizes_compared():
    layer, rows = lightened(nn.MaxPool2d(2)), torch.export.Dim("rows", min=1, max=1024)
    inputs = images(8, 8, 32, 32)
    exported = torch.export.export(layer, (inputs,), dynamic_shapes=({0: rows},))
    assert exported.module()(inputs[:1]).shape == (1, 8, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(layer, inputs, check_trace=False)
    assert torch.equal(traced(inputs), layer(inputs))


@DTYPES
def test_intervals_are_pooled_alike(dtype):
    lower = images(8, 8, 32, 32, dtype=dtype)
    upper = lower + images(8, 8, 32, 32, dtype=dtype).flip(0)
    found = max_pooling.max_pool2d(Interval(lower, upper), 3, 2, 1)
    assert torch.equal(found.lower, functional.max_pool2d(lower, 3, 2, 1))
    assert torch.equal(found.upper, functional.max_pool2d(upper, 3, 2, 1))
