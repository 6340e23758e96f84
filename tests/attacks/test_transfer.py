"""Examples crafted on one classifier and judged by others."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attacks
from pytest_triguard.attacks import transfer_matrix
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.statistics import clopper_pearson
from tests.attacks.table import refused
from tests.networks import CLASSES, SHAPES, bare, images, problem

MIM = attacks.get("mim", eps=0.05, steps=3)


def two():
    """Return two classifiers of the same images that differ, and labels both get partly wrong."""
    first, inputs, labels = problem("conv", 24)
    other = bare(first)
    with torch.no_grad():
        other[7].weight.mul_(torch.linspace(0.4, 1.6, 12, dtype=torch.float64))
    return {"first": first, "second": Classifier(other)}, inputs, labels


def predicted(classifier, inputs):
    return bare(classifier)(inputs).argmax(1)


@pytest.mark.parametrize("targeted", [False, True])
def test_each_cell_is_what_crafting_and_judging_by_hand_gives(targeted):
    classifiers, inputs, labels = two()
    targets = (labels + 1) % CLASSES if targeted else None
    found = transfer_matrix(classifiers, MIM, inputs, labels, targets=targets)
    for source, crafting in classifiers.items():
        crafted = MIM(crafting, inputs, labels, targets=targets).adversarial
        for judge, judging in classifiers.items():
            after = predicted(judging, crafted)
            if targeted:
                fooled = after == targets
                expected = fooled.sum().item(), 24
            else:
                right = predicted(judging, inputs) == labels
                expected = ((after != labels) & right).sum().item(), right.sum().item()
            assert found.rate(source, judge) == expected[0] / expected[1]
            assert found.interval(source, judge) == clopper_pearson(*expected, 0.95)
    if not targeted:
        assert not torch.equal(found.succeeded[0], found.succeeded[1])
        assert (found.counted.sum(1) < 24).all()


def test_a_target_that_is_the_label_does_not_count():
    classifiers, inputs, labels = two()
    found = transfer_matrix(classifiers, MIM, inputs, labels, targets=1)
    assert torch.equal(found.counted, (labels != 1).expand(2, -1))
    assert not found.succeeded[:, :, labels == 1].any()


def test_classifiers_in_a_list_are_named_by_their_place_and_loaders_are_read():
    classifiers, inputs, labels = two()
    expected = transfer_matrix(classifiers, MIM, inputs, labels)
    data = DataLoader(TensorDataset(inputs, labels), batch_size=7)
    found = transfer_matrix(list(classifiers.values()), MIM, data)
    assert found.names == ("0", "1")
    assert torch.equal(found.succeeded, expected.succeeded)
    assert torch.equal(found.counted, expected.counted)


def test_the_table_can_be_read():
    classifiers, inputs, labels = two()
    found = transfer_matrix(classifiers, MIM, inputs, labels, confidence=0.9)
    method, head, *rows = str(found).splitlines()
    assert method == MIM.describe()
    assert head.split() == ["crafted", "on", "first", "second"]
    for row, source in zip(rows, classifiers, strict=True):
        cells = re.findall(r"(\d+)/(\d+) \((\d+) to (\d+) %\)", row)
        for judge, (won, of, low, high) in zip(classifiers, cells, strict=True):
            assert found.rate(source, judge) == int(won) / int(of)
            ends = clopper_pearson(int(won), int(of), 0.9)
            assert (int(low), int(high)) == tuple(round(100 * end) for end in ends)


def test_a_classifier_that_gets_nothing_right_has_no_rate():
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES)).double()
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)
    classifiers, inputs = two()[0], images(SHAPES["conv"], 4)
    labels = torch.tensor([1, 2, 3, 1])  # it says 0
    found = transfer_matrix({**classifiers, "dull": Classifier(module)}, MIM, inputs, labels)
    assert math.isnan(found.rate("first", "dull"))
    assert found.interval("first", "dull") == (0, 1)
    assert "none counts" in str(found)


class Slope(nn.Module):
    """Class 0, the less so the brighter or darker an image is; no answer above 0.55."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, inputs):
        mean = inputs.mean((1, 2, 3))
        logits = torch.stack([2 - self.sign * mean, torch.zeros_like(mean)], 1)
        return logits.masked_fill((mean > 0.55).unsqueeze(1) & (self.sign < 0), torch.nan)


def test_an_example_without_a_prediction_fools_nobody_and_is_an_error():
    inputs = torch.full((4, 1, 2, 2), 0.5)
    inputs[:2] = 0.3
    classifiers = {"brighter": Classifier(Slope(1.0)), "darker": Classifier(Slope(-1.0))}
    fgsm, labels = attacks.get("fgsm", eps=0.1), torch.zeros(4, dtype=torch.int64)
    with refused(ModelError, "the module must give finite logits, but those of sample 2 are not"):
        transfer_matrix(classifiers, fgsm, inputs, labels)


def test_bad_arguments_are_refused():
    classifiers, inputs, labels = two()
    with refused(InputError, "classifiers must be two or more, but 1 came"):
        transfer_matrix([classifiers["first"]], MIM, inputs, labels)
    with refused(InputTypeError, "classifiers must be a dict of names and classifiers, or a list"):
        transfer_matrix(classifiers["first"], MIM, inputs, labels)
    with refused(InputTypeError, "classifier must be a pytest_triguard.Classifier, but 3 came"):
        transfer_matrix([classifiers["first"], 3], MIM, inputs, labels)
    with refused(InputTypeError, "attack must be an attack, such as attacks.get('mim'), but 'mim'"):
        transfer_matrix(classifiers, "mim", inputs, labels)
    with refused(InputError, "confidence must be below 1, but 1 came"):
        transfer_matrix(classifiers, MIM, inputs, labels, confidence=1)
    with refused(InputError, "targets must be classes from 0 to 3, but 4 came"):
        transfer_matrix(classifiers, MIM, inputs, labels, targets=4)
    found = transfer_matrix(classifiers, MIM, inputs, labels)
    with refused(InputError, "judge must be one of first, second, but 'third' came"):
        found.rate("first", "third")
