"""Modules whose logits are not a function of each sample alone are refused by name."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.engine.probe import probe
from pytest_triguard.errors import ModelError
from tests.engine.models import ready
from tests.networks import SHAPES, images, network

X = images((3, 8, 6), 5)


class Custom(nn.Module):
    """A linear network that does something odd in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 6, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.double()

    def plain(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.flatten(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.odd(inputs, self.plain(inputs))

    def odd(self, inputs: Tensor, logits: Tensor) -> Tensor:
        return logits


def module(odd) -> nn.Module:
    return type("Custom", (Custom,), {"odd": odd})()


def changing(self, inputs, logits):
    self.seen += 1
    return logits


def replacing(self, inputs, logits):
    self.seen = self.seen + 1
    return logits


def adding(self, inputs, logits):
    self.register_buffer("cache", inputs.detach())
    return logits


def failing(self, inputs, logits):
    raise ValueError("\n expected\n something else")


TENSOR = r"must return one tensor of logits \(N, K\), but a {} came$"
SHAPE = r"must return floating logits of shape \(3, K\) with K >= 2, but a Tensor of shape {} came$"
FINITE = "must give finite logits, but NaN or infinity came$"
BUFFER = "changes its buffer '{}' in its forward pass, although it is in evaluation mode$"
RANDOM = (
    r"is random: two calls on the same inputs gave logits that differ by [\d.e-]+; a dropout that "
    r"a custom forward leaves active is the usual reason \(pass training=self\.training to it\)$"
)
COMPANY = (
    "is batch-dependent: the logits of one sample change with its neighbours; batch normalisation "
    "without running statistics is the usual reason$"
)
RAISED = (
    r"must take inputs of shape \(N, 3, 8, 6\) and dtype torch\.float64, but it raised ValueError: "
    "expected$"
)
REFUSED = {
    "tuple": (lambda self, inputs, logits: (logits, None), TENSOR.format("tuple")),
    "dict": (lambda self, inputs, logits: {"logits": logits}, TENSOR.format("dict")),
    "none": (lambda self, inputs, logits: None, TENSOR.format("NoneType")),
    "images": (lambda self, inputs, logits: inputs, SHAPE.format(r"\(3, 3, 8, 6\) .*")),
    "one-class": (lambda self, inputs, logits: logits[:, :1], SHAPE.format(r"\(3, 1\) .*")),
    "fewer-rows": (lambda self, inputs, logits: logits[:1], SHAPE.format(r"\(1, 3\) .*")),
    "classes": (lambda self, inputs, logits: logits.argmax(1), SHAPE.format(r"\(3,\) .*")),
    "integers": (lambda self, inputs, logits: logits.long(), SHAPE.format(".* dtype torch.int64")),
    "nan": (lambda self, inputs, logits: logits * torch.nan, FINITE),
    "infinity": (lambda self, inputs, logits: logits / 0, FINITE),
    "nan-alone": (lambda self, inputs, logits: logits / (len(inputs) - 1), FINITE),
    "raises": (failing, RAISED),
    "random": (lambda self, inputs, logits: logits + torch.randn(3).double(), RANDOM),
    "dropout": (
        lambda self, inputs, logits: self.layer(functional.dropout(inputs.flatten(1))),
        RANDOM,
    ),
    "batch-mean": (lambda self, inputs, logits: logits - logits.mean(0), COMPANY),
    "neighbour": (lambda self, inputs, logits: logits + 0.1 * logits.roll(1, 0), COMPANY),
    "batch-size": (lambda self, inputs, logits: logits * len(inputs), COMPANY),
    "buffer-changed": (changing, BUFFER.format("seen")),
    "buffer-replaced": (replacing, BUFFER.format("seen")),
    "buffer-added": (adding, BUFFER.format("cache")),
}


@pytest.mark.parametrize(("odd", "message"), REFUSED.values(), ids=REFUSED)
def test_a_module_that_is_no_classifier_is_refused_by_name(odd, message):
    with pytest.raises(ModelError, match=f"^the module Custom {message}") as caught:
        probe(ready(module(odd)), X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm1d(3, track_running_stats=False),
    ],
    ids=["images", "features"],
)
def test_batch_normalisation_without_running_statistics_is_refused(norm):
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts = [pooled, norm] if isinstance(norm, nn.BatchNorm1d) else [norm, pooled]
    with pytest.raises(ModelError, match=r"^the module Sequential is batch-dependent: "):
        probe(ready(nn.Sequential(*parts, nn.Linear(3, 2)).double()), X)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_one_sample_is_enough_to_find_out(rows):
    with pytest.raises(ModelError, match="batch-dependent"):
        probe(ready(module(lambda self, inputs, logits: logits - logits.mean(0))), X[:rows])
    with pytest.raises(ModelError, match="random"):
        probe(ready(nn.Sequential(nn.Flatten(), _Noise())), X[:rows])


class _Noise(nn.Module):
    def forward(self, inputs):
        return inputs + torch.rand_like(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_an_ordinary_network_passes_and_costs_nothing(name, dtype):
    model = ready(network(name, dtype))
    probe(model, images(SHAPES[name], 6, dtype))
    assert model.passes.to_dict() == {"forward": 0, "backward": 0}
    assert model.num_classes == 4


@pytest.mark.parametrize(
    "layer",
    [nn.InstanceNorm2d(3), nn.GroupNorm(3, 3), nn.Dropout(0.5), nn.BatchNorm2d(3)],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_harmless_in_evaluation_mode_passes(layer):
    parts = [layer, nn.Flatten(), nn.Linear(3 * 8 * 6, 3)]
    probe(ready(nn.Sequential(*parts).double()), X)


def test_logits_that_are_made_finer_may_differ_as_coarse_ones_do():
    """They were computed in the dtype of the inputs, by kernels that differ with the batch."""

    def finer(self, inputs, logits):
        return logits.double() * (1 + 1e-6 * len(inputs))

    probe(ready(module(finer).float()), X.float())
    with pytest.raises(ModelError, match="batch-dependent"):
        probe(ready(module(finer)), X)


def test_it_costs_five_rows_because_every_call_starts_with_it():
    seen = []

    def counting(self, inputs, logits):
        seen.append(len(inputs))
        return logits

    probe(ready(module(counting)), X)
    assert sum(seen) == 5


SELDOM = {
    "torch": lambda: torch.rand(()) < 0.3,
    "numpy": lambda: np.random.rand() < 0.3,
    "python": lambda: random.random() < 0.3,
}


@pytest.mark.parametrize("draw", SELDOM.values(), ids=SELDOM)
def test_a_module_that_seldom_changes_its_answer_is_random_too(draw):
    seldom = ready(module(lambda self, inputs, logits: 2 * logits if draw() else logits))
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    for _ in range(5):
        with pytest.raises(ModelError, match="is random: two calls"):
            probe(seldom, X)


def test_drawing_without_use_is_not_being_random():
    probe(ready(module(lambda self, inputs, logits: logits + 0 * torch.rand(3))), X)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_module_writes_does_not_reach_the_inputs(mode):
    given = X.clone()
    with mode():
        probe(ready(module(lambda self, inputs, logits: self.plain(inputs.mul_(0.5)))), given)
    assert torch.equal(given, X)


def test_a_buffer_that_holds_nan_has_not_changed():
    plain = Custom()
    plain.seen.fill_(torch.nan)
    probe(ready(plain), X)


def test_running_out_of_memory_is_no_fault_of_the_module():
    def full(self, inputs, logits):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        probe(ready(module(full)), X)
