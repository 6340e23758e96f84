"""The gradient with respect to the input, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier
from pytest_triguard.engine.backward_rules import GuidedReLU
from pytest_triguard.engine.gradients import has_gradients, input_gradient
from pytest_triguard.engine.objectives import cross_entropy, logit
from pytest_triguard.errors import NotDifferentiable
from pytest_triguard.running import running
from tests.engine.models import ready
from tests.networks import CLASSES, Failing, Quadratic, images, network

X = images((1, 2, 3), 5)
Y = torch.tensor([0, 1, 2, 3, 1])


def quadratic():
    forms = torch.randn(CLASSES, 6, 6, generator=torch.Generator().manual_seed(4)).double()
    return (forms + forms.mT) / 2


def test_each_sample_has_its_own_gradient_however_many_there_are():
    forms = quadratic()
    model = ready(Quadratic(forms))
    gradient, logits = input_gradient(model, X, Y, logit)
    expected = torch.einsum("ni,nij->nj", X.flatten(1), forms[Y]).view_as(X)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    assert torch.allclose(logits, model.logits(X), rtol=1e-12)
    alone, _ = input_gradient(model, X[2:3], Y[2:3], logit)
    assert torch.allclose(alone, expected[2:3], rtol=1e-12)


def test_the_gradient_is_the_slope():
    model = ready(network("smooth"))
    points = images((3, 6, 7), 2)
    classes = torch.tensor([1, 3])
    gradient, _ = input_gradient(model, points, classes, cross_entropy)
    step = images((3, 6, 7), 2, seed=5) * 1e-5
    ahead, behind = (
        cross_entropy(model.logits(points + sign * step), classes) for sign in (0.5, -0.5)
    )
    assert torch.allclose((gradient * step).sum((1, 2, 3)), ahead - behind, rtol=1e-6)


def test_a_map_before_the_network_brings_its_slope():
    forms = quadratic()
    gradient, _ = input_gradient(
        ready(Quadratic(forms)), X, Y, logit, through=lambda points: 3 * points**2
    )
    inner = torch.einsum("ni,nij->nj", (3 * X**2).flatten(1), forms[Y]).view_as(X)
    assert torch.allclose(gradient, inner * 6 * X, rtol=1e-12)


class Constant(nn.Module):
    def __init__(self, *, attached: bool) -> None:
        super().__init__()
        self.attached = attached

    def forward(self, inputs):
        zero = torch.zeros(len(inputs), 3, dtype=inputs.dtype)
        return zero + 0 * inputs.sum() if self.attached else zero


@pytest.mark.parametrize("attached", [True, False])
def test_without_dependence_the_gradient_is_zero(attached):
    gradient, logits = input_gradient(ready(Constant(attached=attached)), X, Y % 3, logit)
    assert gradient.shape == X.shape
    assert not gradient.any()
    assert not gradient.requires_grad
    assert not logits.requires_grad


def test_an_objective_without_dependence_has_gradient_zero():
    gradient, _ = input_gradient(
        ready(Quadratic(quadratic())), X, Y, lambda logits, _: torch.ones(len(logits))
    )
    assert not gradient.any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_every_gradient_mode_and_leaves_the_points_alone(mode):
    model = ready(Quadratic(quadratic()))
    expected, _ = input_gradient(model, X, Y, logit)
    with mode():
        points = X.clone()
        found, _ = input_gradient(model, points, Y, logit)
    assert torch.equal(found, expected)
    assert not points.requires_grad
    assert points.grad is None


def test_passes_are_counted_once_per_sample():
    model = ready(Quadratic(quadratic()))
    input_gradient(model, X, Y, logit)
    before = model.passes.copy()
    input_gradient(model, X[:2], Y[:2], logit)
    assert model.passes.to_dict() == {"forward": 7, "backward": 7}
    assert (model.passes - before).to_dict() == {"forward": 2, "backward": 2}


def test_a_relu_is_guided_however_it_is_given_its_values():
    weights = images((3, 4), 2) - 0.5
    found = []
    for relu in (torch.relu, lambda values: torch.relu(input=values)):
        points = (images((3, 4), 2, seed=7) - 0.3).requires_grad_()
        with GuidedReLU():
            total = (relu(points) * weights).sum()
        found += torch.autograd.grad(total, points)
    assert torch.equal(found[0], found[1])
    assert bool((found[0] >= 0).all())


# --- networks that autograd refuses -----------------------------------------------------------


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError("no way back")


class Overwriting(nn.Module):
    def forward(self, inputs):
        return inputs.flatten(1)[:, :2].exp().add_(1)


class OneWay(nn.Module):
    def forward(self, inputs):
        return NoWayBack.apply(inputs.flatten(1)[:, :2])


class Forbidding(nn.Module):
    def forward(self, inputs):
        if torch.is_grad_enabled():
            raise LookupError("not for training")
        return inputs.flatten(1)[:, :2]


REFUSING = {
    Overwriting: "modified by an inplace operation",
    OneWay: "ArithmeticError: no way back",
    Forbidding: "LookupError: not for training",
}


@pytest.mark.parametrize("kind", REFUSING)
def test_a_network_that_autograd_refuses_is_named(kind):
    model = ready(kind())
    words = f"the module {kind.__name__} cannot be differentiated: .*{REFUSING[kind]}"
    with pytest.raises(NotDifferentiable, match=words):
        input_gradient(model, X, Y % 2, logit)
    with pytest.raises(NotDifferentiable, match=words):
        has_gradients(model, X)


@pytest.mark.parametrize("kind", REFUSING)
def test_a_network_that_autograd_refuses_has_a_chunk(kind):
    """Bounds, which need no gradient of it, run in chunks, too."""
    with running(Classifier(kind()), torch.rand(8, 1, 1, 3)) as run:
        run.tune(10**5)
        assert run.model.chunk.rows >= 1


def test_what_fails_without_gradients_too_is_told_as_it_is():
    model = ready(Failing(Quadratic(quadratic()), calls=0))
    with pytest.raises(RuntimeError, match="on fire"):
        input_gradient(model, X, Y, logit)


@pytest.mark.parametrize("calls", ["forward", "backward"])
def test_memory_that_runs_out_is_not_blamed_on_the_network(calls, monkeypatch):
    def full(*given, **named):
        raise MemoryError

    model = ready(Quadratic(quadratic()))
    if calls == "forward":
        monkeypatch.setattr(model, "logits", full)
    else:
        monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(MemoryError):
        input_gradient(model, X, Y, logit)
