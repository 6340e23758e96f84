"""The label among the k largest logits: what is proven, what breaks it, what certificates say."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.verification import (
    Budget,
    Certificate,
    TopK,
    certified_radius,
    recheck,
    verify,
)
from pytest_triguard.verification.falsifier import ATTACK_STEPS
from pytest_triguard.verification.methods import STAGES
from pytest_triguard.verification.specification import Differences, joint

CLASSES = 5
BUDGET = Budget(domains=60, steps=3)
METHODS = ("alpha_crown", "auto", "branch_and_bound", "crown", "crown_ibp", "ibp")
levels = pytest.mark.parametrize("k", [1, 2, 3, 4])


def linear():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES)).double()
    return Classifier(module), torch.rand(
        8, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def deep(dtype=torch.float64):
    """Return a classifier and samples whose labels are often second or third."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        module = nn.Sequential(
            nn.Flatten(),
            nn.Linear(12, 10),
            nn.ReLU(),
            nn.Linear(10, 10),
            nn.ReLU(),
            nn.Linear(10, CLASSES),
        ).double()
        inputs = torch.rand(10, 3, 2, 2, dtype=torch.float64)
        module[-1].bias.sub_(module(inputs).mean(0))
    subject = Classifier(module.to(dtype))
    order = subject(inputs.to(dtype)).argsort(1, descending=True)
    labels = order.gather(1, (torch.arange(10) % 3)[:, None]).squeeze(1)
    return subject, inputs.to(dtype), labels


def exceeding(subject, points, labels):
    logits = subject(points)
    return (logits > logits.gather(1, labels[:, None])).sum(1)


@levels
@pytest.mark.parametrize("method", METHODS)
def test_a_linear_network_has_its_closed_form(method, k):
    """The k-th smallest of the least differences, each over the whole ball."""
    subject, inputs = linear()
    labels = torch.arange(8) % CLASSES
    weight = subject.module[1].weight.detach()
    rows = weight[labels].unsqueeze(1) - weight
    lower, upper = (inputs - 0.1).clamp(0, 1), (inputs + 0.1).clamp(0, 1)
    worst = torch.where(rows > 0, lower.flatten(1)[:, None], upper.flatten(1)[:, None])
    bias = subject.module[1].bias.detach()
    least = (rows * worst).sum(2) + bias[labels][:, None] - bias
    least = least.scatter(1, labels[:, None], torch.inf)
    expected = least.sort(1).values[:, k - 1]
    result = verify(
        subject, inputs, labels, eps=0.1, method=method, specification=TopK(k), budget=BUDGET
    )
    known = torch.tensor([stage not in ("clean", "pgd") for stage in result.stage])
    if method != "auto":  # which does not bound what its attack breaks
        assert torch.allclose(result.margin[known], expected[known], rtol=0, atol=1e-10)
    for place, status in enumerate(result.status):
        assert (status == "proven") == (expected[place] > 0)


@levels
def test_no_point_contradicts_a_verdict(k):
    subject, inputs, labels = deep()
    eps = 0.08
    result = verify(
        subject, inputs, labels, eps=eps, specification=TopK(k), budget=Budget(domains=8, steps=2)
    )
    assert result.counts["proven"] * result.counts["falsified"] > 0
    generator = torch.Generator().manual_seed(0)
    for place, status in enumerate(result.status):
        label = labels[place : place + 1]
        if status == "proven":
            share = torch.rand(500, 3, 2, 2, generator=generator, dtype=torch.float64)
            share[:250] = share[:250].round()
            points = (inputs[place] + eps * (2 * share - 1)).clamp(0, 1)
            assert (exceeding(subject, points, label.expand(500)) < k).all()
        if status == "falsified":
            point = result.counterexample[place : place + 1]
            assert exceeding(subject, point, label) >= k
            assert (point - inputs[place]).abs().max() <= eps + 1e-9


def test_more_places_are_easier_and_one_is_the_prediction():
    subject, inputs, labels = deep()
    found = [
        verify(subject, inputs, labels, eps=0.03, method="crown", specification=specification)
        for specification in (None, *map(TopK, range(1, CLASSES)))
    ]
    assert found[0].status == found[1].status
    assert torch.equal(found[0].margin, found[1].margin)
    proven = [[status == "proven" for status in each.status] for each in found[1:]]
    for fewer, more in pairwise(proven):
        assert all(two or not one for one, two in zip(fewer, more, strict=True))
    assert sum(proven[0]) < sum(proven[1]) < sum(proven[-1])


