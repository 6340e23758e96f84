"""What a check of proofs reports: which stage decided what, in which time, and at what budget."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, TriGuardFailure, assert_verified
from pytest_triguard.checks.verified import _budgeted
from pytest_triguard.errors import InputTypeError
from pytest_triguard.verification import Budget, names
from tests.assertions import gate_problem
from tests.sessions import with_settings

COUNT = 30
STAGE = re.compile(r"(\w+) (\d+) -> ((?:\d+ \w+(?: and )?)+|none) in ([\d.e-]+) s")


def failed(**arguments):
    with pytest.raises(TriGuardFailure) as caught:
        assert_verified(*gate_problem(COUNT), **({"eps": 0.1, "at_least": 1.0} | arguments))
    return caught.value


def test_each_stage_is_told_with_what_it_decided_and_in_which_time():
    record = failed().record
    stages = {name: (int(n), what, float(s)) for name, n, what, s in STAGE.findall(record.method)}
    assert [*stages][:3] == ["clean", "ibp", "pgd"]
    assert stages["clean"][:2] == (COUNT, "6 falsified")
    assert all(seconds > 0 for _, _, seconds in stages.values())
    decided = {"proven": 0, "falsified": 0}
    for _, what, _ in stages.values():
        for number, kind in re.findall(r"(\d+) (proven|falsified)", what):
            decided[kind] += int(number)
    assert decided["proven"] == record.counts["proven"]
    others = [number for name, number in record.counts.items() if name.startswith("falsified by")]
    assert decided["falsified"] == sum(others) + record.counts["misclassified"]


def test_the_message_names_the_stage_behind_each_sample():
    failure = failed()
    fallen = [each for each in failure.record.worst if each["status"].startswith("falsified")]
    assert fallen
    for each in fallen:
        assert each["status"] in ("falsified by pgd", "falsified by branch_and_bound")
        assert f"sample {each['id']}: label {each['label']}" in str(failure)
    assert "falsified by pgd" in " ".join(str(failure).split())


def test_the_worst_are_ordered_by_margin_however_far_below_zero():
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    values = ([[1.0], [1.0]], [0.0, 0.0], [[1e5, 0.0], [0.0, 1e5]], [10.0, 0.0])
    with torch.no_grad():  # intervals forget that both hidden neurons are one number
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value, dtype=torch.float64))
    inputs = torch.full((9, 1, 1, 1), 0.5, dtype=torch.float64)
    eps = torch.linspace(0.001, 0.4, 9, dtype=torch.float64)
    with pytest.raises(TriGuardFailure) as caught:
        assert_verified(
            Classifier(module),
            inputs,
            torch.zeros(9, dtype=torch.int64),
            eps=eps,
            at_least=1.0,
            method="ibp",
        )
    worst = caught.value.record.worst
    assert all(each["margin at least"] < -20 for each in worst[:5])
    assert [each["id"] for each in worst] == [8, 7, 6, 5, 4]


def test_what_is_left_open_says_which_bound_gave_up():
    record = failed(budget=Budget(total=1e-9)).record
    assert record.counts["unknown"] > 0
    assert f"; {record.counts['unknown']} unknown (" in record.method
    assert "the budget was spent before pgd): clean" in record.method


def test_the_message_says_why_samples_are_left_open_before_it_is_cut():
    failure = failed(budget=Budget(domains=1, steps=1))
    told = " ".join(str(failure).split())
    assert failure.record.counts["unknown"] == 5
    assert "1 domain per sample, seed 0; 5 unknown (the bound is not above the slack; " in told
    assert "the budget was spent in branch_and_bound): clean 30" in told


class Branching(nn.Module):
    """Asks for the values of its input."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, inputs):
        return self.module(inputs) if inputs.sum() > 0 else -self.module(inputs)


def test_the_message_says_in_full_why_a_module_is_unsupported():
    subject, *data = gate_problem(COUNT)
    with pytest.raises(TriGuardFailure) as caught:
        assert_verified(Classifier(Branching(subject.module)), *data, eps=0.01, at_least=1.0)
    assert caught.value.record.counts["unsupported"] > 0
    told = " ".join(str(caught.value).split())
    assert "unsupported (the module Branching cannot be captured as a graph" in told
    assert "control flow): clean" in told


def test_reasons_beyond_the_two_most_frequent_are_counted():
    reasons = Counter({"unknown: a": 5, "unsupported: b": 3, "unknown: c": 2, "unknown: d": 1})
    told = _budgeted("ibp", Budget(), 0, (), reasons)
    assert told.startswith("ibp, real arithmetic, no time limit, seed 0; 5 unknown (a), ")
    assert "; 5 unknown (a), 3 unsupported (b), 3 open for other reasons: " in told


@pytest.mark.parametrize("method", [name for name in names() if name.startswith("auto_lirpa:")])
def test_what_another_library_proves_is_not_told_to_be_paid_for_in_rounding(method):
    told = _budgeted(method, Budget(), 0, (), Counter())
    assert told.startswith(f"{method}, real arithmetic up to float rounding, no time limit")


@pytest.mark.parametrize(
    ("budget", "told", "kept"),
    [
        (None, "1 s per sample", None),
        (2.5, "2.5 s per sample", 2.5),
        (
            Budget(seconds=3.0, domains=50),
            "3 s per sample, 50 domains per sample",
            {"seconds": 3.0, "total": None, "domains": 50, "steps": 20},
        ),
    ],
)
def test_a_budget_is_told_in_words_and_kept_in_plain_values(budget, told, kept):
    record = failed(budget=budget, eps=0.02).record
    assert record.method.startswith(f"auto, real arithmetic, {told}, seed 0: clean")
    assert record.parameters["budget"] == kept
    assert json.loads(json.dumps(record.parameters)) == record.parameters


def test_the_budget_of_the_session_counts_where_none_is_given():
    with with_settings(budget=0.25):
        assert "0.25 s per sample" in failed(eps=0.02).record.method
        assert "7 s per sample" in failed(eps=0.02, budget=7).record.method


def test_one_bound_alone_has_no_limit():
    assert "no time limit" in failed(method="ibp").record.method


def test_a_budget_of_another_type_is_refused():
    with pytest.raises(InputTypeError, match="budget must be seconds per sample or a Budget"):
        assert_verified(*gate_problem(3), eps=0.1, at_least=0.0, budget="1s")
