"""A record holds plain values, survives its way to the reports, and knows which is the worse."""

import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from pytest_triguard.record import Record, Verdict


def record(**changes):
    fields = {
        "nodeid": "test_gate.py::test_pgd",
        "name": "assert_robust",
        "assertion": "assert_robust",
        "metric": "robust accuracy",
        "value": 0.9,
        "relation": ">=",
        "threshold": 0.8,
        "verdict": "passed",
        "failed": False,
        "n": 50,
        "undefined": 0,
        "counts": {"not falsified by pgd": 45},
        "interval": (0.78, 0.97),
        "confidence": 0.95,
        "claim": "sample",
        "parameters": {"attack": "pgd", "between": ["clean", {"eps": 0.1}]},
        "worst": [{"id": "a", "label": 3, "logit lead": 0.5}],
    }
    return Record(**(fields | changes))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_it_can_be_copied(copied):
    assert copied(record()) == record()


def test_it_travels_as_json():
    found = Record.from_dict(json.loads(record().to_json()))
    assert found == record()
    assert isinstance(found.verdict, Verdict)
    assert found.interval == (0.78, 0.97)


def test_it_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        record().value = 1.0


def test_it_does_not_change_with_what_it_was_made_from():
    worst, counts = [{"id": 1}], {"correct": 1}
    made = record(worst=worst, counts=counts)
    worst[0]["id"], counts["correct"] = 2, 2
    assert (made.worst, made.counts) == ([{"id": 1}], {"correct": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": np.float64(0.5)}, "record field 'value' holds a numpy.float64; only None, bool"),
        ({"value": torch.tensor(0.5)}, "record field 'value' holds a torch.Tensor; only None"),
        ({"value": math.nan}, "record field 'value' holds nan, which JSON cannot carry"),
        ({"interval": (0.0, math.inf)}, "record field 'interval' holds inf, which JSON cannot ca"),
        ({"n": np.int64(3)}, "record field 'n' holds a numpy.int64; only None"),
        ({"counts": {1: 2}}, "record field 'counts' has the key 1; keys must be str"),
        ({"parameters": {"layer": {1, 2}}}, "record field 'parameters.layer' holds a builtins.set"),
        ({"worst": [{"id": np.str_("a")}]}, "record field 'worst.id' holds a numpy.str_; only"),
    ],
)
def test_it_takes_plain_values_alone(changes, message):
    with pytest.raises(TypeError) as caught:
        record(**changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("relation", "value", "margin"),
    [(">=", 0.9, 0.1), (">=", 0.7, -0.1), ("<", 0.9, -0.1), ("<=", 0.7, 0.1), ("<", None, None)],
)
def test_the_margin_is_positive_on_the_right_side(relation, value, margin):
    expected = margin if margin is None else pytest.approx(margin)
    assert record(relation=relation, value=value).margin == expected


FROM_WORST = [
    record(verdict="failed", failed=True, value=0.1),
    record(verdict="failed", failed=True, value=0.7),
    record(verdict="inconclusive", failed=True, value=None, interval=None),
    record(verdict="inconclusive", failed=True, value=0.85),
    record(verdict="inconclusive", failed=False, value=0.75),
    record(value=0.8),
    record(value=0.9),
]


def test_the_worse_is_decided_by_outcome_and_then_by_margin():
    for place, worse in enumerate(FROM_WORST):
        for better in FROM_WORST[place + 1 :]:
            assert worse.is_worse_than(better)
            assert not better.is_worse_than(worse)
            for kept in (worse.worse(better), better.worse(worse)):
                assert (kept.value, kept.verdict) == (worse.value, worse.verdict)


def test_evaluations_add_up():
    first, second, third = FROM_WORST[1], FROM_WORST[0], FROM_WORST[-1]
    kept = first.worse(second).worse(third)
    assert kept.evaluations == 3
    assert kept.value == second.value


def test_of_equals_the_first_is_kept():
    first, second = record(seed=1), record(seed=2)
    assert not second.is_worse_than(first)
    assert first.worse(second).seed == 1
