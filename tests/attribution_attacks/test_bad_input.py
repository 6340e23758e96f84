"""What is refused, and in which words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_triguard import attribution_attacks, attributions, metrics
from pytest_triguard.attributions.base import Attribution
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from tests.attribution_attacks.table import every_row
from tests.module_state import state_of
from tests.networks import SHAPES, classifier, images

X = images(SHAPES["linear"], 4)
MASK = torch.ones(3, 4, dtype=torch.bool)

HYPERPARAMETERS = [
    ({"eps": -0.1}, InputError, "eps must be at least 0, but -0.1 came"),
    ({"eps": "8/255"}, InputTypeError, "eps must be a number, but '8/255' came"),
    ({"norm": "l3"}, InputError, "norm must be one of 'linf', 'l2', but 'l3' came"),
    ({"steps": 0}, InputError, "steps must be at least 1, but 0 came"),
    ({"step_size": -1}, InputError, "step_size must be at least 0, but -1 came"),
    ({"restarts": 0}, InputError, "restarts must be at least 1, but 0 came"),
    (
        {"restarts": 2, "random_start": False},
        InputError,
        "restarts=2 needs random_start=True: without it every start is alike",
    ),
    ({"random_start": 1}, InputTypeError, "random_start must be True or False, but 1 came"),
    ({"beta": 0}, InputError, "beta must be greater than 0, but 0 came"),
    ({"beta": (1, 2, 3)}, InputTypeError, "beta must be one number or a pair, but (1, 2, 3) came"),
    ({"beta": (1, -2)}, InputError, "beta must be greater than 0, but -2 came"),
    ({"beta": "soft"}, InputTypeError, "beta must be a number, but 'soft' came"),
    ({"least_change": -1}, InputError, "least_change must be at least 0, but -1 came"),
    ({"seed": 0.5}, InputTypeError, "seed must be a whole number, but 0.5 came"),
    ({"attribution": "salience"}, InputError, "unknown attribution 'salience'; did you mean 'sal"),
    ({"attribution": 3}, InputTypeError, "attribution must be a name, an attribution or None, but"),
    ({"criterion": "entropy"}, InputTypeError, "criterion must be a metric of two maps, its name"),
    ({"criterion": "cosin"}, InputError, "unknown metric 'cosin'; did you mean 'cosine'?"),
]
OF_ONE = [
    ("topk", {"k": 0}, InputError, "k must be at least 1, but 0 came"),
    ("topk", {"k": 1.5}, InputError, "k must be from 0 to 1 (0 excluded), but 1.5 came"),
    ("targeted", {"k": "few"}, InputTypeError, "k must be a number, but 'few' came"),
    ("targeted", {"region": "most"}, InputTypeError, "region must be a bool tensor (H, W) or (N"),
    ("targeted", {"region": MASK.double()}, InputTypeError, "region must be a bool tensor (H, W)"),
    ("targeted", {"region": MASK[0]}, InputError, "region must be a bool tensor (H, W) or (N, H"),
    ("targeted", {"region": ~MASK}, InputError, "region must be a bool tensor (H, W) or (N, H,"),
    ("manipulate", {"target": MASK}, InputTypeError, "target must be a floating tensor (H, W) or"),
    ("manipulate", {"target": X}, InputError, "target must be a floating tensor (H, W) or (N, H"),
    ("manipulate", {"target": MASK * 0.0}, InputError, "target must be finite and not zero every"),
    ("manipulate", {"target": MASK * math.nan}, InputError, "target must be finite and not zero"),
    ("manipulate", {"map_weight": 0}, InputError, "map_weight must be greater than 0, but 0 came"),
    ("manipulate", {"output_weight": -1}, InputError, "output_weight must be at least 0, but -1"),
]
CALLS = [
    ({"classifier": nn.Flatten()}, InputTypeError, "classifier must be a pytest_triguard.Classif"),
    ({"targets": 4}, InputError, "targets must be classes from 0 to 3, but 4 came"),
    ({"inputs": X.float()}, InputTypeError, "inputs must be torch.float64 like the classifier's"),
    ({"inputs": X - 1}, InputError, "inputs must lie inside the classifier's bounds [0, 1], but"),
    ({"ids": [1, 2]}, InputError, "ids must name 4 samples, but 2 came"),
]
AGAINST_DATA = [
    ("topk", {"k": 13}, "k must not exceed the 12 pixels of a map, but 13 came"),
    ("targeted", {"k": 13}, "k must not exceed the 12 pixels of a map, but 13 came"),
    ("targeted", {"region": MASK.T}, "region must have 3 x 4 pixels like the maps, but a Tensor"),
    ("targeted", {"region": MASK.expand(3, 3, 4)}, "region must be one per sample, but only 3 c"),
    ("manipulate", {"target": MASK.T * 1.0}, "target must have 3 x 4 pixels like the maps, but a"),
    ("manipulate", {"target": MASK.expand(3, 3, 4) * 1.0}, "target must be one per sample, but on"),
    ("topk", {"eps": 1.5}, "eps must not exceed the range of the inputs, 1, but 1.5 came; eps is"),
    ("topk", {"eps": torch.ones(3)}, "eps must be one number or a tensor of shape (4,), but a Te"),
]


def refused(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}")


@pytest.mark.parametrize(("options", "error", "message"), HYPERPARAMETERS)
@every_row
def test_a_bad_hyperparameter_is_refused(row, options, error, message):
    with refused(error, message):
        attribution_attacks.get(row.name, **options)


@pytest.mark.parametrize(("name", "options", "error", "message"), OF_ONE)
def test_a_bad_hyperparameter_of_one_attack_is_refused(name, options, error, message):
    with refused(error, message):
        attribution_attacks.get(name, **options)


@pytest.mark.parametrize(("options", "error", "message"), CALLS)
@every_row
def test_a_bad_argument_is_refused_and_the_module_left_alone(row, options, error, message):
    subject = classifier("linear")
    before = state_of(subject.module)
    with refused(error, message) as caught:
        row.attack()(**({"classifier": subject, "inputs": X} | options))
    assert "\n" not in str(caught.value)
    assert state_of(subject.module) == before


@pytest.mark.parametrize(("name", "options", "message"), AGAINST_DATA)
def test_what_does_not_go_with_the_data_is_refused(name, options, message):
    with refused(InputError, message):
        attribution_attacks.get(name, **options, steps=1)(classifier("linear"), X)


def test_an_unknown_attack_is_refused_with_the_nearest():
    with refused(InputError, "unknown attribution attack 'top_k'; did you mean 'topk'? (known: "):
        attribution_attacks.get("top_k")
    with refused(InputTypeError, "the name of an attribution attack must be a string, but 3 came"):
        attribution_attacks.get(3)


@dataclass(frozen=True, kw_only=True)
class Occlusion(Attribution):
    """No mean of gradients."""

    name: ClassVar[str] = "by_occlusion"

    @property
    def passes_per_sample(self):
        return 1

    def explain(self, model, batch):
        return batch.inputs.clone()


def test_an_attribution_without_gradients_is_refused_by_name():
    message = "attribution must be a mean of gradients to be attacked through them, but 'by_occlus"
    with refused(InputError, message):
        attribution_attacks.get("topk", attribution=Occlusion())(classifier("linear"), X)


class Aligning(nn.Module):
    """Scores by a loss of which torch has no second derivative."""

    def forward(self, inputs):
        steps = inputs.flatten(2).permute(1, 0, 2).log_softmax(2)
        long, rows = torch.full((len(inputs),), 2), len(inputs)
        wanted = torch.ones(rows, 1, dtype=torch.int64)
        loss = functional.ctc_loss(steps, wanted, long, long // 2, reduction="none")
        return torch.stack([loss, -loss], 1)


@every_row
def test_a_module_that_cannot_be_differentiated_twice_is_an_error(row):
    message = (
        "the module Aligning must be twice differentiable for an attack on its explanations, but "
        "autograd says: derivative for aten::_ctc_loss_backward is not implemented"
    )
    with refused(ModelError, message):
        row.attack(attribution="saliency")(Classifier(Aligning()), X, 0)


class Once(torch.autograd.Function):
    """A square that can be differentiated once; autograd hides the second derivative."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values * values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        (values,) = ctx.saved_tensors
        return 2 * values * slope