def test_the_attack_goes_for_the_place_and_not_for_the_prediction(monkeypatch):
    """To change the prediction is one direction, to let two others pass the label another."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False)).double()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[0.0, 0.0], [-1.0, 0.2], [-0.2, 1.0]]))
    subject = Classifier(module, bounds=(-1.0, 1.0))
    inputs = torch.tensor([[0.0, -0.1]], dtype=torch.float64).view(1, 1, 1, 2)
    monkeypatch.setitem(STAGES, "auto", ("pgd",))
    result = verify(
        subject, inputs, torch.tensor([0]), eps=0.3, method="auto", specification=TopK(2)
    )
    assert result.stage == ("pgd",)
    assert exceeding(subject, result.counterexample, torch.tensor([0])).item() == 2
    aside = inputs + torch.tensor([0.8, 0.1], dtype=torch.float64).view(1, 1, 1, 2)
    kept = verify(subject, aside, torch.tensor([0]), eps=0.3, method="auto", specification=TopK(2))
    assert kept.reason == ("pgd found no counterexample",)
    assert kept.stages[-1].backward == ATTACK_STEPS


def test_a_search_proves_what_its_first_bound_does_not():
    subject, inputs, labels = deep()
    arguments = {"eps": 0.07, "specification": TopK(3), "budget": Budget(domains=200, steps=3)}
    before = verify(subject, inputs, labels, method="alpha_crown", **arguments)
    after = verify(
        subject, inputs, labels, method="branch_and_bound", certificates=True, **arguments
    )
    late = [
        each
        for each, status in zip(after.certificates, before.status, strict=True)
        if each and status == "unknown"
    ]
    assert late
    for each in after.certificates:
        if each is not None:
            assert each.specification == {"top_k": 3}
            again = Certificate.from_dict(json.loads(json.dumps(each.to_dict())))
            assert recheck(again, subject, inputs).holds


def test_another_k_needs_another_proof():
    subject, inputs, labels = deep()
    result = verify(
        subject,
        inputs,
        labels,
        eps=0.03,
        method="crown",
        specification=TopK(3),
        certificates=True,
    )
    fewer = verify(subject, inputs, labels, eps=0.03, method="crown", specification=TopK(2))
    place = next(
        place
        for place, each in enumerate(result.certificates)
        if each and fewer.status[place] != "proven"
    )
    values = result.certificates[place].to_dict()
    for k, reason in ((2, "prove"), (5, "top k below the 5"), ("2", "k must be")):
        forged = Certificate.from_dict(values | {"specification": {"top_k": k}})
        forged = Certificate.from_dict(forged.to_dict() | {"checksum": forged.summed()})
        found = recheck(forged, subject, inputs)
        assert not found.holds
        assert reason in found.reason or "breaks the property" in found.reason


def test_radii_are_larger_for_more_places():
    subject, inputs, labels = deep()
    one, two = (
        certified_radius(
            subject, inputs, labels, method="crown_ibp", largest=0.2, specification=TopK(k)
        ).radius
        for k in (1, 2)
    )
    assert (two >= one * 0.98).all()
    assert (two > 1.1 * one).any()


def test_what_is_nan_holds_nothing_and_spares_nothing():
    nan = float("nan")
    values = torch.tensor([[nan, 5.0, 3.0], [nan, nan, 5.0], [1.0, 2.0, 3.0]])
    assert joint(values, 1).tolist() == [3.0, -torch.inf, 2.0]
    assert joint(values, 2).tolist() == [5.0, 5.0, 3.0]
    assert joint(values, 0)[2] == 1


def test_a_tie_is_no_class_that_passes_the_label():
    logits = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.5, 2.0], [float("nan"), 1.0, 1.0]])
    rows = Differences(torch.zeros(3, dtype=torch.int64), None, 3, top=2)
    assert rows.violated(logits).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, InputError, "k must be at least 1"),
        (1.5, InputTypeError, "k must be a whole number"),
        (CLASSES, InputError, r"a top k below the 5 classes, but TopK\(5\) came"),
    ],
)
def test_places_that_there_are_not_are_refused(k, error, message):
    subject, inputs, labels = deep()
    with pytest.raises(error, match=message):
        verify(subject, inputs, labels, eps=0.1, specification=TopK(k))
