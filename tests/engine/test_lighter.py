"""Layers that take less time while a classifier is held: which change, and that nothing is left."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from pytest_triguard.classifier import Classifier
from pytest_triguard.engine import lighter
from pytest_triguard.verification import verify
from tests.module_state import state_of

LAYERS = {"normalisation": lambda: nn.BatchNorm2d(4), "pooling": lambda: nn.MaxPool2d(1)}


@pytest.fixture(params=LAYERS)
def layer(request):
    """A layer that takes less time while it is held, in evaluation mode."""
    return LAYERS[request.param]().eval().requires_grad_(False)


class Hidden(nn.Module):
    """A network of a layer and a head."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.layer(inputs).mean((2, 3)))


def held(module):
    return Classifier(module).prepared()


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


def test_nothing_is_left_behind(layer):
    module = Hidden(layer)
    before = state_of(module)
    with held(module):
        assert lighter.lightened(module.layer)
        assert not lighter.lightened(module.head)
    assert state_of(module) == before
    assert not lighter.lightened(module.layer)
    with pytest.raises(RuntimeError, match="on fire"), held(module):
        raise RuntimeError("on fire")
    assert state_of(module) == before


def test_two_classifiers_hold_one_network(layer):
    module = Hidden(layer)
    with held(module):
        with held(module):
            pass
        assert "forward" in vars(module.layer)
    assert "forward" not in vars(module.layer)


def test_a_layer_with_a_forward_of_its_own_keeps_it(layer):
    layer.forward = own = lambda inputs: inputs * 2
    module = Hidden(layer)
    with held(module):
        assert layer.forward is own
        assert not lighter.lightened(layer)
    assert layer.forward is own


class OwnPool(nn.MaxPool2d):
    """A layer of the user's, which may do anything."""


@pytest.mark.parametrize(
    "layer", [OwnPool(2), nn.MaxPool1d(2), nn.MaxPool3d(2), nn.AvgPool2d(2), nn.InstanceNorm2d(4)]
)
def test_other_layers_stay_as_they_are(layer):
    assert lighter.lighten(layer) == []


def test_a_copy_of_a_held_network_can_be_verified(layer):
    module = nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 2)).eval()
    inputs = images(1, 4, 2, 2)
    labels = module(inputs).argmax(1)
    with held(module):
        copies = (copy.deepcopy(module), pickle.loads(pickle.dumps(module)))
    for copied in copies:
        result = verify(Classifier(copied), inputs, labels, eps=1e-6, method="ibp")
        assert result.status == ("proven",)


def test_a_forward_of_another_layer_is_none_of_its_own(layer):
    assert not lighter.has_own_forward(layer)
    lighter.lighten(layer)
    assert not lighter.has_own_forward(layer)
    other = copy.copy(layer)  # which calls the first one
    assert not lighter.lightened(other)
    assert lighter.has_own_forward(other)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_was_compiled_is_left_alone(layer):
    traced = torch.jit.trace(layer, images(4, 4, 64, 64), check_trace=False)
    assert lighter.lighten(traced) == []
    compiled = nn.Sequential(layer)
    compiled._compiled_call_impl = compiled._call_impl
    assert lighter.lighten(compiled) == []
    assert "forward" not in vars(layer)
