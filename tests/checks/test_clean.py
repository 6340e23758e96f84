"""Accuracy counts every sample, and predicts each once."""

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, TriGuardFailure, assert_accuracy
from pytest_triguard.errors import ModelError
from tests.networks import bare, problem
from tests.sessions import with_settings


@pytest.mark.parametrize("name", ["linear", "conv", "residual"])
def test_the_value_is_the_share_of_right_predictions(name):
    subject, inputs, labels = problem(name, count=9)
    right = bare(subject)(inputs).argmax(1) == labels
    found = assert_accuracy(subject, inputs, labels, at_least=0)
    assert found.values.tolist() == right.double().tolist()
    assert found.value == right.double().mean()
    assert (found.n, found.undefined) == (9, 0)
    assert found.counts == {"correct": int(right.sum()), "misclassified": int((~right).sum())}


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_every_sample_is_passed_once(chunk):
    subject, inputs, labels = problem("linear", count=9)
    with with_settings(chunk=chunk):
        found = assert_accuracy(subject, inputs, labels, at_least=0)
    assert found.passes == {"forward": 9, "backward": 0}


def test_the_worst_are_those_whose_prediction_leads_by_most():
    subject, inputs, labels = problem("conv", count=40)
    logits = bare(subject)(inputs)
    predicted = logits.argmax(1)
    lead = logits.amax(1) - logits.gather(1, labels[:, None])[:, 0]
    with pytest.raises(TriGuardFailure) as caught:
        assert_accuracy(subject, inputs, labels, at_least=1)
    worst = caught.value.record.worst
    assert [each["id"] for each in worst] == lead.argsort(descending=True)[:5].tolist()
    for each in worst:
        assert each["label"] == labels[each["id"]]
        assert each["predicted"] == predicted[each["id"]] != each["label"]
        assert each["logit lead"] == pytest.approx(float(lead[each["id"]]), rel=1e-12)


def test_right_samples_are_none_of_the_worst():
    subject, inputs, labels = problem("linear", count=9)
    with pytest.raises(TriGuardFailure) as caught:
        assert_accuracy(subject, inputs, labels, at_least=1)
    assert [each["id"] for each in caught.value.record.worst] != []
    wrong = (bare(subject)(inputs).argmax(1) != labels).nonzero()[:, 0].tolist()
    assert sorted(each["id"] for each in caught.value.record.worst) == wrong


def test_classes_are_named_where_the_classifier_names_them():
    subject, inputs, _ = problem("linear", count=4)
    named = Classifier(subject.module, classes=["cat", "dog", "2", "bird"])
    with pytest.raises(TriGuardFailure) as caught:
        assert_accuracy(named, inputs, (bare(subject)(inputs).argmax(1) + 1) % 4, at_least=1)
    names = {0: "cat", 1: "dog", 3: "bird"}  # a name that is its number says nothing
    for each in caught.value.record.worst:
        for key in ("label", "predicted"):
            assert each.get(f"{key} name") == names.get(each[key])


class BrokenSomewhere(nn.Module):
    def forward(self, inputs):
        logits = inputs.flatten(1)[:, :2]
        return torch.where(logits > 0.9, torch.nan, logits)


def test_logits_that_are_not_finite_are_refused_by_sample():
    inputs = torch.full((300, 1, 2, 2), 0.5)
    inputs[[270, 280], 0, 0, 0] = 0.95
    with pytest.raises(ModelError) as caught:
        assert_accuracy(
            Classifier(BrokenSomewhere()), inputs, torch.zeros(300, dtype=torch.int64), at_least=0
        )
    assert str(caught.value) == (
        "the module must give finite logits, but those of sample 270 are not (2 of 300 samples)"
    )
