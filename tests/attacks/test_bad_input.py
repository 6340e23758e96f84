"""What attacks refuse: one sentence that names the argument, what came, and what was expected."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attacks
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from tests.attacks.table import SOME, TABLE, binary, every_row, plain_rows, refused, stepping_rows
from tests.module_state import state_of
from tests.networks import CLASSES, classifier, images

X, Y = images((2, 3, 4), 4), torch.tensor([0, 1, 2, 3])
INTEGERS, HOLED = torch.ones(4, dtype=torch.int64), torch.tensor([0.1, math.nan])

HYPERPARAMETERS = [
    ({"eps": -0.1}, InputError, "eps must be at least 0, but -0.1 came"),
    ({"eps": math.nan}, InputError, "eps must be at least 0, but nan came"),
    ({"eps": "8/255"}, InputTypeError, "eps must be a number, but '8/255' came"),
    ({"eps": True}, InputTypeError, "eps must be a number, but True came"),
    ({"eps": INTEGERS}, InputError, "eps must be one number or a floating (N,) tensor, but a"),
    ({"eps": X}, InputError, "eps must be one number or a floating (N,) tensor, but a Tensor of"),
    ({"eps": HOLED}, InputError, "eps must be finite and at least 0 for every sample"),
    ({"norm": "l3"}, InputError, "norm must be one of 'linf', 'l2', but 'l3' came; did you mean"),
    ({"norm": 2}, InputTypeError, "norm must be one of 'linf', 'l2', but 2 came"),
    ({"seed": -1}, InputError, "seed must be at least 0, but -1 came"),
    ({"seed": 1.5}, InputTypeError, "seed must be a whole number, but 1.5 came"),
]
LOSS = [
    ({"trajectory": 1}, InputTypeError, "trajectory must be True or False, but 1 came"),
    (
        {"loss": "margins"},
        InputError,
        "loss must be one of 'cross_entropy', 'probability', 'logit', 'contrast', 'margin', 'dlr', "
        "but 'margins' came; "
        "did you mean 'margin'?",
    ),
]
STEPS = [
    ({"steps": 0}, InputError, "steps must be at least 1, but 0 came"),
    ({"steps": 2.0}, InputTypeError, "steps must be a whole number, but 2.0 came"),
    ({"step_size": -1}, InputError, "step_size must be at least 0, but -1 came"),
    ({"stop": "early"}, InputError, "stop must be one of 'success', 'never', but 'early' came"),
    ({"random_start": 0}, InputTypeError, "random_start must be True or False, but 0 came"),
    ({"restarts": 0}, InputError, "restarts must be at least 1, but 0 came"),
    (
        {"restarts": 2, "random_start": False},
        InputError,
        "restarts=2 needs random_start=True: without it every start is alike",
    ),
    (
        {"restarts": 2, "random_start": True, "trajectory": True},
        InputError,
        "trajectory=True needs one start, but restarts=2 came",
    ),
]
CALLS = [
    (
        {"classifier": nn.Flatten()},
        InputTypeError,
        "classifier must be a pytest_triguard.Classifier, but Flatten(start_dim=1, end_dim=-1) "
        "came; wrap the module",
    ),
    ({"labels": None}, InputError, "labels are missing: give them beside the inputs, or in the"),
    ({"labels": [0, 1, 2, 3]}, InputTypeError, "labels must be a tensor (N,), but [0, 1, 2, 3]"),
    ({"labels": Y[:3]}, InputError, "labels must have shape (4,) to go with the inputs, but a"),
    ({"labels": Y + 1}, InputError, "labels must be classes from 0 to 3, but 4 came"),
    ({"labels": Y - 1}, InputError, "labels must be classes from 0 on, but -1 came"),
    ({"labels": Y.double()}, InputTypeError, "labels must be integers, but torch.float64 came"),
    (
        {"inputs": TensorDataset(X, Y)},
        InputError,
        "labels must come from the loader itself, but were given beside it",
    ),
    ({"targets": 4}, InputError, "targets must be classes from 0 to 3, but 4 came"),
    ({"targets": Y[:2]}, InputError, "targets must be one class or a tensor of shape (4,), but a"),
    ({"targets": Y.double()}, InputTypeError, "targets must be integers, but torch.float64 came"),
    ({"targets": 1.0}, InputTypeError, "targets must be a whole number, but 1.0 came"),
    ({"targets": [1]}, InputTypeError, "targets must be a whole number, but [1] came"),
    ({"ids": [1, 2]}, InputError, "ids must name 4 samples, but 2 came"),
    ({"ids": [1, 2, 1, 3]}, InputError, "ids must be unique, but 1 came twice"),
    ({"inputs": [1.0]}, InputTypeError, "inputs must be a tensor (N, C, H, W), a Dataset or a"),
    ({"inputs": X.flatten(1)}, InputError, "inputs must have shape (N, C, H, W), but a Tensor of"),
    ({"inputs": X.float()}, InputTypeError, "inputs must be torch.float64 like the classifier's"),
    ({"inputs": X.long()}, InputTypeError, "inputs must be floating, but torch.int64 came; for"),
    ({"inputs": X * math.nan}, InputError, "inputs must be finite, but sample 0 holds NaN or"),
    ({"inputs": X[:0], "labels": Y[:0]}, InputError, "inputs must hold at least one sample, but"),
    (
        {"inputs": X - 1},
        InputError,
        "inputs must lie inside the classifier's bounds [0, 1], but sample 0 reaches from -1 to 0; "
        "if the data are normalised, drop Normalize from them and give mean and std",
    ),
    (
        {"inputs": X[..., :2]},
        ModelError,
        "the module Sequential must take inputs of shape (N, 2, 3, 2) and dtype torch.float64, but "
        "it raised RuntimeError: mat1 and mat2 shapes cannot be",
    ),
]


@every_row
def test_a_bad_hyperparameter_is_refused(row):
    for options, error, message in HYPERPARAMETERS:
        with refused(error, message):
            attacks.get(row.name, **options)


@stepping_rows
def test_a_bad_loss_or_trajectory_is_refused(row):
    for options, error, message in LOSS:
        with refused(error, message):
            attacks.get(row.name, **options)


@pytest.mark.parametrize("row", [row for row in TABLE if row.stepwise], ids=lambda row: row.name)
def test_a_bad_hyperparameter_of_steps_is_refused(row):
    for options, error, message in STEPS:
        with refused(error, message):
            attacks.get(row.name, **options)


@every_row
def test_an_unknown_hyperparameter_is_refused_with_the_nearest(row):
    with refused(
        InputError, f"attack {row.name!r} has no hyperparameter 'epss'; did you mean 'eps'? (known"
    ):
        attacks.get(row.name, epss=1)


def test_an_unknown_attack_is_refused_with_the_nearest():
    with refused(InputError, "unknown attack 'pdg'; did you mean 'pgd'? (known: "):
        attacks.get("pdg")
    with refused(InputTypeError, "the name of an attack must be a string, but 3 came"):
        attacks.get(3)


@plain_rows
def test_a_bad_argument_is_refused_and_the_module_left_alone(row):
    subject = classifier("linear")
    before = state_of(subject.module)
    for options, error, message in CALLS:
        given = {"classifier": subject, "inputs": X, "labels": Y} | options
        with refused(error, message) as caught:
            attacks.get(row.name, **row.few)(**given)
        assert "\n" not in str(caught.value)
        assert state_of(subject.module) == before


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", 1.1, "eps must not exceed the range of the inputs, 1, but 1.1 came; eps is"),
        ("l2", 5.0, "eps must not exceed the diagonal of their range, 4.89898, but 5 came; eps is"),
    ],
)
@pytest.mark.parametrize("row", [row for row in TABLE if len(row.norms) == 2], ids=str)
def test_an_eps_beyond_the_range_is_refused(row, norm, eps, message):
    for radius in (eps, torch.tensor([0.1, 0.1, eps, 0.1], dtype=torch.float64)):
        with refused(InputError, message):
            attacks.get(row.name, eps=radius, norm=norm)(classifier("linear"), X, Y)


@every_row
def test_one_eps_per_sample_needs_as_many_as_there_are_samples(row):
    attack = attacks.get(row.name, eps=torch.full((3,), 0.1))
    with refused(InputError, "eps must be one number or a tensor of shape (4,), but a Tensor of "):
        attack(classifier("linear"), X, Y)
    of_unknown_length = DataLoader(TensorDataset(X, Y), batch_size=2, drop_last=True)
    with refused(InputError, "eps must be one number, but a Tensor of shape (3,) and dtype torch"):
        attack(classifier("linear"), of_unknown_length)


@pytest.mark.parametrize(("target", "needed"), [(None, 3), (1, 4)])
@stepping_rows
def test_dlr_needs_enough_classes(row, target, needed):
    message = f"loss='dlr' needs at least {needed} classes, but the classifier has 2; use loss='m"
    with refused(InputError, message):
        attacks.get(row.name, loss="dlr", **row.few)(binary(), X, Y % 2, targets=target)


class Cliff(nn.Module):
    """NaN, or a NaN gradient, where the first pixel is beyond one half."""

    def __init__(self, *, gradient_only: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(12, CLASSES, bias=False).double()
        self.layer.weight.data = torch.linspace(-1, 1, 48).double().view(CLASSES, 12)
        self.gradient_only = gradient_only

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        room = 0.5 - flat[:, :1]
        # Masked, the root is 0 there, and its slope infinity times zero.
        return self.layer(flat) + (room * (room > 0) if self.gradient_only else room).sqrt()


@pytest.mark.parametrize(
    ("case", "gradient_only"),
    [(c, only) for c in SOME for only in (True, False) if c.row.gradients or not only],
    ids=str,
)
def test_a_search_that_meets_nan_is_an_error_and_no_success(case, gradient_only):
    inputs = torch.full((6, 1, 3, 4), 0.4, dtype=torch.float64)
    inputs[5] = 0.6
    module = Cliff(gradient_only=gradient_only)
    with torch.no_grad():
        labels = module(inputs if gradient_only else inputs.clamp_max(0.5)).argmax(1)
    message = (
        "the module Cliff must give finite logits and gradients inside the bounds, but the search "
        "from sample 5 led to NaN"
    )
    with refused(ModelError, message):
        case.attack(eps=0.01)(Classifier(module), inputs, labels, targets=case.targets(labels))


class Edge(nn.Module):
    """Two classes by the mean pixel, and no answer where that is above -0.2."""

    def forward(self, inputs: Tensor) -> Tensor:
        score = inputs.mean((1, 2, 3))
        logits = torch.stack([score, -score], 1)
        return torch.where(score.unsqueeze(1) > -0.2, torch.nan, logits)


@pytest.mark.parametrize("row", [row for row in TABLE if row.straight is not None], ids=str)
def test_a_search_that_ends_at_nan_is_an_error_and_no_success(row):
    subject = Classifier(Edge(), bounds=(-1.0, 1.0))
    inputs = torch.full((3, 1, 2, 2), -0.5, dtype=torch.float64)
    one_step = {"steps": 1, "random_start": False} if row.whole else {}
    with refused(ModelError, "the module Edge must give finite logits and gradients inside"):
        attacks.get(row.name, eps=0.4, **row.few | one_step)(subject, inputs, torch.ones(3).long())
