"""Batch normalisation that goes backward without its input: the same results, and nothing left."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine import batch_norm, lighter
from pytest_triguard.engine.backward_rules import GuidedReLU
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.objectives import logit
from tests.engine.looking import Looking, node_of

NODE = "_NormalizedBackward"


@pytest.fixture
def always(monkeypatch):
    """Let it be used however few the numbers are."""
    monkeypatch.setattr(batch_norm, "_LEAST", 0)


def filled(layer):
    """Return a layer in evaluation mode with statistics and weights of its own."""
    generator = torch.Generator().manual_seed(4)
    for name, each in layer.state_dict().items():
        if each.is_floating_point():
            sign = 1.0 if name == "running_var" else -0.5
            each.copy_(torch.rand(each.shape, generator=generator, dtype=torch.float64) + sign)
    return layer.eval().requires_grad_(False)


def images(*shape, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def held(module):
    return Classifier(module).prepared()


# --- one layer ----------------------------------------------------------------------------------

LAYERS = {
    "flat": (nn.BatchNorm1d(3), (5, 3)),
    "sequence": (nn.BatchNorm1d(3), (5, 3, 4)),
    "images": (nn.BatchNorm2d(3), (5, 3, 4, 2)),
    "volumes": (nn.BatchNorm3d(3), (5, 3, 4, 2, 2)),
    "no weights": (nn.BatchNorm2d(3, affine=False), (5, 3, 4, 2)),
    "large eps": (nn.BatchNorm2d(3, eps=0.5), (5, 3, 4, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_what_it_was(name, last, dtype, always):
    layer, shape = LAYERS[name]
    layer, inputs = filled(copy.deepcopy(layer)).to(dtype), images(*shape, dtype=dtype)
    if last and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    weights = inputs.square() - inputs
    found = []
    for _ in range(2):
        points = inputs.clone().requires_grad_()
        outputs = layer(points)
        (gradient,) = torch.autograd.grad((outputs * weights).sum(), points)
        found.append((outputs, gradient))
        layers = lighter.lighten(layer)
        assert layers in ([layer], [])
    (outputs, gradient), (again, factored) = found
    assert again.grad_fn.name() == NODE != outputs.grad_fn.name()
    assert torch.equal(outputs, again)
    assert outputs.stride() == again.stride()
    assert torch.allclose(gradient, factored, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert gradient.stride() == factored.stride()


@given(
    variance=st.floats(0.0, 1e6),
    weight=st.floats(-1e3, 1e3),
    eps=st.floats(1e-12, 1.0),
)
def test_the_gradient_is_the_factor(variance, weight, eps):
    layer = nn.BatchNorm1d(1, eps=eps, dtype=torch.float64).eval().requires_grad_(False)
    layer.running_var.fill_(variance)
    layer.weight.fill_(weight)
    lighter.lighten(layer)
    points = images(2**16, 1).requires_grad_()
    outputs = layer(points)
    assert outputs.grad_fn.name() == NODE
    (gradient,) = torch.autograd.grad(outputs.sum(), points)
    expected = torch.tensor(weight / (variance + eps) ** 0.5, dtype=torch.float64)
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_derivatives_of_every_order_are_right(always):
    layer = filled(nn.BatchNorm2d(3).double())
    lighter.lighten(layer)
    points = images(2, 3, 2, 2).requires_grad_()
    assert node_of(layer, points) == NODE
    assert torch.autograd.gradcheck(layer, points, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda each: layer(each) ** 3, points)


def test_a_layer_can_be_called_on_each_sample(always):
    layer, inputs = filled(nn.BatchNorm2d(3).double()), images(4, 3, 2, 2)

    def total(sample):
        return (layer(sample.unsqueeze(0)) ** 2).sum()

    jobs = (
        lambda: torch.func.vmap(torch.func.grad(total))(inputs),
        lambda: torch.func.vmap(lambda each: layer(each.unsqueeze(0)))(inputs.requires_grad_()),
    )
    expected = [job() for job in jobs]
    lighter.lighten(layer)
    for job, known in zip(jobs, expected, strict=True):
        assert torch.allclose(job(), known, rtol=1e-12)


def test_a_layer_can_be_called_with_many_weights(always):
    layer, inputs = filled(nn.BatchNorm2d(3).double()), images(4, 3, 2, 2)

    def slope(weight):
        def total(points):
            return (torch.func.functional_call(layer, {"weight": weight}, points) ** 2).sum()

        return torch.func.grad(total)(inputs)

    weights = images(5, 3)
    jobs = (
        lambda: torch.func.vmap(slope)(weights),
        lambda: torch.func.jacfwd(slope)(weights[0]),
        lambda: torch.func.jvp(slope, (weights[0],), (weights[1],))[1],
    )
    expected = [job() for job in jobs]
    lighter.lighten(layer)
    for job, known in zip(jobs, expected, strict=True):
        assert torch.allclose(job(), known, rtol=1e-12)


# --- where it is used ---------------------------------------------------------------------------


class Hidden(nn.Module):
    """A layer in a network whose output shows what it went through."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.num_features, 2)
        self.nodes = []

    def forward(self, inputs):
        hidden = self.layer(inputs)
        self.nodes.append(None if hidden.grad_fn is None else hidden.grad_fn.name())
        return self.head(hidden.mean((2, 3)).to(self.head.weight.dtype))


