"""Entropy and drift of explanations: their values, what is undefined, and what it costs."""

import math
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard import (
    Classifier,
    TriGuardFailure,
    assert_drift_below,
    assert_entropy_below,
    assert_faithful,
    attacks,
    attributions,
)
from pytest_triguard.errors import ModelError
from tests.networks import bare, images, problem
from tests.sessions import with_settings

COUNT = 9


def gradients(subject, inputs, classes):
    """Return the gradient of one logit each, by plain autograd."""
    points = inputs.clone().requires_grad_()
    logits = bare(subject)(points)
    return torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), points)[0]


def entropy(maps):
    """Return the normalised entropy over pixels, in numpy."""
    pixels = np.abs(maps.numpy()).sum(1).reshape(len(maps), -1)
    shares = pixels / pixels.sum(1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1))
    return -(shares * logs).sum(1) / math.log(shares.shape[1])


def allocation(maps, others):
    """Return the distance of two maps' shares, in numpy."""
    ends = [each.numpy().reshape(len(maps), -1) for each in (maps, others)]
    ends = [each / np.abs(each).sum(1, keepdims=True) for each in ends]
    return np.abs(ends[0] - ends[1]).sum(1)


def close(values):
    return pytest.approx(values, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("labelled", [True, False])
def test_entropy_is_that_of_the_maps_of_labels_or_predictions(labelled):
    subject, inputs, labels = problem("conv", COUNT)
    predicted = bare(subject)(inputs).argmax(1)
    assert (predicted != labels).any()
    explained = labels if labelled else predicted
    expected = entropy(gradients(subject, inputs, explained))
    found = assert_entropy_below(
        subject, inputs, 1, labels=labels if labelled else None, attribution="saliency"
    )
    assert found.values == close(expected)
    assert found.value == close(expected.mean())
    assert (found.n, found.undefined, found.counts) == (COUNT, 0, {"defined": COUNT})
    assert found.record.metric == "mean attribution entropy"


def test_raw_entropy_is_over_elements_in_nats():
    subject, inputs, _ = problem("conv", COUNT)
    maps = gradients(subject, inputs, bare(subject)(inputs).argmax(1))
    elements = maps.abs().flatten(1).numpy()
    shares = elements / elements.sum(1, keepdims=True)
    expected = -(shares * np.log(shares + 1e-10)).sum(1)
    found = assert_entropy_below(subject, inputs, 4.9, attribution="saliency", form="raw")
    assert found.values == pytest.approx(expected, rel=1e-7)


STATISTICS = {
    "mean": np.mean,
    "median": np.median,
    "max": np.max,
    "p95": lambda values: np.quantile(values, 0.95),
    "p12.5": lambda values: np.quantile(values, 0.125),
}


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_statistic_is_held_against_the_threshold(statistic):
    subject, inputs, _ = problem("conv", COUNT)
    found = assert_entropy_below(
        subject, inputs, 1, attribution="saliency", statistic=statistic, name=statistic
    )
    assert found.value == close(STATISTICS[statistic](found.values))
    assert found.record.metric == f"{statistic} attribution entropy"
    assert found.parameters["statistic"] == statistic


ENDS = {
    "zero": lambda inputs: torch.zeros_like(inputs),
    "midpoint": lambda inputs: torch.full_like(inputs, 0.5),
}


@pytest.mark.parametrize("between", [("zero", "midpoint"), ("midpoint", "tensor")])
@pytest.mark.parametrize("form", ["allocation", "l2", "completeness_orthogonal"])
def test_drift_is_the_distance_of_two_maps(between, form):
    """Integrated gradients of a linear network are displacement times weight."""
    subject, inputs, labels = problem("linear", COUNT)
    given = images((2, 3, 4), 1, seed=9)[0]
    weights = gradients(subject, inputs, labels)
    bases = [given.expand_as(inputs) if end == "tensor" else ENDS[end](inputs) for end in between]
    maps, others = ((inputs - base) * weights for base in bases)
    difference = (maps - others).flatten(1)
    expected = {
        "allocation": allocation(maps, others),
        "l2": difference.norm(dim=1).numpy(),
        "completeness_orthogonal": difference.std(1, correction=0).numpy(),
    }[form]
    found = assert_drift_below(
        subject,
        inputs,
        2 if form == "allocation" else 100,
        labels=labels,
        between=[given if end == "tensor" else end for end in between],
        form=form,
    )
    assert found.values == close(expected)
    assert found.value == close(expected.mean())
    assert found.parameters["form"] == form


def test_among_several_baselines_the_pair_that_lies_furthest_apart_counts():
    subject, inputs, labels = problem("linear", COUNT)
    given = images((2, 3, 4), 1, seed=9)[0]
    weights = gradients(subject, inputs, labels)
    bases = [torch.zeros_like(inputs), torch.full_like(inputs, 0.5), given.expand_as(inputs)]
    maps = [(inputs - base) * weights for base in bases]
    apart = np.stack([allocation(*pair) for pair in combinations(maps, 2)])
    found = assert_drift_below(
        subject, inputs, 2, labels=labels, between=("zero", "midpoint", given)
    )
    assert found.values == close(apart.max(0))
    assert found.record.metric == "mean worst-pair attribution drift"
    assert found.parameters["between"][:2] == ["zero", "midpoint"]
    counts = [value for name, value in found.record.diagnostics.items() if "furthest apart" in name]
    assert counts == [int((apart.argmax(0) == place).sum()) for place in range(3)]
    assert found.passes["backward"] == 3 * COUNT * 50


def test_drift_between_a_sample_and_its_adversarial_example_holds_the_class():
    subject, inputs, labels = problem("smooth", COUNT)
    attack = attacks.get("fgsm", eps=0.1)
    broken = attack(subject, inputs, labels).adversarial
    expected = allocation(gradients(subject, inputs, labels), gradients(subject, broken, labels))
    found = assert_drift_below(
        subject, inputs, 2, labels=labels, between=("clean", attack), attribution="saliency"
    )
    assert found.values == close(expected)
    assert found.record.metric == "mean adversarial attribution drift"
    kind, parameters = found.parameters["between"]
    assert kind == "clean"
    assert (parameters["attack"], parameters["eps"]) == ("fgsm", 0.1)
    assert "L-inf ball of eps 0.1" in found.record.subject
    assert attack.describe() in found.record.method


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_adversarial_drift_does_not_depend_on_how_the_samples_finish(chunk):
    subject, inputs, labels = problem("smooth", 20)
    attack = attacks.get("pgd", eps=0.3, steps=6)
    with with_settings(chunk=chunk):
        found = assert_drift_below(
            subject, inputs, 2, labels=labels, between=("clean", attack), attribution="saliency"
        )
    broken = attack(subject, inputs, labels).adversarial
    expected = allocation(gradients(subject, inputs, labels), gradients(subject, broken, labels))
    assert found.values == close(expected)


def test_adversarial_drift_of_predictions_moves_away_from_them():
    subject, inputs, _ = problem("smooth", COUNT)
    predicted = bare(subject)(inputs).argmax(1)
    attack = attacks.get("bim", eps=0.1)
    options = {"between": ("clean", attack), "attribution": "saliency"}
    free = assert_drift_below(subject, inputs, 2, **options)
    held = assert_drift_below(subject, inputs, 2, labels=predicted, **options)
    assert free.values.tolist() == held.values.tolist()
    assert free.passes["forward"] == held.passes["forward"] + COUNT


class Dead(nn.Module):
    """Gives no gradient where the first pixel is dark."""

    def forward(self, inputs):
        lit = torch.relu(inputs[:, 0, 0, 0] - 0.5)
        return torch.stack([lit * inputs.sum((1, 2, 3)), torch.zeros_like(lit)], 1)


@pytest.fixture
def dark():
    """A classifier and 40 samples, of which the maps of three are zero."""
    inputs = images((1, 3, 3), 40)
    inputs[:, 0, 0, 0] = 0.9
    inputs[[3, 5, 8], 0, 0, 0] = 0.1
    return Classifier(Dead()), inputs, torch.zeros(40, dtype=torch.int64)


@pytest.mark.parametrize("measure", ["entropy", "drift"])
def test_zero_maps_are_counted_and_named_and_not_averaged_in(dark, measure):
    subject, inputs, labels = dark
    attack = attacks.get("fgsm", eps=0.01)
    options = {"labels": labels, "attribution": "saliency", "undefined_at_most": 0.1}
    if measure == "entropy":
        found, reason = assert_entropy_below(subject, inputs, 1, **options), "or single pixel"
    else:
        options["between"] = ("clean", attack)
        found, reason = assert_drift_below(subject, inputs, 2, **options), ""
    assert np.flatnonzero(np.isnan(found.values)).tolist() == [3, 5, 8]
    assert found.value == close(np.nanmean(found.values))
    assert (found.n, found.undefined) == (37, 3)
    name = f"undefined ({' '.join(['zero map', reason]).strip()})"
    assert found.counts == {"defined": 37, name: 3}


@pytest.mark.parametrize("share", [None, 0.07])
def test_too_many_undefined_samples_are_inconclusive(dark, share):
    subject, inputs, labels = dark
    options = {} if share is None else {"undefined_at_most": share}
    with pytest.raises(TriGuardFailure, match=r"^inconclusive: mean attribution entropy") as caught:
        assert_entropy_below(subject, inputs, 1, labels=labels, attribution="saliency", **options)
    at_most = "5 %" if share is None else "7 %"
    assert caught.value.record.reason == f"3 of 40 samples are undefined, more than {at_most}"
    assert caught.value.record.verdict == "inconclusive"


@pytest.mark.parametrize("labelled", [True, False])
def test_no_pass_is_made_twice(labelled):
    """The prediction serves as the class to explain and for the completeness of both ends."""
    subject, inputs, labels = problem("conv", COUNT)
    labels, extra = (labels, 0) if labelled else (None, COUNT)
    method = attributions.get("integrated_gradients", points=5)
    found = assert_entropy_below(subject, inputs, 1, labels=labels, attribution=method)
    assert found.passes == {"forward": 5 * COUNT + 2 * COUNT, "backward": 5 * COUNT}
    found = assert_entropy_below(subject, inputs, 1, labels=labels, attribution="saliency")
    assert found.passes == {"forward": extra + COUNT, "backward": COUNT}
    found = assert_drift_below(subject, inputs, 2, labels=labels, attribution=method)
    assert found.passes == {"forward": 10 * COUNT + 3 * COUNT, "backward": 10 * COUNT}


def test_the_completeness_error_is_reported():
    subject, inputs, labels = problem("smooth", COUNT)
    method = attributions.get("integrated_gradients", points=5)
    found = assert_entropy_below(subject, inputs, 1, labels=labels, attribution=method)
    error = method.completeness_error(subject, inputs, labels).median()
    assert found.record.diagnostics["median completeness error"] == close(float(error))
    assert f"median completeness error {float(error):.2g}" in found.record.method


class Constant(nn.Module):
    """Gives large maps that cancel, and an output that never changes: an infinite error."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        flat = inputs.flatten(1) * self.weight
        flat = flat - flat.detach() + flat.detach() * 0
        return torch.stack([1e30 * flat.sum(1), flat.sum(1) * 0], 1)


def test_a_completeness_error_without_a_number_is_left_out():
    inputs = images((1, 3, 3), 4, dtype=torch.float32)
    labels = torch.zeros(4, dtype=torch.int64)
    found = assert_entropy_below(Classifier(Constant()), inputs, 1, labels=labels)
    assert "median completeness error" not in found.record.diagnostics


def test_the_worst_have_the_largest_values():
    subject, inputs, labels = problem("conv", 20)
    with pytest.raises(TriGuardFailure) as caught:
        assert_entropy_below(subject, inputs, 0.01, labels=labels, attribution="saliency")
    expected = entropy(gradients(subject, inputs, labels))
    places = np.argsort(-expected)[:5].tolist()
    assert [each["id"] for each in caught.value.record.worst] == places
    for each in caught.value.record.worst:
        assert each["value"] == close(expected[each["id"]])
        assert each["class"] == labels[each["id"]]


class Detached(nn.Module):
    """Answers without gradients, as a module with a forward under `torch.no_grad` does."""

    def forward(self, inputs):
        flat = inputs.detach().flatten(1)
        return torch.stack([flat.sum(1), -flat.sum(1)], 1)


@pytest.mark.parametrize("attribution", ["saliency", "integrated_gradients", "guided_ig"])
def test_a_network_without_gradients_is_named_and_not_called_a_zero_map(attribution):
    given = Classifier(Detached()), images((1, 3, 3), 4)
    expected = (
        "the module Detached gives no gradient of its logits, which the attribution "
        f"{attribution!r} follows; use attribution='occlusion', which needs none"
    )
    with pytest.raises(ModelError, match=re.escape(expected)):
        assert_entropy_below(*given, 1, attribution=attribution)
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ModelError, match=re.escape(expected)):
        assert_faithful(*given, labels, attribution=attribution, insertion_at_least=0)
    assert_entropy_below(*given, 1, attribution="occlusion")


class Steep(nn.Module):
    """Has no finite gradient where the first pixel is 0."""

    def forward(self, inputs):
        roots = inputs[:, 0, 0, 0].sqrt()
        return torch.stack([roots, -roots], 1)


@pytest.mark.parametrize("measure", [assert_entropy_below, assert_drift_below])
def test_maps_that_are_not_finite_are_refused_by_sample(measure):
    inputs = images((1, 3, 3), 9)
    inputs[:, 0, 0, 0] = 0.5
    inputs[[2, 7], 0, 0, 0] = 0
    options = {"between": ("clean", attacks.get("fgsm", eps=0))}
    with pytest.raises(ModelError) as caught:
        measure(
            Classifier(Steep()),
            inputs,
            1,
            attribution="saliency",
            **(options if measure is assert_drift_below else {}),
        )
    assert str(caught.value) == (
        "the module must give finite maps, but those of sample 2 are not (2 of 9 samples)"
    )
