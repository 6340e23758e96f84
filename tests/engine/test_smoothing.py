"""Softplus in place of rectifiers: wherever they are called, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.smoothing import Softplus, Surrogate
from pytest_triguard.errors import ModelError
from tests.module_state import state_of
from tests.networks import classifier, images, problem

POINTS = torch.linspace(-9, 9, 37, dtype=torch.float64).view(1, 1, 1, 37)
RECTIFIERS = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": lambda x: nn.ReLU(inplace=True)(x * 1),
    "functional.relu": functional.relu,
    "functional.relu_": lambda x: functional.relu_(x * 1),
    "torch.relu": torch.relu,
    "torch.relu_": lambda x: torch.relu_(x * 1),
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: (x * 1).relu_(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: x.clamp_min(0.0),
    "torch.clamp": lambda x: torch.clamp(x, min=0),
    "clip": lambda x: x.clip(min=0),
    "torch.clip": lambda x: torch.clip(x, 0),
    "clamp_": lambda x: (x * 1).clamp_(min=0),
    "clamp_min_": lambda x: (x * 1).clamp_min_(0),
    "torch.clip_": lambda x: torch.clip_(x * 1, min=0),
    "nn.ReLU6": nn.ReLU6(),
    "functional.relu6": functional.relu6,
    "nn.Hardtanh": nn.Hardtanh(-2.0, 3.0),
    "hardtanh in place": lambda x: functional.hardtanh(x * 1, -1, 2, inplace=True),
    "nn.LeakyReLU": nn.LeakyReLU(0.2),
    "leaky_relu in place": lambda x: functional.leaky_relu(x * 1, 0.3, inplace=True),
    "leaky_relu_": lambda x: functional.leaky_relu_(x * 1, 0.3),
    "hardtanh_": lambda x: functional.hardtanh_(x * 1, -1, 2),
    "threshold_": lambda x: functional.threshold_(x * 1, 0.5, 0.5),
    "rrelu_": lambda x: functional.rrelu_(x * 1),
    "Tensor.prelu": lambda x: x.prelu(torch.tensor([0.3], dtype=torch.float64)),
    "nn.PReLU": nn.PReLU(dtype=torch.float64),
    "nn.RReLU": nn.RReLU().eval(),
    "nn.Threshold": nn.Threshold(0.5, 0.5),
    "torch.threshold": lambda x: torch.threshold(x, 0.5, 0.5),
    "torch.rrelu": torch.rrelu,
    "by name": lambda x: torch.relu(input=x),
}
OTHERS = {
    "a clamp that confines": lambda x: x.clamp(-1, 1),
    "a guard": lambda x: x.clamp_min(1e-6),
    "a clamp in place that confines": lambda x: (x * 1).clamp_(-1, 1),
    "a threshold that jumps": nn.Threshold(0.5, 0.0),
    "gelu": functional.gelu,
    "max_pool2d": nn.MaxPool2d((1, 2)),
    "whole numbers": lambda x: x.round().long().clamp(min=0),
    "whole numbers in place": lambda x: x.round().long().relu_(),
    "whole numbers confined": lambda x: functional.hardtanh(x.round().long()),
    "into another": lambda x: torch.clamp(x, min=0, out=torch.empty_like(x)),
    "training rrelu": lambda x: functional.rrelu(x, 0.25, 0.25, training=True),
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_rectifier_becomes_smooth_and_stays_close(name):
    rectifier = RECTIFIERS[name]
    points = POINTS.clone().requires_grad_()
    with Softplus(4.0):
        smooth = rectifier(points)
    assert (smooth - rectifier(POINTS)).abs().max() <= 2 * 0.7 / 4
    (slope,) = torch.autograd.grad(smooth.sum(), points, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), points)
    assert curvature.abs().max() > 0.1
    with Softplus(1000.0):
        assert torch.allclose(rectifier(POINTS), rectifier(POINTS.clone()), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["nn.ReLU", "Tensor.relu_", "clamp"])
def test_the_smooth_relu_is_softplus(name):
    with Softplus(3.0):
        found = RECTIFIERS[name](POINTS)
    assert torch.allclose(found, (1 + (3 * POINTS).exp()).log() / 3, rtol=1e-8)


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_stays_as_it_is(name):
    expected = OTHERS[name](POINTS)
    with Softplus(4.0):
        assert torch.equal(OTHERS[name](POINTS), expected)


def test_in_place_means_in_place():
    values = POINTS.clone()
    with Softplus(4.0):
        assert functional.relu(values, inplace=True) is values
        again = POINTS.clone()
        assert again.clamp_(min=0) is again
    assert torch.equal(again, values)
    assert torch.allclose(values, functional.softplus(POINTS, 4.0))


def test_outside_the_block_nothing_is_smooth():
    with pytest.raises(RuntimeError, match="fire"), Softplus(4.0):
        raise RuntimeError("fire")
    assert torch.equal(torch.relu(POINTS), POINTS * (POINTS > 0))


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_a_surrogate_leaves_the_network_alone_and_shares_its_passes(name):
    subject, inputs, _ = problem(name, 3)
    with subject.prepared() as model:
        before = state_of(subject.module)
        expected = model.logits(inputs)
        sharp, soft, same = (Surrogate(model, beta) for beta in (1e6, 2.0, None))
        assert torch.allclose(sharp.logits(inputs), expected, atol=1e-4)
        assert not torch.allclose(soft.logits(inputs), expected, atol=1e-2)
        assert torch.equal(same.logits(inputs), expected)
        assert torch.equal(model.logits(inputs), expected)
        assert model.passes.forward == 5 * 3
        assert state_of(subject.module) == before


class Again(nn.Module):
    """Computes its hidden values again on the way back, or does not."""

    def __init__(self, again):
        super().__init__()
        self.again = again

    def forward(self, inputs):
        hidden = (
            checkpoint(torch.relu, inputs, use_reentrant=False) if self.again else inputs.relu()
        )
        return hidden.flatten(1)[:, :2]


def test_a_part_that_is_computed_again_would_not_be_smooth_and_is_refused():
    points = images((3, 4, 4), 2).requires_grad_()
    with Classifier(Again(True)).prepared() as model:
        with pytest.raises(ModelError, match="computes each of its parts once"):
            Surrogate(model, 10.0).logits(points)
        with torch.no_grad():
            Surrogate(model, 10.0).logits(points)
        Surrogate(model, None).logits(points)
        model.logits(points).sum().backward()


def test_hooks_of_somebody_else_are_no_part_of_the_network():
    points = images((3, 4, 4), 2).requires_grad_()
    with Classifier(Again(False)).prepared() as model:
        (expected,) = torch.autograd.grad(Surrogate(model, 10.0).logits(points).sum(), points)
        with torch.autograd.graph.save_on_cpu():
            logits = Surrogate(model, 10.0).logits(points)
        (found,) = torch.autograd.grad(logits.sum(), points)
    assert torch.equal(found, expected)


class Attention(nn.Module):
    """Looks at pixels as tokens, with the fused kernel."""

    def forward(self, inputs):
        tokens = inputs.flatten(2).mT
        mixed = functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return mixed.sum(1)[:, :2]


def test_attention_has_a_second_derivative():
    subject = classifier("linear")
    subject.module = Attention()
    points = images((3, 4, 4), 2).requires_grad_()
    with subject.prepared() as model:
        total = Surrogate(model, 10.0).logits(points).square().sum()
        (slope,) = torch.autograd.grad(total, points, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.square().sum(), points)
    assert curvature.abs().max() > 0
