"""Certificates: proven again without a search, and refused with a reason where they mismatch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, verification
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.verification import (
    Budget,
    read_certificates,
    recheck,
    verify,
    write_certificates,
)
from pytest_triguard.verification import certificate as module_of_certificates
from pytest_triguard.verification.proof_tree import ProofTree
from tests.verification.zoo import CLASSES, problem

METHODS = ["alpha_crown", "auto", "branch_and_bound", "crown", "crown_ibp", "ibp"]
BUDGET = Budget(domains=200, steps=5)


def certified(name="mlp", eps=0.02, count=6, dtype=torch.float64, **arguments):
    subject, inputs, labels = problem(name, count, dtype=dtype)
    labels[0] = (labels[0] + 1) % CLASSES
    given = {"budget": BUDGET, "certificates": True} | arguments
    result = verify(subject, inputs, labels, eps=eps, **given)
    return subject, inputs, result


def first(result):
    return next(each for each in result.certificates if each)


def searched():
    """Return a classifier, samples, and a certificate of which a search made the proof."""
    subject, inputs, result = certified(eps=0.08, count=12, method="branch_and_bound")
    trees = [each for each in result.certificates if each and each.trees]
    assert trees
    return subject, inputs, max(trees, key=lambda each: len(each.trees[0].splits))


def renewed(certificate, **changes):
    """Return a certificate that was changed by somebody who can compute its checksum."""
    changed = replace(certificate, **changes)
    return replace(changed, checksum=changed.summed())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_every_proof_has_one_that_holds_and_nothing_else_has(method, dtype, tmp_path):
    subject, inputs, result = certified(method=method, dtype=dtype)
    proven = [status == "proven" for status in result.status]
    assert 1 < sum(proven) < 6
    assert [each is not None for each in result.certificates] == proven
    path = tmp_path / "new" / "certificates.json"
    assert write_certificates(path, result.certificates) == sum(proven)
    known = read_certificates(path)
    assert known == [each for each in result.certificates if each is not None]
    for each in known:
        found = recheck(each, subject, inputs)
        assert (found.holds, found.reason, found.changed) == (True, None, ())
        assert found.margin == pytest.approx(each.margin, rel=1e-3, abs=1e-6)  # float32 first
        assert found.margin > found.slack == pytest.approx(each.slack, rel=1e-3)
        assert each.stage == result.stage[each.sample]


@pytest.mark.parametrize("name", ["pools", "activations", "convolutional head", "residual"])
def test_they_hold_on_other_networks(name):
    subject, inputs, result = certified(name, eps=0.005)
    found = [recheck(each, subject, inputs) for each in result.certificates if each]
    assert found
    assert all(each.holds for each in found), found


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm": "l2", "eps": 0.05},
        {"norm": "l1", "eps": 0.05, "method": "crown"},
        {"eps": torch.linspace(1e-3, 0.02, 6)},
        {"arithmetic": "float32", "dtype": torch.float32, "eps": 1e-3},
        {"specification": 1, "box": True},
        {"specification": torch.eye(CLASSES, dtype=torch.float64) + 50, "box": True},
    ],
    ids=["l2", "l1", "own radii", "float32", "box and target", "box and rows"],
)
def test_they_hold_for_every_region_specification_and_arithmetic(arguments):
    boxed = arguments.pop("box", False)
    dtype = arguments.pop("dtype", torch.float64)
    subject, inputs, labels = problem("mlp", 6, dtype=dtype)
    labels[labels == 1] = 0
    if boxed:
        lower, upper = (inputs - 0.01).clamp(0, 1), (inputs + 0.005).clamp(0, 1)
        arguments |= {"eps": None, "lower": lower, "upper": upper}
    result = verify(subject, inputs, labels, budget=BUDGET, certificates=True, **arguments)
    issued = [each for each in result.certificates if each]
    if "rows" not in str(issued and issued[0].specification):
        assert issued
    for each in issued:
        again = type(each).from_dict(json.loads(json.dumps(each.to_dict())))
        assert recheck(again, subject, inputs[again.sample]).holds


def test_leaves_are_bounded_once_and_nothing_is_searched(monkeypatch):
    subject, inputs, certificate = searched()
    bab = verification.branch_and_bound
    counts = []
    real = bab.Splits.bound

    def counted(self, domains):
        counts.append(len(domains))
        return real(self, domains)

    monkeypatch.setattr(bab.Splits, "bound", counted)
    monkeypatch.setattr(bab, "Search", None)
    assert recheck(certificate, subject, inputs).holds
    leaves = sum(each.splits.count(-1) for each in certificate.trees)
    assert sum(counts) == leaves > 1


def test_the_worst_leaf_counts_however_many_are_bounded_at_once(monkeypatch):
    subject, inputs, result = certified(
        eps=0.07, method="branch_and_bound", budget=Budget(domains=60, steps=2)
    )
    split = next(each for each in result.certificates if each and each.trees)
    margins = []
    for width in (1000, 1):
        monkeypatch.setattr(verification.branch_and_bound, "graphs", lambda _, width=width: width)
        found = recheck(split, subject, inputs)
        assert found.holds
        margins.append(found.margin)
    assert margins[1] == pytest.approx(margins[0], abs=1e-9)


def test_each_certificate_names_its_own_radius():
    eps = torch.tensor([0.01, 0.001, 0.02, 0.002, 0.001, 0.01], dtype=torch.float64)
    _, _, result = certified(eps=eps, method="crown")
    issued = [each for each in result.certificates if each]
    assert len(issued) > 2
    assert all(each.region == {"norm": "linf", "eps": float(eps[each.sample])} for each in issued)


def test_a_margin_within_the_slack_is_no_proof():
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    subject, inputs = Classifier(module), torch.full((1, 1, 1, 1), 0.5)
    result = verify(subject, inputs, torch.tensor([0]), eps=0.1, method="ibp", certificates=True)
    forged = renewed(first(result), region={"norm": "linf", "eps": 0.5 - 5e-6})
    found = recheck(forged, subject, inputs)
    assert not found.holds
    assert 0 < found.margin < found.slack


def test_without_the_tree_the_first_bound_does_not_prove_it():
    subject, inputs, certificate = searched()
    found = recheck(renewed(certificate, trees=()), subject, inputs)
    assert not found.holds
    assert found.reason.startswith("branch_and_bound does not prove it: the margin is at least")


def test_nothing_is_kept_unless_it_is_asked_for():
    subject, inputs, labels = problem("mlp", 4)
    assert verify(subject, inputs, labels, eps=0.02).certificates == ()
    with pytest.raises(InputTypeError, match="certificates must be True or False, but 1 came"):
        verify(subject, inputs, labels, eps=0.02, certificates=1)


# --- what does not match ------------------------------------------------------------------------


def test_changed_weights_are_refused():
    subject, inputs, result = certified()
    certificate = first(result)
    with torch.no_grad():
        next(subject.module.parameters()).mul_(1 + 1e-12)
    found = recheck(certificate, subject, inputs)
    assert not found.holds
    assert "the classifier is another one: weights, architecture, bounds" in found.reason


def test_another_range_is_refused():
    subject, inputs, result = certified()
    certificate = first(result)
    mean, std = subject.normalization
    other = Classifier(subject.module, bounds=(-1, 1), mean=mean, std=std)
    assert "the classifier is another one" in recheck(certificate, other, inputs).reason


def test_another_forward_of_the_same_weights_is_refused():
    class Scaled(nn.Module):
        factor = 1.0

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, CLASSES)

        def forward(self, inputs):
            return self.layer(inputs.flatten(1)) * self.factor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject, inputs = Classifier(Scaled()), torch.rand(2, 1, 2, 3)
    labels = subject(inputs).argmax(1)
    result = verify(subject, inputs, labels, eps=1e-4, method="ibp", certificates=True)
    assert recheck(result.certificates[0], subject, inputs).holds
    subject.module.factor = 2.0
    found = recheck(result.certificates[0], subject, inputs)
    assert "the graph is another one" in found.reason


def test_a_sample_that_is_not_there_is_refused():
    subject, inputs, result = certified()
    certificate = first(result)
    own = certificate.sample
    for others in (inputs[:own], inputs[own] + 1e-9, inputs[own].float()):
        found = recheck(certificate, subject, others)
        assert not found.holds
        assert found.reason.startswith("the sample is not among the inputs: none is (3, 2, 2)")


@pytest.mark.parametrize(
    "change",
    [{"region": {"norm": "linf", "eps": 0.5}}, {"margin": 9.0}, {"label": 2}, {"steps": 7}],
)
def test_a_changed_certificate_is_refused(change):
    subject, inputs, result = certified()
    certificate = replace(first(result), **change)
    found = recheck(certificate, subject, inputs)
    assert found.reason == (
        "the certificate was changed after it was issued: its checksum is wrong"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"region": {"norm": "linf", "eps": 0.5}}, "ibp does not prove it"),
        ({"region": {"norm": "l3", "eps": 0.5}}, "norm must be one of"),
        ({"region": {}}, "eps must be a number"),
        ({"region": {"lower": 1, "upper": 2}}, "packed numbers"),
        ({"label": 2}, "the sample itself breaks the property"),
        ({"label": 99}, "labels must"),
        ({"label": 10**30}, "label must be a class"),
        ({"specification": {"target": 99}}, "specification must"),
        ({"specification": {"rows": [[1, "a"]]}}, "rows on the logits"),
        ({"stage": "magic"}, "stage must be one of"),
        ({"arithmetic": "magic"}, "arithmetic must be one of"),
        ({"arithmetic": "float32"}, "float64"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_whoever_forges_the_checksum_proves_nothing(change, reason):
    """What a certificate claims is proven again or not at all."""
    subject, inputs, result = certified(method="ibp", eps=0.002)
    certificate = first(result)
    if "label" in change and change["label"] == certificate.label:
        change = {"label": 0}
    found = recheck(renewed(certificate, **change), subject, inputs)
    assert not found.holds
    assert reason in found.reason


def test_a_larger_claim_on_the_margin_is_told():
    subject, inputs, result = certified(method="crown")
    certificate = first(result)
    found = recheck(renewed(certificate, margin=certificate.margin + 1), subject, inputs)
    assert found.holds
    assert found.changed == (
        f"the margin is at least {found.margin:g}, but was {certificate.margin + 1:g}",
    )


def test_another_version_is_told_and_proven_again(monkeypatch):
    subject, inputs, result = certified()
    certificate = first(result)
    monkeypatch.setattr(module_of_certificates.torch, "__version__", "99.0")
    found = recheck(certificate, subject, inputs)
    assert found.holds
    assert len(found.changed) == 1
    assert found.changed[0].startswith("torch is 99.0, but was ")


# --- trees --------------------------------------------------------------------------------------


def test_leaves_of_a_tree_cover_every_pattern_of_signs():
    tree = ProofTree(0, (4, 2, -1, -1, -1), ((0.0, 0.0), (0.0, 0.1), (0.2,)))
    paths = list(tree.paths())
    assert paths == [((4, 1), (2, 1)), ((4, 1), (2, -1)), ((4, -1),)]
    for four in (1, -1):
        for two in (1, -1):
            signs = {4: four, 2: two}
            assert sum(all(signs[place] == sign for place, sign in path) for path in paths) == 1


@pytest.mark.parametrize(
    ("splits", "multipliers", "message"),
    [
        ((3, -1), ((1.0,),), "must cover the region, but 1 parts are missing"),
        ((), (), "must cover the region, but 1 parts are missing"),
        ((-1, -1), ((), ()), "must end with its last leaf, but more nodes came"),
        ((3, -1, -1), ((1.0,), ()), "must have a multiplier for each decision of each leaf"),
        ((-2, -1, -1), ((0.0,), (0.0,)), "must have places from 0 on"),
        ((3, -1, -1), ((1.0,), (-1.0,)), "must have multipliers that are finite and at least 0"),
        ((3, -1, -1), ((1.0,), (float("nan"),)), "multipliers that are finite and at least 0"),
        ((3, -1, -1), ((1.0,), (float("inf"),)), "multipliers that are finite and at least 0"),
    ],
)
def test_what_is_no_proof_tree_is_refused(splits, multipliers, message):
    with pytest.raises(InputError, match=message):
        ProofTree(0, splits, multipliers)


def test_a_leaf_that_is_left_out_is_noticed():
    _, _, certificate = searched()
    values = certificate.to_dict()
    tree = values["trees"][0]
    last = len(tree["splits"]) - 1
    assert tree["splits"].pop(last) == -1
    tree["multipliers"].pop()
    with pytest.raises(InputError, match="must cover the region, but 1 parts are missing"):
        type(certificate).from_dict(values)


@pytest.mark.parametrize("splits", [(10**6, -1, -1), (0, -1, -1)])
def test_a_tree_of_another_network_is_refused_or_proves_nothing(splits):
    subject, inputs, certificate = searched()
    row = certificate.trees[0].row
    trees = (ProofTree(row, splits, ((0.0,), (0.0,))),)
    found = recheck(renewed(certificate, trees=trees), subject, inputs)
    assert found.reason.startswith(("a proof tree must name", "branch_and_bound does not prove"))
    trees = (replace(certificate.trees[0], row=99),)
    found = recheck(renewed(certificate, trees=trees), subject, inputs)
    assert found.reason == "a proof tree must name rows, ReLUs and inputs of the network"


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "must be a JSON file, but it is none"),
        ("[]", "must hold pytest-triguard certificates, but it holds something else"),
        ('{"format": "pytest-triguard certificates", "schema_version": 99}', "version 1, but 99"),
        (
            '{"format": "pytest-triguard certificates", "schema_version": 1,'
            ' "certificates": [{"a": 1}]}',
            "a certificate must have the keys sample, label",
        ),
    ],
)
def test_a_file_that_is_none_of_certificates_is_refused(text, message, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_certificates(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sample", 1.5), ("label", "a"), ("margin", "1"), ("trees", 3), ("trees", [{"row": 0}])],
)
def test_a_certificate_with_a_wrong_value_is_refused(key, value):
    _, _, result = certified(method="ibp")
    values = first(result).to_dict() | {key: value}
    with pytest.raises(InputError, match=r"a certificate must have a valid|a proof tree must have"):
        verification.Certificate.from_dict(values)


@pytest.mark.parametrize("name", ["certificate", "classifier", "inputs"])
def test_arguments_of_a_wrong_type_are_refused(name):
    subject, inputs, result = certified(method="ibp")
    arguments = {"certificate": first(result), "classifier": subject, "inputs": inputs}
    with pytest.raises(InputTypeError, match=f"{name} must be a "):
        recheck(**(arguments | {name: 3}))
