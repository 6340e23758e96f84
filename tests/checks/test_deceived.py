"""Explanations under attack: their values, what is undefined, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard import (
    Classifier,
    TriGuardFailure,
    assert_explanation_robust,
    attribution_attacks,
    attributions,
    metrics,
)
from pytest_triguard.errors import InputError, InputTypeError
from tests.networks import bare, images, problem
from tests.sessions import with_settings

COUNT = 8
TOPK = attribution_attacks.get("topk", eps=0.1, steps=5)
ARGUMENTS = {
    "attack": TOPK,
    "attribution": "saliency",
    "eps": 0.1,
    "metric": "spearman",
    "at_least": -1.0,
    "undefined_at_most": 1.0,
}


@pytest.fixture(scope="module")
def smooth():
    return problem("smooth", COUNT)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["topk_intersection", "spearman", "mass_center", "cosine"])
def test_values_compare_the_maps_of_samples_and_of_attacked_samples(smooth, name, labelled):
    subject, inputs, labels = smooth
    explained = labels if labelled else bare(subject)(inputs).argmax(1)
    metric, saliency = metrics.get(name), attributions.get("saliency")
    gate = {"at_least": None, "at_most": None}
    gate["at_least" if metric.similarity else "at_most"] = -1.0 if name == "spearman" else 0.0
    if not metric.similarity:
        gate["at_most"] = metric.reach((3, 6, 7))[1]
    found = assert_explanation_robust(
        subject,
        inputs,
        labels if labelled else None,
        **ARGUMENTS | gate | {"metric": name},
    )
    attack = replace(TOPK, attribution=saliency, criterion=metric)
    points = attack(subject, inputs, explained).adversarial
    expected = metric(*(saliency(subject, each, explained) for each in (inputs, points)))
    assert found.values == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-12)
    assert found.value == pytest.approx(float(expected.mean()))
    assert found.record.metric == f"mean {metric.title} under attack"
    assert found.record.relation == (">=" if metric.similarity else "<=")


def test_a_gate_fails_and_says_what_was_tried(smooth):
    subject, inputs, _ = smooth
    with pytest.raises(TriGuardFailure) as caught:
        assert_explanation_robust(subject, inputs, **ARGUMENTS | {"at_least": 1.0})
    record, message = caught.value.record, str(caught.value)
    assert message.startswith("mean Spearman rank correlation under attack")
    assert record.subject == (
        "saliency maps of a sample and of one predicted alike in the L-inf ball of eps 0.1 (input "
        "units, range [0, 1])"
    )
    assert "topk: 1 start of 5 steps, softplus of beta 10 for ReLU" in record.method
    assert "saliency of the logit, 1 pass per map" in record.method
    values = [each["value"] for each in record.worst]
    assert values == sorted(values)
    assert record.worst[0].keys() == {"id", "value", "class", "distance"}
    json.dumps(record.parameters)
    assert record.parameters["attack"] == "topk"
    assert record.parameters["metric"]["metric"] == "spearman"
    assert record.parameters["judged"]["attribution"] == "saliency"


def test_an_attack_of_its_own_for_another_map_is_judged_by_its_transfer(smooth):
    subject, inputs, labels = smooth
    saliency, other = attributions.get("saliency"), attributions.get("gradient_x_input")
    attack = replace(TOPK, attribution=other, criterion="cosine")
    found = assert_explanation_robust(subject, inputs, labels, **ARGUMENTS | {"attack": attack})
    points = attack(subject, inputs, labels).adversarial
    maps, others = (saliency(subject, each, labels) for each in (inputs, points))
    expected = metrics.get("spearman")(maps, others)
    assert found.values == pytest.approx(expected.numpy(), rel=1e-9)


def test_eps_none_leaves_the_valid_range(smooth):
    subject, inputs, _ = smooth
    attack = attribution_attacks.get("manipulate", steps=2)
    options = {"attack": attack, "eps": None, "metric": "cosine", "at_least": None, "at_most": 1}
    found = assert_explanation_robust(subject, inputs, **ARGUMENTS | options)
    assert "predicted alike in the valid range" in found.record.subject
    named = assert_explanation_robust(
        subject, inputs, **ARGUMENTS | {"attack": "topk", "eps": 0.05}
    )
    assert named.parameters["eps"] == 0.05
    assert named.parameters["steps"] == 100


@pytest.mark.parametrize("chunk", [3, 100])
def test_the_chunk_does_not_matter(smooth, chunk):
    subject, inputs, labels = smooth
    expected = assert_explanation_robust(subject, inputs, labels, **ARGUMENTS)
    with with_settings(chunk=chunk):
        found = assert_explanation_robust(subject, inputs, labels, **ARGUMENTS)
    assert found.values == pytest.approx(expected.values, rel=1e-8)


# --- what is undefined --------------------------------------------------------------------------


class Mixed(nn.Module):
    """The first pixel decides: dead, or linear, or about to change its mind."""

    def forward(self, inputs):
        kind = inputs[:, 0, 0, 0]
        rest = inputs.flatten(1)[:, 1:]
        curved = rest.pow(3).sum(1) * (kind > 0.5) * (kind < 0.9)
        score = curved + rest.sum(1) * (kind >= 0.9)
        near = (kind < 0.3) & ((kind - 0.2).abs() < 1e-9)
        return torch.stack([score, -1 + 2 * (near.to(kind.dtype) - 0.5)], 1)


def test_what_is_undefined_is_counted_by_its_reason():
    inputs = images((1, 4, 4), 6).clamp(0.2, 0.8)
    inputs[:, 0, 0, 0] = torch.tensor([0.7, 0.7, 0.4, 0.95, 0.7, 0.7])
    found = assert_explanation_robust(
        Classifier(Mixed()),
        inputs,
        torch.zeros(6, dtype=torch.int64),
        **ARGUMENTS | {"eps": 0.05, "attack": replace(TOPK, eps=0.05)},
    )
    reason = "nothing found, and no second-order gradient to go by"
    assert np.flatnonzero(np.isnan(found.values)).tolist() == [2, 3]
    moved = int((found.values < 1).sum())
    assert moved > 1
    assert found.counts == {"defined": 4, "moved by topk": moved, f"undefined ({reason})": 2}
    assert (found.n, found.undefined) == (4, 2)


class Fragile(nn.Module):
    """Predicts class 0 only where the first pixel is exactly one half."""

    def forward(self, inputs):
        rest = inputs.flatten(1)[:, 1:].pow(3).sum(1)
        settled = inputs[:, 0, 0, 1] > 0.85
        here = ((inputs[:, 0, 0, 0] - 0.5).abs() < 1e-9) | settled
        pull = inputs[:, 0, 0, 0] * 1e-3
        return torch.stack([rest + pull.square(), rest + 1 - 2 * here.to(rest.dtype)], 1)


def test_samples_whose_every_iterate_changes_the_prediction_are_undefined():
    inputs = images((1, 4, 4), 5).clamp(0.2, 0.7)
    inputs[:, 0, 0, 0] = 0.5
    inputs[3:, 0, 0, 1] = 0.95
    options = ARGUMENTS | {"undefined_at_most": 0.05, "attribution": "gradient_x_input"}
    with pytest.raises(TriGuardFailure, match=r"^inconclusive") as caught:
        assert_explanation_robust(Classifier(Fragile()), inputs, **options)
    record = caught.value.record
    assert record.counts["undefined (the prediction changed at every iterate)"] == 3
    assert record.reason == "3 of 5 samples are undefined, more than 5 %"


def test_a_zero_map_is_undefined_by_the_metric_s_own_reason():
    class Dead(nn.Module):
        def forward(self, inputs):
            lit = torch.relu(inputs[:, 0, 0, 0] - 0.5)
            moved = lit * inputs.flatten(1).pow(3).sum(1)
            return torch.stack([moved, torch.zeros_like(lit) - 1], 1)

    inputs = images((1, 4, 4), 4).clamp(0.2, 0.8)
    inputs[:, 0, 0, 0] = torch.tensor([0.9, 0.45, 0.9, 0.9])
    found = assert_explanation_robust(Classifier(Dead()), inputs, **ARGUMENTS)
    assert math.isnan(found.values[1])
    assert found.counts["undefined (constant or zero map)"] == 1


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at_least": None}, InputError, "either at_least or at_most must be given, but neither"),
        ({"at_most": 1.0}, InputError, "either at_least or at_most must be given, but both came"),
        (
            {"at_least": None, "at_most": 0.5},
            InputError,
            "at_least must be given for spearman, which is a similarity, but at_most came",
        ),
        (
            {"metric": "cosine", "at_least": 0.5},
            InputError,
            "at_most must be given for cosine, which is a distance, but at_least came",
        ),
        ({"metric": "entropy"}, InputError, "metric must compare two maps, but 'entropy' came"),
        ({"metric": 1}, InputTypeError, "metric must be a name or a metric, but 1 came"),
        ({"at_least": 1.5}, InputError, "at_least must be a finite number, at least -1 and at mos"),
        ({"attack": "pgd"}, InputError, "unknown attribution attack 'pgd'"),
        ({"attack": 3}, InputTypeError, "attack must be an attack on explanations, but 3 came"),
        ({"eps": 0.2}, InputError, "eps must agree with the attack's own, 0.1, but 0.2 came"),
        ({"attack": "topk", "eps": 2}, InputError, "eps must not exceed the range of the inputs"),
        ({"attribution": 3}, InputTypeError, "attribution must be a name or an attribution, but"),
        (
            {"metric": metrics.get("topk_intersection", k=43), "at_least": 0.0},
            InputError,
            "k must not exceed the 42 pixels of a map, but 43 came",
        ),
    ],
)
def test_a_bad_argument_is_refused(smooth, options, error, message):
    subject, inputs, _ = smooth
    with pytest.raises(error) as caught:
        assert_explanation_robust(subject, inputs, **ARGUMENTS | options)
    assert str(caught.value).startswith(message)
