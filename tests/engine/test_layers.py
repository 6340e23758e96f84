"""Layers: found by name, by place, and captured without a trace."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_triguard.engine.layers import (
    capture,
    find_layer,
    last_spatial_layer,
    layer_name,
)
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from tests.engine.models import ready
from tests.module_state import state_of
from tests.networks import SHAPES, Residual, images, network


def refused(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def test_a_layer_is_found_by_its_dotted_name_and_as_itself():
    module = Residual()
    assert find_layer(module, "block.1") is module.block[1]
    assert find_layer(module, module.block[1]) is module.block[1]
    assert layer_name(module, module.block[1]) == "block.1"


def test_a_module_registered_twice_has_both_names():
    module = Residual()
    module.other = module.stem
    assert find_layer(module, "other") is find_layer(module, "stem")


def test_an_unknown_layer_is_refused_with_the_nearest_names():
    with refused(
        InputError,
        "layer must name a module of the classifier, but 'blok.1' came "
        "(the nearest of its 5 layers: 'block.1', 'block.0', 'block')",
    ):
        find_layer(Residual(), "blok.1")
    with refused(
        InputError,
        "layer must name a module of the classifier, but '' came "
        "(the first of its 5 layers: 'stem', 'block', 'block.0', 'block.1', 'head')",
    ):
        find_layer(Residual(), "")
    with refused(
        InputError, "layer must name a module of the classifier, but 'x' came (it has none)"
    ):
        find_layer(nn.Linear(2, 2), "x")


def test_a_layer_of_another_network_is_refused():
    with refused(
        InputError,
        "layer must be a module of the classifier, but a Conv2d that is no part of it came",
    ):
        find_layer(Residual(), Residual().stem)
    with refused(InputTypeError, "layer must be a module or its dotted name, but 3 came"):
        find_layer(Residual(), 3)


def test_what_was_captured_is_in_the_graph_and_survives_operators_in_place():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    inputs = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    with capture(module[0]) as captured:
        (gradient,) = torch.autograd.grad(module(inputs).sum(), captured.output)
    before = functional.linear(inputs, module[0].weight, module[0].bias)
    assert torch.equal(captured.output, before)
    assert (before < 0).any()
    assert torch.allclose(gradient, module[2].weight.sum(0) * (before > 0), rtol=0, atol=1e-12)


def test_the_hook_is_gone_after_the_block_even_if_it_raised():
    module = Residual()
    before = state_of(module)
    with pytest.raises(ZeroDivisionError), capture(module.stem):
        raise ZeroDivisionError
    assert state_of(module) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_script_module_is_not_watched():
    parts = nn.Conv2d(1, 2, 3), torch.jit.script(nn.ReLU()), nn.Flatten()
    module = nn.Sequential(*parts)
    model = ready(module, dtype=torch.float32)
    assert last_spatial_layer(model, torch.zeros(1, 1, 6, 6)) is module[0]
    message = (
        "the module must let its layers be watched, but its ReLU is a ScriptModule; give the "
        "module that it was made from"
    )
    with refused(ModelError, message), capture(module[1]):
        pass


class Odd(nn.Module):
    """Has a layer that is never called, and one that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.ReLU()
        self.both = nn.LSTM(3, 2)

    def forward(self, inputs):
        return self.both(inputs)[0]


def test_a_layer_that_gives_no_tensor_is_refused():
    module = Odd()
    with capture(module.unused) as unused, capture(module.both) as both:
        module(torch.zeros(2, 3))
    message = "layer must take part in the forward pass, but this ReLU was never called"
    with refused(InputError, message):
        _ = unused.output
    with refused(InputError, "layer must give one tensor, but this LSTM gave 'tuple'"):
        _ = both.output


def residual(width):
    """Return a network like a residual one: halved twice, squeezed aside, halved, pooled."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 2),
    )


@pytest.mark.parametrize(
    ("share", "place"), [(0.0, 2), (0.125, 2), (0.126, 1), (0.25, 1), (0.5, 0), (0.51, None)]
)
def test_the_last_layer_that_is_large_enough(share, place):
    module = residual(3)
    model = ready(module, dtype=torch.float32)
    before = state_of(module)
    found = last_spatial_layer(model, torch.zeros(5, 1, 16, 24), share=share)
    assert found is (None if place is None else module[place])
    assert state_of(module) == before
    assert model.passes.forward == 1


class Squeezed(nn.Module):
    """Weighs channels by a pooled side branch, and calls one module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(1, 3, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(3, 2)

    def forward(self, inputs):
        hidden = self.conv(self.act(inputs))
        hidden = self.act(hidden * self.pool(hidden))
        return self.head(hidden.mean((2, 3)))


def test_side_branches_and_repeated_modules_do_not_mislead():
    module = Squeezed()
    model = ready(module, dtype=torch.float32)
    assert last_spatial_layer(model, torch.zeros(1, 1, 6, 5)) is module.act


def test_a_network_without_feature_maps_has_no_spatial_layer():
    model = ready(network("linear"))
    assert last_spatial_layer(model, images(SHAPES["linear"], 2)) is None
