"""DeepLIFT: multipliers by hand, completeness everywhere, and what is refused."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from captum.attr import DeepLift
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import ModelError
from tests.attributions.table import close
from tests.module_state import state_of
from tests.networks import SHAPES, bare, images, problem

SHAPE = (2, 6, 8)


class Written(nn.Module):
    """Two convolutions and a head, with something in between."""

    def __init__(self, between, *, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(2, 4, 3, padding=1)
            self.second = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.between = between
        self.double()

    def forward(self, inputs):
        hidden = self.between(self, self.first(inputs))
        return self.head(self.second(hidden).mean((2, 3)))


def residual_in_place(network, hidden):
    out = functional.relu_(network.norm(hidden))
    out += hidden
    return out.clone().sigmoid_()


def gated(network, hidden):
    return hidden * hidden.mean((2, 3), keepdim=True).sigmoid() / (hidden.abs().sum(1, True) + 1)


def attended(network, hidden):
    tokens = hidden.flatten(2).mT
    weights = torch.softmax(tokens @ tokens.mT, dim=-1)
    return (weights @ tokens).mT.view_as(hidden)


WAYS = {
    "functional": lambda network, hidden: functional.relu(hidden),
    "method": lambda network, hidden: hidden.relu(),
    "clamp": lambda network, hidden: hidden.clamp(min=0),
    "module": lambda network, hidden: network.act(hidden),
    "in place": lambda network, hidden: functional.relu(hidden, inplace=True),
    "by name": lambda network, hidden: torch.relu(input=hidden),
    "clamp by name": lambda network, hidden: torch.clamp(min=0, input=hidden),
}
OTHERS = {
    "max-pool": lambda network, hidden: functional.max_pool2d(hidden, 3, 1, 1),
    "adaptive": lambda network, hidden: functional.adaptive_max_pool2d(hidden, (2, 3)),
    "dilated": lambda network, hidden: functional.max_pool2d(
        hidden, (2, 3), (1, 2), 1, (2, 1), True
    ),
    "amax": lambda network, hidden: hidden.relu() - hidden.amax((2, 3), keepdim=True),
    "amax, turned": lambda network, hidden: hidden - hidden.amax((-1, 1))[:, None, :, None],
    "amax, channels first": lambda network, hidden: (
        hidden - hidden.transpose(0, 1).amax(0)[:, None]
    ),
    "amin": lambda network, hidden: hidden - torch.amin(hidden, dim=-1, keepdim=True),
    "residual": residual_in_place,
    "gated": gated,
    "attended": attended,
    "smooth": lambda network, hidden: functional.gelu(hidden) + functional.silu(hidden).tanh() ** 3,
    "log-softmax": lambda network, hidden: hidden.log_softmax(1) + functional.hardswish(hidden),
    "power by name": lambda network, hidden: torch.pow(hidden.sigmoid(), exponent=3),
    "product by name": lambda network, hidden: torch.mul(other=hidden.sigmoid(), input=hidden),
    "quotients by name": lambda network, hidden: (
        torch.div(hidden, other=hidden.abs() + 1) + hidden.div(other=2)
    ),
}


def explained(between, **options):
    subject, inputs = Classifier(Written(between)), images(SHAPE, 3)
    method = attributions.get("deeplift", **({"baseline": "midpoint"} | options))
    return method(subject, inputs, 1), method.completeness_error(subject, inputs, 1)


def test_behind_a_max_pool_the_change_belongs_to_the_place_of_the_larger_maximum():
    subject, inputs, targets = problem("bias_free", 5)
    network, start = bare(subject), torch.full_like(inputs, 0.5)
    before, base = network[0](inputs), network[0](start)
    active, quiet = before.relu(), base.relu()
    slopes = network[4].weight[targets].view(5, 4, 2, 3)
    multipliers = torch.zeros_like(active)
    for place in torch.cartesian_prod(*map(torch.arange, slopes.shape)).tolist():
        row, channel, top, left = place
        window = (row, channel, slice(2 * top, 2 * top + 2), slice(2 * left, 2 * left + 2))
        own, other = active[window].flatten(), quiet[window].flatten()
        best = int(own.argmax() if own.max() >= other.max() else other.argmax())
        change = own.max() - other.max()
        if change:
            where = (row, channel, 2 * top + best // 2, 2 * left + best % 2)
            multipliers[where] = slopes[tuple(place)] * change / (own - other)[best]
    multipliers = multipliers * (active - quiet) / (before - base)
    back = functional.conv_transpose2d(multipliers, network[0].weight)
    found = attributions.get("deeplift", baseline="midpoint")(subject, inputs, targets)
    assert close(found, (inputs - start) * back, 1e-9)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_a_max_pool_it_is_that_of_captum():
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    ).double()
    network.eval().requires_grad_(False)
    inputs, start = images(SHAPE, 4), images(SHAPE, 4, seed=9)
    found = attributions.get("deeplift", baseline=start)(Classifier(network), inputs, 1)
    expected = DeepLift(network).attribute(inputs.clone().requires_grad_(), start, target=1)
    assert close(found, expected.detach(), 1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_it_does_not_matter_how_a_relu_is_written(way):
    found, error = explained(WAYS[way])
    assert close(found, explained(WAYS["functional"])[0], 1e-12)
    assert error.max() < 1e-9


@pytest.mark.parametrize("name", OTHERS)
def test_maps_sum_to_the_change_of_the_output(name):
    assert explained(OTHERS[name])[1].max() < 1e-9


FOLDED = {
    "folded": lambda network, hidden: hidden.flatten(0, 1).sigmoid().view_as(hidden),
    "batch second": lambda network, hidden: hidden.transpose(0, 1).tanh().transpose(0, 1),
}


def of_four(softmax, hidden):
    return softmax(hidden)


def of_three(softmax, hidden):
    channels_first = hidden.transpose(0, 1).flatten(2)
    return softmax(channels_first).transpose(0, 1).view_as(hidden)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")
@pytest.mark.parametrize("call", [of_four, of_three])
@pytest.mark.parametrize("softmax", [functional.softmax, functional.log_softmax])
def test_a_softmax_without_a_dimension_goes_along_that_of_torch(softmax, call):
    error = explained(lambda network, hidden: call(softmax, hidden))[1]
    assert error.max() < 1e-9


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize("between", (OTHERS | FOLDED).values(), ids=OTHERS | FOLDED)
def test_one_baseline_for_all_is_that_of_each(between, output):
    alike = torch.full((3, *SHAPE), 0.5).double()
    shared, error = explained(between, output=output)
    assert close(shared, explained(between, output=output, baseline=alike)[0], 1e-9)
    assert error.max() < 1e-9


@pytest.mark.parametrize("between", ["functional", "folded"])
def test_one_baseline_for_all_goes_forward_once(between):
    network = Written((WAYS | FOLDED)[between])
    rows = []
    network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    attributions.get("deeplift")(Classifier(network), images(SHAPE, 4), 1)
    # A network whose samples share a dimension with something else is given one for each.
    expected = [1, 4] if between == "functional" else [1, 4, 4, 4]
    assert rows[-len(expected) :] == expected


@pytest.mark.parametrize("output", ["logit", "probability", "log_probability", "contrast"])
@pytest.mark.parametrize("name", SHAPES)
def test_maps_sum_to_the_change_of_every_output(name, output):
    subject, inputs, targets = problem(name, 4)
    method = attributions.get("deeplift", baseline="blur", output=output)
    assert method.completeness_error(subject, inputs, targets).max() < 1e-9


def test_a_sample_that_is_the_baseline_has_a_zero_map():
    subject, inputs, targets = problem("conv", 3)
    method = attributions.get("deeplift", baseline=inputs)
    assert not method(subject, inputs, targets).any()


REFUSED = {
    "LayerNorm": (
        lambda network, hidden: functional.layer_norm(hidden, hidden.shape[1:]),
        "deeplift has no rule for the operator NativeLayerNorm of the module Written",
    ),
    "instance norm": (
        lambda network, hidden: functional.instance_norm(hidden),
        "deeplift has no rule for the operator NativeBatchNorm of the module Written",
    ),
    "mask": (
        lambda network, hidden: hidden * (hidden > 0),
        "deeplift needs to follow every value through the network, but the operator gt hides what",
    ),
    "detached": (
        lambda network, hidden: hidden - hidden.detach().mean((1, 2, 3), keepdim=True),
        "deeplift needs to follow every value through the network, but the operator detach hides",
    ),
    "outer": (
        lambda network, hidden: torch.einsum("nchw,nchw->nchw", hidden, hidden),
        "deeplift has no rule for the operator Mul of the module Written",
    ),
    "reads": (
        lambda network, hidden: hidden * bool(hidden[0, 0, 0, 0]),
        "deeplift needs to follow every value through the network, but the operator __bool__ hides",
    ),
    "alternates": (
        lambda network, hidden: (
            functional.relu(hidden) if next(network.turns) % 2 else hidden.clamp(min=0)
        ),
        "deeplift needs the same operators for sample and baseline, but the operator",
    ),
    "rounded": (
        lambda network, hidden: torch.div(hidden, 0.01, rounding_mode="floor"),
        "deeplift has no rule for the operator div where it rounds",
    ),
    "computed again": (
        lambda network, hidden: checkpoint(network.act, hidden, use_reentrant=False),
        "deeplift needs a network that computes each of its parts once",
    ),
    "reused": (
        lambda network, hidden: network.act(network.second(network.act(hidden))),
        "deeplift defines one difference for each unit, but the ReLU 'act' with the operator relu "
        "is called more than once; give each call a module of its own, or the method "
        "reused='each_call'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_has_no_rule_for_is_refused_by_name_and_nothing_is_left_behind(name):
    between, message = REFUSED[name]
    network, inputs = Written(between), images(SHAPE, 3)
    network.turns = itertools.count()
    before = state_of(network)
    with pytest.raises(ModelError, match=re.escape(message)):
        attributions.get("deeplift")(Classifier(network), inputs, 1)
    assert state_of(network) == before


def test_a_reused_module_may_have_differences_of_each_call():
    found, error = explained(REFUSED["reused"][0], reused="each_call")
    assert error.max() < 1e-9
    twice = explained(
        lambda network, hidden: functional.relu(network.second(functional.relu(hidden)))
    )
    assert close(found, twice[0], 1e-12)


def test_a_module_without_activation_may_be_called_twice():
    error = explained(lambda network, hidden: network.second(network.second(hidden).relu()))[1]
    assert error.max() < 1e-9


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_network_is_refused():
    network = torch.jit.trace(problem("conv", 1)[0].module.eval(), images(SHAPES["conv"], 2))
    with pytest.raises(ModelError, match="deeplift has no rule for the operator"):
        attributions.get("deeplift")(Classifier(network), images(SHAPES["conv"], 2), 1)