class OnlyOnce(nn.Module):
    def forward(self, inputs):
        squares = Once.apply(inputs.flatten(1))
        return torch.stack([squares.sum(1), -squares.sum(1)], 1)


@every_row
def test_a_hidden_second_derivative_leaves_every_sample_flat(row):
    found = row.attack(attribution="saliency", random_start=False)(Classifier(OnlyOnce()), X)
    assert found.flat.all()
    assert not found.success.any()


class Cliff(nn.Module):
    """No finite second derivative where the first pixel is 0."""

    def forward(self, inputs):
        flat = inputs.flatten(1)
        risen = flat[:, :1] ** 1.5
        return torch.cat([risen + flat.square().sum(1, keepdim=True), -risen], 1)


def test_a_search_that_meets_nan_is_an_error_and_names_the_sample():
    inputs = X.clone()
    inputs[:, 0, 0, 0] = 0.5
    inputs[2, 0, 0, 0] = 0.0
    attack = attribution_attacks.get("targeted", attribution="saliency", steps=3)
    message = (
        "the module Cliff must give finite logits and gradients inside the bounds, but the attack "
        "on the explanation of sample 'c' led to NaN"
    )
    with refused(ModelError, message):
        attack(Classifier(Cliff()), inputs, ids=list("abcd"))


