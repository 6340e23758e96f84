"""Channels last in memory: for networks that pool much, and with the same results for all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine import layouts
from pytest_triguard.engine.passes import Passes
from pytest_triguard.running import running as run_of


def pooling(channels=1):
    """Return a network that spends much on max-pooling."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 3, 3),
    )


class Viewing(nn.Module):
    """A network that views what it pooled as rows, in the order in which it is used to lie."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(48, 3)

    def forward(self, inputs):
        return self.head(functional.max_pool2d(self.features(inputs), 2).view(-1, 48))


class Storage(nn.Module):
    """A network that reads what it pooled as it lies in memory."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(48, 3)

    def forward(self, inputs):
        pooled = functional.max_pool2d(self.features(inputs), 2)
        return self.head(torch.as_strided(pooled, (len(inputs), 48), (48, 1)))


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(-1).view(gradient.shape)


class ViewingBackward(nn.Module):
    """A network with a derivative that views what it is given."""

    def __init__(self):
        super().__init__()
        self.inner = pooling()

    def forward(self, inputs):
        return self.inner[1:](_Backward.apply(self.inner[0](inputs)))


def colour_images(dtype=torch.float32, channels=3):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(5, channels, 8, 6, generator=generator, dtype=dtype)


def is_arranged(module, inputs):
    with run_of(Classifier(module), inputs) as run:
        return run.model.channels_last


# --- which networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_that_pools_much_sees_channels_last(channels):
    module, seen = pooling(channels), []
    module[2].register_forward_hook(lambda layer, given, output: seen.append(output))
    inputs = colour_images(channels=channels)
    attributions.get("saliency")(Classifier(module), inputs)
    assert seen[-1].is_contiguous(memory_format=torch.channels_last)
    assert not seen[-1].is_contiguous()


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(48, 3)),
        # One number is compared for some 800 products.
        nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1),
            nn.Conv2d(64, 64, 7, padding=3),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(768, 3),
        ),
    ],
    ids=["no pooling", "averages", "linear", "little pooling"],
)
def test_a_network_that_pools_little_is_given_what_came(module):
    assert not is_arranged(module, colour_images(channels=1))


def test_double_precision_is_given_what_came():
    assert not is_arranged(pooling().double(), colour_images(torch.float64, 1))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_network_is_given_what_came():
    inputs = colour_images(channels=1)
    assert is_arranged(pooling(), inputs)
    assert not is_arranged(torch.jit.trace(pooling().eval(), inputs, check_trace=False), inputs)
    compiled = pooling()
    compiled._compiled_call_impl = compiled._call_impl
    assert not is_arranged(compiled, inputs)


@pytest.mark.parametrize("kind", [Viewing, Storage, ViewingBackward])
def test_a_network_that_depends_on_the_layout_is_given_what_came(kind):
    module, inputs = kind().eval(), colour_images(channels=1)
    expected = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(expected)[:, 1].sum(), expected)
    found = attributions.get("saliency")(Classifier(module), inputs, targets=1)
    assert not is_arranged(module, inputs)
    assert torch.allclose(found, gradient, atol=1e-7)


# --- what it costs ------------------------------------------------------------------------------


def test_a_network_is_looked_at_once_and_not_counted(monkeypatch):
    looked, look = [], layouts._pools_much
    monkeypatch.setattr(layouts, "_pools_much", lambda *given: looked.append(given) or look(*given))
    subject, inputs = Classifier(pooling()), colour_images(channels=1)
    for _ in range(2):
        with run_of(subject, inputs) as run:
            assert run.model.channels_last
            assert run.model.passes == Passes(forward=0, backward=0)
    assert len(looked) == 1
    subject.module[1] = nn.Softplus()
    with run_of(subject, inputs):
        assert len(looked) == 2


def test_the_layout_of_the_user_s_tensors_stays_theirs():
    inputs = colour_images()
    found = attributions.get("saliency")(Classifier(pooling(3)), inputs)
    assert inputs.stride() == found.stride() == colour_images().stride()


def test_a_layer_that_packs_its_weights_is_looked_at():
    """What a quantised layer gives its product is no tensor."""

    class Packed:
        pass

    @torch.overrides.wrap_torch_function(lambda inputs, weight: (inputs,))
    def linear(inputs, weight):
        return inputs

    with layouts._Counted() as counted:
        functional.linear(torch.rand(2, 3), torch.rand(4, 3))
        linear(torch.rand(2, 3), Packed())
    assert counted.products == 24
