"""Examples crafted on other classifiers, and the gate on how often they fool this one."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, TriGuardFailure, assert_transfer_below, attacks
from pytest_triguard.errors import InputError, InputTypeError
from tests.networks import CLASSES, bare, problem
from tests.sessions import with_settings

MIM = attacks.get("mim", eps=0.05, steps=3)
COUNT = 24


def classifiers():
    """Return a classifier, two others that differ from it, and data it gets partly wrong."""
    subject, inputs, labels = problem("conv", COUNT)
    others = []
    for scales in (torch.linspace(0.4, 1.6, 12), torch.linspace(2.0, 0.1, 12)):
        module = bare(subject)
        with torch.no_grad():
            module[7].weight.mul_(scales.double())
        others.append(Classifier(module))
    return subject, others, inputs, labels


def predicted(classifier, inputs):
    return bare(classifier)(inputs).argmax(1)


def fooled(subject, source, attack, inputs, labels, target=None):
    """Return by hand who is fooled by examples crafted on a source."""
    goals = None if target is None else torch.full_like(labels, target)
    crafted = attack(source, inputs, labels, targets=goals).adversarial
    after = predicted(subject, crafted)
    return after != labels if target is None else after == target


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("attack", [MIM, attacks.get("pgd", eps=0.05, steps=4)])
def test_the_values_are_those_of_crafting_and_judging_by_hand(target, count, attack):
    subject, others, inputs, labels = classifiers()
    given = {"source": others[:count], "attack": attack, "target": target}
    found = assert_transfer_below(subject, inputs, labels, threshold=1, **given)
    by_hand = [fooled(subject, each, attack, inputs, labels, target) for each in others[:count]]
    right = predicted(subject, inputs) == labels if target is None else labels != target
    any_of_them = torch.stack(by_hand).any(0).double()
    expected = torch.where(right, any_of_them, torch.nan)
    np.testing.assert_array_equal(found.values, expected.numpy())
    assert (found.n, found.counts["succeeded"]) == (int(right.sum()), int(any_of_them[right].sum()))
    assert 0 < found.counts["succeeded"] < found.n
    names = [each.fingerprint() for each in others[:count]]
    assert found.parameters["sources"] == names
    if count == 2:
        first, left = by_hand[0] & right, by_hand[1] & ~by_hand[0] & right
        assert [found.counts[f"crafted on {name}"] for name in names] == [first.sum(), left.sum()]


def test_one_source_in_a_list_is_that_source():
    subject, others, inputs, labels = classifiers()
    options = {"threshold": 1, "attack": MIM}
    one = assert_transfer_below(subject, inputs, labels, source=others[0], **options)
    listed = assert_transfer_below(subject, inputs, labels, source=others[:1], **options)
    np.testing.assert_array_equal(one.values, listed.values)
    assert one.counts == listed.counts


def test_passes_are_those_of_the_attack_on_what_stands_and_of_judging():
    """Whoever fell to the first source is not attacked on the second."""
    subject, others, inputs, labels = classifiers()
    found = assert_transfer_below(subject, inputs, labels, threshold=1, source=others, attack=MIM)
    fell = found.counts[f"crafted on {others[0].fingerprint()}"]
    attacked = found.n + (found.n - fell)
    assert fell > 0
    assert found.passes["backward"] == MIM.steps * attacked
    # Each search judges its last point, and the classifier the clean sample and each example.
    assert found.passes["forward"] == (MIM.steps + 1) * attacked + COUNT + attacked
    name = others[1].fingerprint()
    spent = found.record.diagnostics[f"backward passes on {name}"]
    assert spent == MIM.steps * (found.n - fell)


def test_a_failure_shows_and_saves_examples_that_fool_the_classifier(tmp_path):
    subject, others, inputs, labels = classifiers()
    with with_settings(artifacts=tmp_path), pytest.raises(TriGuardFailure) as caught:
        assert_transfer_below(subject, inputs, labels, threshold=0.01, source=others, attack=MIM)
    record = caught.value.record
    assert "mim on any of 2 other classifiers leads this one to another class" in record.subject
    assert {each["by"] for each in record.worst} <= {each.fingerprint() for each in others}
    for each in record.worst:
        assert each["predicted"] != each["label"]
        assert each["label"] == labels[each["id"]]
    (path,) = record.artifacts
    with np.load(path) as saved:
        broken, truth = (torch.from_numpy(saved[name]) for name in ("broken", "labels"))
    assert (predicted(subject, broken) != truth).all()


def test_an_attack_that_could_not_look_is_told_and_fails_where_that_was_asked_for():
    subject, _, inputs, labels = classifiers()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), CLASSES)).double()
    nn.init.zeros_(flat[1].weight)
    given = {"threshold": 1, "source": Classifier(flat), "attack": MIM}
    found = assert_transfer_below(subject, inputs, labels, **given)
    assert found.value == 0
    assert "on the source" in found.record.warnings["zero gradients"]
    with pytest.raises(TriGuardFailure, match="zero gradients"):
        assert_transfer_below(subject, inputs, labels, strict=True, **given)


def test_wrong_sources_are_refused():
    subject, others, inputs, labels = classifiers()
    narrow = Classifier(bare(subject), bounds=(0.0, 2.0))
    single = Classifier(bare(subject).float())
    three = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 3)).double()
    dtypes = "source must have parameters of torch.float64, but torch.float32 came"
    for source, error, message in (
        (None, InputTypeError, "source must be a Classifier or a list of them, but None came"),
        ([others[0], 3], InputTypeError, "source must be a Classifier or a list of them, but 3"),
        ([], InputError, "source must hold at least one classifier, but an empty list came"),
        ([others[0]] * 2, InputError, "source must hold different classifiers, but two of them"),
        (narrow, InputError, "source must have the bounds of the classifier, [0, 1], but [0, 2]"),
        (single, InputError, dtypes),
        (Classifier(three), InputError, "source must have the 4 classes of the classifier, but 3"),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            assert_transfer_below(subject, inputs, labels, threshold=0.5, source=source, attack=MIM)
    with pytest.raises(InputError, match=r"^target must be a class from 0 to 3, but 4 came"):
        assert_transfer_below(
            subject, inputs, labels, threshold=0.5, source=others, attack=MIM, target=4
        )
