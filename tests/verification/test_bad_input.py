"""Each wrong argument gives one sentence that names it, what came, and what was expected."""

from __future__ import annotations

import pytest
import torch

from pytest_triguard import verification
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.running import running
from tests.verification.zoo import CLASSES, problem

INPUTS = torch.rand(4, 3, 2, 2)
WRONG = {
    "norm": ({"norm": "l3"}, InputError, "norm must be one of 'linf', 'l2', 'l1', but 'l3' came"),
    "method": ({"method": "crwn"}, InputError, "but 'crwn' came"),
    "method type": ({"method": 3}, InputTypeError, "method must be one of"),
    "arithmetic": (
        {"arithmetic": "float16"},
        InputError,
        "arithmetic must be one of 'real', 'float32', but 'float16' came",
    ),
    "negative eps": ({"eps": -0.1}, InputError, "eps must be at least 0, but -0.1 came"),
    "large eps": ({"eps": 25.5}, InputError, "eps must not exceed the range of the inputs, 1, but"),
    "eps of NaN": ({"eps": float("nan")}, InputError, "eps must be"),
    "eps type": ({"eps": "0.1"}, InputTypeError, "eps must be a number, but '0.1' came"),
    "eps count": (
        {"eps": torch.full((3,), 0.1)},
        InputError,
        "eps must name one value per sample, 4",
    ),
    "no eps": ({"eps": None}, InputError, "eps must be given, or lower and upper in its place"),
    "budget": ({"budget": 0}, InputError, "budget must be greater than 0, but 0 came"),
    "budget type": (
        {"budget": "1s"},
        InputTypeError,
        "budget must be seconds per sample or a Budget, but '1s' came",
    ),
    "half a box": ({"eps": None, "lower": INPUTS}, InputError, "upper is missing"),
    "eps and box": (
        {"lower": INPUTS, "upper": INPUTS},
        InputError,
        "eps must be None where lower and upper are given, but 0.1 came",
    ),
    "norm and box": (
        {"eps": None, "norm": "l2", "lower": INPUTS, "upper": INPUTS},
        InputError,
        "norm must be 'linf' where lower and upper are given, but 'l2' came",
    ),
    "box upside down": (
        {"eps": None, "lower": INPUTS + 0.1, "upper": INPUTS},
        InputError,
        "lower must be at most upper",
    ),
    "box elsewhere": (
        {"eps": None, "lower": INPUTS + 0.1, "upper": INPUTS + 0.2},
        InputError,
        "lower and upper must enclose the inputs, but sample 0 is outside",
    ),
    "box of integers": (
        {"eps": None, "lower": INPUTS.long(), "upper": INPUTS},
        InputTypeError,
        "lower must be a floating tensor, but a Tensor of shape",
    ),
    "box of another shape": (
        {"eps": None, "lower": INPUTS[..., :1], "upper": INPUTS[..., :1]},
        InputError,
        "lower must have the shape of the inputs",
    ),
    "boxes of two shapes": (
        {"eps": None, "lower": INPUTS, "upper": INPUTS[..., :1]},
        InputError,
        "lower and upper must have the same shape",
    ),
    "infinite box": (
        {"eps": None, "lower": INPUTS - torch.inf, "upper": INPUTS},
        InputError,
        "lower must be finite, but it holds NaN or infinity",
    ),
    "boxes too few": (
        {"eps": None, "lower": INPUTS[:2], "upper": INPUTS[:2]},
        InputError,
        "lower must name one value per sample, 4",
    ),
    "target": (
        {"specification": CLASSES},
        InputError,
        f"specification must name classes from 0 to {CLASSES - 1}, but {CLASSES} came",
    ),
    "negative target": ({"specification": -1}, InputError, "specification must be at least 0"),
    "targets of floats": (
        {"specification": torch.ones(4)},
        InputTypeError,
        "specification must be None, a class, integers (N,), rows (S, K) on the logits, or a TopK",
    ),
    "targets too few": (
        {"specification": torch.ones(3).long()},
        InputError,
        "specification must name one value per sample, 4",
    ),
    "columns": (
        {"specification": torch.ones(2, 7)},
        InputError,
        f"specification must have {CLASSES} columns, one per class",
    ),
    "rows of NaN": (
        {"specification": torch.full((1, CLASSES), torch.nan)},
        InputError,
        "specification must be finite",
    ),
    "word": ({"specification": "all"}, InputTypeError, "specification must be a whole number"),
}


@pytest.fixture
def case():
    subject, inputs, _ = problem("mlp", 4, dtype=torch.float32)
    return subject, inputs, subject(inputs).argmax(1)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    arguments, kind, words = WRONG[name]
    subject, _, _ = problem("mlp", 4, dtype=torch.float32)
    labels = subject(INPUTS).argmax(1)
    with pytest.raises(kind) as caught:
        verification.verify(subject, INPUTS, labels, **({"eps": 0.1} | arguments))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_that_is_the_label_is_refused(case):
    subject, inputs, labels = case
    with pytest.raises(InputError, match="other than the label, but for sample 0 it names"):
        verification.verify(subject, inputs, labels, eps=0.1, specification=labels)


def test_labels_are_asked_for(case):
    subject, inputs, _ = case
    with pytest.raises(InputError, match="labels are missing"):
        verification.verify(subject, inputs, eps=0.1)


def test_a_stream_checks_its_arguments_at_once(case):
    subject, inputs, labels = case
    with running(subject, inputs, labels) as run, pytest.raises(InputError, match="norm must be"):
        verification.verify_stream(run.model, run.samples, eps=0.1, norm="l7")


def test_a_stream_with_an_eps_too_few_names_it(case):
    subject, inputs, labels = case
    with running(subject, inputs, labels) as run:
        stream = verification.verify_stream(run.model, run.samples, eps=torch.full((2,), 0.1))
        with pytest.raises(InputError, match="eps must name one value per sample, but 2 came"):
            next(stream)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"method": "auto"}, InputError, "method must be one of 'alpha_crown', "),
        ({"lower": INPUTS.double()}, InputTypeError, "lower and upper must be torch.float32"),
        ({"lower": INPUTS[0]}, InputError, "lower must have shape"),
        ({"upper": INPUTS - 1}, InputError, "lower must be at most upper"),
    ],
)
def test_wrong_arguments_of_bounds_are_named(case, arguments, kind, words):
    given = {"lower": INPUTS, "upper": INPUTS, "method": "ibp"} | arguments
    with pytest.raises(kind, match=words):
        verification.bounds(case[0], given.pop("lower"), given.pop("upper"), **given)


def test_a_bare_module_is_refused(case):
    with pytest.raises(InputTypeError, match=r"classifier must be a pytest_triguard\.Classifier"):
        verification.bounds(case[0].module, INPUTS, INPUTS, method="ibp")


def test_weights_that_are_not_finite_are_refused(case):
    subject, inputs, labels = case
    with torch.no_grad():
        subject.module[1].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="must give finite logits"):
        verification.verify(subject, inputs, labels, eps=0.1)
