"""What attributions refuse: one sentence that names the argument, what came, what was expected."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pytest_triguard import attacks, attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from tests.attributions.table import TABLE, every_row
from tests.module_state import state_of
from tests.networks import classifier, images

X, Y = images((2, 3, 4), 4), torch.tensor([0, 1, 2, 3])

HYPERPARAMETERS = [
    (
        {"output": "logits"},
        InputError,
        "output must be one of 'logit', 'probability', 'log_probability', 'contrast', but 'logits' "
        "came; did you mean 'logit'?",
    ),
    ({"output": None}, InputTypeError, "output must be one of 'logit', 'probability', '"),
    ({"seed": -1}, InputError, "seed must be at least 0, but -1 came"),
    ({"seed": "0"}, InputTypeError, "seed must be a whole number, but '0' came"),
    ({"outptu": "logit"}, InputError, "has no hyperparameter 'outptu'; did you mean 'output'?"),
]
OF_ONE = [
    ("integrated_gradients", {"points": 0}, InputError, "points must be at least 1, but 0 came"),
    (
        "integrated_gradients",
        {"points": 2.5},
        InputTypeError,
        "points must be a whole number, but 2.5 came",
    ),
    (
        "integrated_gradients",
        {"rule": "trapezoid"},
        InputError,
        "rule must be one of 'midpoint', 'gauss_legendre', but 'trapezoid' came",
    ),
    (
        "integrated_gradients",
        {"baseline": "zeros"},
        InputError,
        "baseline must be one of 'zero', 'blur', 'noise', 'uniform', 'midpoint', but 'zeros' came; "
        "did you mean 'zero'?",
    ),
    (
        "integrated_gradients",
        {"baseline": 0},
        InputTypeError,
        "baseline must be a tensor or one of zero, blur, noise, uniform, midpoint, but 0 came",
    ),
    (
        "integrated_gradients",
        {"baseline": torch.zeros(3)},
        InputError,
        "baseline must be a floating tensor (C, H, W) or (N, C, H, W), but a Tensor of shape (3,)",
    ),
    (
        "integrated_gradients",
        {"baseline": torch.zeros(2, 3, 4, dtype=torch.int64)},
        InputError,
        "baseline must be a floating tensor (C, H, W) or (N, C, H, W), but a Tensor of shape (2, 3",
    ),
    ("guided_ig", {"fraction": 0}, InputError, "fraction must be from 0 to 1 (0 excluded), but 0"),
    ("guided_ig", {"steps": 0}, InputError, "steps must be at least 1, but 0 came"),
    (
        "guided_ig",
        {"max_distance": 2},
        InputError,
        "max_distance must be from 0 to 1, but 2 came",
    ),
    ("guided_ig", {"mode": "paper"}, InputError, "mode must be one of 'canonical', 'reference', "),
    ("agi", {"classes": 0}, InputError, "classes must be at least 1, but 0 came"),
    ("agi", {"step_size": -1}, InputError, "step_size must be at least 0, but -1 came"),
    ("agi", {"mode": "paper"}, InputError, "mode must be one of 'canonical', 'reference', but"),
    ("mfaba", {"steps": 0}, InputError, "steps must be at least 1, but 0 came"),
    ("mfaba", {"eps": -1}, InputError, "eps must be at least 0, but -1 came"),
    ("mfaba", {"norm": "l1"}, InputError, "norm must be one of 'linf', 'l2', but 'l1' came"),
    ("attexplore", {"copies": 0}, InputError, "copies must be at least 1, but 0 came"),
    ("attexplore", {"size": 4}, InputError, "size must be odd, but 4 came"),
    ("attexplore", {"probability": 2}, InputError, "probability must be from 0 to 1, but 2 came"),
    (
        "attexplore_plus_plus",
        {"attack": "gar"},
        InputError,
        "unknown attack 'gar'; did you mean 'gra'?",
    ),
    ("attexplore_plus_plus", {"attack": 3}, InputTypeError, "attack must be an attack or its name"),
    (
        "attexplore_plus_plus",
        {"attack": "square"},
        InputError,
        "attack must step along gradients, as bim and gra do, but 'square' came",
    ),
    (
        "attexplore_plus_plus",
        {"attack": "bim", "preset": "vgg16"},
        InputError,
        "attack must be left out or be 'gra' for preset='vgg16', but 'bim' came",
    ),
    (
        "attexplore_plus_plus",
        {"preset": "vgg"},
        InputError,
        "preset must be one of 'inception_v3', 'maxvit_t', 'resnet50', 'vgg16', 'vit_b_16', but",
    ),
    (
        "attexplore_plus_plus",
        {"attack": attacks.get("pgd", restarts=2)},
        InputError,
        "attack must have one start, but restarts=2 came",
    ),
    (
        "attexplore_plus_plus",
        {"attack": attacks.get("bim", eps=torch.ones(4))},
        InputError,
        "attack must have one eps for all samples, but a Tensor of shape (4,)",
    ),
    (
        "attexplore_plus_plus",
        {"attack": attacks.get("bim", loss="dlr")},
        InputError,
        "attack must ascend a loss made of an output (logit, probability, cross_entropy, contrast)",
    ),
    ("big", {"eps": ()}, InputError, "eps must be radii that rise, one at least, but () came"),
    ("big", {"eps": (0.3, 0.1)}, InputError, "eps must be radii that rise, one at least, but (0.3"),
    ("big", {"eps": 0.3}, InputTypeError, "eps must be a sequence of radii, but 0.3 came"),
    ("big", {"eps": (0.0,)}, InputError, "eps must be greater than 0, but 0 came"),
    ("big", {"loss": "ce"}, InputError, "loss must be one of 'cross_entropy', 'probability', '"),
    ("big", {"halvings": -1}, InputError, "halvings must be at least 0, but -1 came"),
    ("occlusion", {"window": 0}, InputError, "window must be at least 1, but 0 came"),
    (
        "occlusion",
        {"window": 2, "stride": 3},
        InputError,
        "stride must be at most the window, 2, so that every pixel is hidden once, but 3 came",
    ),
    ("ig_uniform", {"references": 0}, InputError, "references must be at least 1, but 0 came"),
    ("ig_sg", {"points": 0}, InputError, "points must be at least 1, but 0 came"),
    ("ig_sg", {"keep": "some"}, InputError, "keep must be one of 'all', 'valid_references', 'v"),
    ("ig_sq", {"noise_level": -1}, InputError, "noise_level must be at least 0, but -1 came"),
    ("unigrad", {"radius": -1}, InputError, "radius must be at least 0, but -1 came"),
    ("expected_gradients", {"copies": 0}, InputError, "copies must be at least 1, but 0 came"),
    ("smoothgrad", {"copies": 0}, InputError, "copies must be at least 1, but 0 came"),
    (
        "smoothgrad",
        {"noise_level": -0.1},
        InputError,
        "noise_level must be at least 0, but -0.1 came",
    ),
    (
        "smoothgrad_squared",
        {"noise_level": math.inf},
        InputError,
        "noise_level must be at least 0, but inf came",
    ),
    *(
        (name, {argument: value}, InputError, f"{argument} must be finite, but a Tensor of shape")
        for name, argument, value in (
            ("integrated_gradients", "baseline", X[0] / 0),
            ("guided_ig", "baseline", X.log() * 0),
            ("deeplift", "baseline", X[0] / 0),
            ("occlusion", "baseline", X[0] / 0),
            ("expected_gradients", "references", X / 0),
            ("lpi", "references", X / 0),
            ("lpi", "weights", torch.tensor([math.nan, 1.0])),
            ("lpi", "centers", torch.tensor([[math.nan, 1.0]])),
        )
    ),
]
CALLS = [
    (
        {"classifier": nn.Flatten()},
        InputTypeError,
        "classifier must be a pytest_triguard.Classifier, but Flatten(start_dim=1, end_dim=-1)",
    ),
    ({"targets": 4}, InputError, "targets must be classes from 0 to 3, but 4 came"),
    ({"targets": Y - 1}, InputError, "targets must be classes from 0 on, but -1 came"),
    ({"targets": Y[:2]}, InputError, "targets must be one class or a tensor of shape (4,), but"),
    ({"targets": Y.double()}, InputTypeError, "targets must be integers, but torch.float64 came"),
    ({"targets": True}, InputTypeError, "targets must be a whole number, but True came"),
    ({"inputs": TensorDataset(X, Y + 1)}, InputError, "labels must be classes from 0 to 3, but 4"),
    ({"ids": [1, 2]}, InputError, "ids must name 4 samples, but 2 came"),
    ({"inputs": X[0]}, InputError, "inputs must have shape (N, C, H, W), but a Tensor of shape"),
    ({"inputs": X.long()}, InputTypeError, "inputs must be floating, but torch.int64 came; for"),
    ({"inputs": X / 0}, InputError, "inputs must be finite, but sample 0 holds NaN or infinity"),
    ({"inputs": X * 255}, InputError, "inputs must lie inside the classifier's bounds [0, 1], but"),
    ({"inputs": X[:0]}, InputError, "inputs must hold at least one sample, but none came"),
    ({"inputs": X[:, :1]}, ModelError, "the module Sequential must take inputs of shape (N, 1,"),
]


def refused(error, message):
    return pytest.raises(error, match=re.escape(message))


def ids(table):
    return ["-".join(options) for *_, options, _, _ in table]


@every_row
def test_a_bad_hyperparameter_is_refused(row):
    for options, error, message in HYPERPARAMETERS:
        with refused(error, message):
            attributions.get(row.name, **options)


@pytest.mark.parametrize(("name", "options", "error", "message"), OF_ONE, ids=ids(OF_ONE))
def test_a_bad_hyperparameter_of_one_method_is_refused(name, options, error, message):
    with refused(error, message):
        attributions.get(name, **options)


def test_a_tensor_that_is_not_finite_is_refused_where_it_is_not():
    baseline = X[0].clone()
    baseline[1, 2, 0] = math.nan
    with refused(InputError, "came, which holds NaN or infinity, first at (1, 2, 0)"):
        attributions.get("integrated_gradients", baseline=baseline)


def test_an_unknown_attribution_is_refused_with_the_nearest():
    with refused(InputError, "unknown attribution 'salience'; did you mean 'saliency'? (known:"):
        attributions.get("salience")


@every_row
def test_a_bad_argument_is_refused_and_the_module_left_alone(row):
    subject = classifier("linear")
    before = state_of(subject.module)
    for options, error, message in CALLS:
        given = {"classifier": subject, "inputs": X} | options
        with refused(error, message) as caught:
            row.method()(**given)
        assert "\n" not in str(caught.value)
        assert state_of(subject.module) == before


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (X[..., :3], "baseline must have shape (2, 3, 4) to go with the inputs, but a Tensor of"),
        (X[:3], "baseline must hold one input per sample, but only 3 came"),
    ],
)
def test_a_baseline_that_does_not_go_with_the_samples_is_refused(baseline, message):
    method = attributions.get("integrated_gradients", baseline=baseline)
    with refused(InputError, message):
        method(classifier("linear"), X, Y)


class Kink(nn.Module):
    """A root, whose slope is infinite at zero."""

    def forward(self, inputs):
        root = inputs.flatten(1).sqrt()
        return torch.stack([root.sum(1), -root.sum(1)], 1)


@pytest.mark.parametrize(
    "row",
    [row for row in TABLE if row.looks or (row.anywhere and not (row.many or row.finite))],
    ids=lambda row: row.name,
)
def test_a_map_that_is_not_finite_is_refused(row):
    inputs = images((1, 3, 4), 4) * 0.5 + 0.25
    inputs[2, 0, 1, 1] = 0.0
    message = f"{row.name} must give finite maps, but that of sample 2 holds NaN or infinity; the m"
    if row.looks:  # the search may meet it first
        message = "must give finite"
    with refused(ModelError, message):
        row.method()(Classifier(Kink()), inputs, 0)