# --- evaluation ---------------------------------------------------------------------------------

TOPK = attribution_attacks.get("topk", steps=1)
SALIENCY = attributions.get("saliency")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"attack": "topk"},
            InputTypeError,
            "attack must be an attack on explanations, but 'topk'",
        ),
        ({"attribution": "saliency"}, InputTypeError, "attribution must be an attribution, but 's"),
        ({"eps": 0.1}, InputTypeError, "eps must be a sequence of numbers, but 0.1 came"),
        ({"eps": [0.1]}, InputError, "eps must be two numbers or more that rise, but [0.1] came"),
        ({"eps": [0.2, 0.1]}, InputError, "eps must be two numbers or more that rise, but [0.2,"),
        ({"eps": [0.0, 0.1]}, InputError, "eps must be greater than 0, but 0 came"),
        ({"eps": [0.1, 2]}, InputError, "eps must not exceed the range of the inputs, 1, but 2"),
        ({"measures": ["entropy"]}, InputError, "metric must compare two maps, but 'entropy' came"),
        ({"measures": [3]}, InputTypeError, "metric must be a name or a metric, but 3 came; metr"),
    ],
)
def test_a_curve_refuses(options, error, message):
    given = {"attack": TOPK, "attribution": SALIENCY} | options
    with refused(error, message):
        attribution_attacks.attack_curve(classifier("linear"), X, **given)


def test_a_transfer_refuses():
    with refused(InputError, "methods must name one attribution at least, but [] came"):
        attribution_attacks.transfer_between(classifier("linear"), X, attack=TOPK, methods=[])
    with refused(InputTypeError, "attribution must be an attribution, but 3 came"):
        attribution_attacks.transfer_between(classifier("linear"), X, attack=TOPK, methods=[3])
    with refused(InputError, "metric must compare two maps, but 'trigger_recall' came"):
        attribution_attacks.transfer_between(
            classifier("linear"),
            X,
            attack=TOPK,
            methods=["saliency"],
            metric=metrics.get("trigger_recall"),
        )


def test_an_area_refuses():
    with refused(InputError, "values must hold one number for each of 2 radii, but 3 came"):
        attribution_attacks.area_over_log_eps([1, 1, 1], [0.1, 0.2])
