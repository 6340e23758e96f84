"""What a check of proofs reports: which stage decided what, in which time, and at what budget."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, TriGuardFailure, assert_verified
from pytest_triguard.errors import InputTypeError
from pytest_triguard.verification import Budget
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
    assert f"{record.counts['unknown']} unknown: " in record.method
    assert "the budget was spent before pgd" in record.method


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