def nodes(module, inputs):
    """Return what the first layer went backward through while the module was held."""
    with held(module) as model:
        input_gradient(model, inputs, torch.zeros(len(inputs), dtype=torch.int64), logit)
    return module.nodes[-1]


def large(dtype=torch.float32):
    return images(4, 4, 64, 64, dtype=dtype)


def test_it_is_used_where_numbers_are_many():
    assert nodes(Hidden(nn.BatchNorm2d(4)), large()) == NODE
    assert nodes(Hidden(nn.BatchNorm2d(4)), large()[:3]) == "NativeBatchNormBackward0"


class OwnLayer(nn.BatchNorm2d):
    """A layer of the user's, which may do anything."""


def _learning():
    layer = nn.BatchNorm2d(4)
    layer.weight = None
    layer.register_forward_pre_hook(
        lambda each, _: setattr(each, "bias", nn.Parameter(torch.zeros(4)))
    )
    return layer


def _coarse():
    layer = nn.BatchNorm2d(4)
    layer.register_forward_pre_hook(lambda _, given: (given[0].bfloat16(),))
    return layer


@pytest.mark.parametrize(
    "layer",
    [OwnLayer(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4), _learning(), _coarse()],
    ids=["the user's own", "of many processes", "of instances", "learns", "of another dtype"],
)
def test_other_layers_stay_as_they_are(layer):
    module = Hidden(layer)
    assert nodes(module, large()) != NODE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_numbers_go_backward_as_finely_as_ever(dtype):
    layer = filled(nn.BatchNorm2d(4, eps=1e-12, dtype=dtype))
    layer.running_var[0] = 0.0
    points = large(dtype).requires_grad_()
    weights = large(dtype) * 1e-4
    (expected,) = torch.autograd.grad(layer(points), points, weights)
    lighter.lighten(layer)
    (found,) = torch.autograd.grad(layer(points), points, weights)
    assert torch.equal(found, expected)
    assert bool(found.isfinite().all())


def test_it_is_not_used_while_somebody_looks_on():
    layer = filled(nn.BatchNorm2d(4))
    lighter.lighten(layer)
    with Looking() as looking:
        assert node_of(layer, large()) == "NativeBatchNormBackward0"
    assert "batch_norm" in looking.names
    with torch.no_grad():
        assert layer(large().requires_grad_()).grad_fn is None


def test_a_layer_that_wants_another_shape_says_so():
    layer = filled(nn.BatchNorm1d(4))
    lighter.lighten(layer)
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        layer(large().requires_grad_())


class Twice(Hidden):
    """A network that keeps nothing of its layer, and computes it again on the way back."""

    def forward(self, inputs):
        hidden = checkpoint(self.layer, inputs, use_reentrant=False)
        return self.head(hidden.mean((2, 3)))


def test_a_network_may_compute_its_layers_twice():
    module, points = Twice(filled(nn.BatchNorm2d(4))), large().requires_grad_()
    (expected,) = torch.autograd.grad(module(points)[:, 0].sum(), points)
    with held(module) as model:
        found, _ = input_gradient(model, points, torch.zeros(4, dtype=torch.int64), logit)
    assert torch.allclose(found, expected)


def test_a_network_may_compute_its_layers_again_after_it_was_released():
    module, points = Twice(filled(nn.BatchNorm2d(4))).eval(), large().requires_grad_()
    (expected,) = torch.autograd.grad(module(points)[:, 0].sum(), points)
    (found,) = torch.autograd.grad(Classifier(module)(points)[:, 0].sum(), points)
    assert torch.allclose(found, expected)


def test_a_network_may_compute_its_layers_again_where_other_rules_held():
    module = Twice(filled(nn.BatchNorm2d(4)))
    points, classes = large(), torch.zeros(4, dtype=torch.int64)
    expected, _ = input_gradient(held_model(module), points, classes, logit)
    with held(module) as model:
        found, _ = input_gradient(model, points, classes, logit, rules=GuidedReLU())
    assert torch.allclose(found, expected)


def held_model(module):
    """Return what ran a network that is no longer held."""
    with held(module) as model:
        return model


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_whoever_traces_a_held_layer_sees_no_sizes_compared():
    layer, rows = filled(nn.BatchNorm2d(4)), torch.export.Dim("rows", min=1, max=1024)
    lighter.lighten(layer)
    exported = torch.export.export(layer, (large(),), dynamic_shapes=({0: rows},))
    assert exported.module()(large()[:1]).shape == (1, 4, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(layer, large(), check_trace=False)
    assert torch.equal(traced(large()), layer(large()))


def test_a_copy_of_a_held_network_is_its_own(always):
    layer = filled(nn.BatchNorm2d(4).double())
    lighter.lighten(layer)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        copied.running_mean.add_(1.0)
        points = large(torch.float64)
        assert not torch.allclose(copied(points), layer(points))
        lighter.restore([copied])
        assert "forward" not in vars(copied)


# --- by name -------------------------------------------------------------------------------------


def test_explanations_by_name_use_it(always):
    module = Hidden(filled(nn.BatchNorm2d(4)))
    attributions.get("saliency")(Classifier(module), large()[:, :, :4, :4])
    assert module.nodes[-1] == NODE
