"""Every assertion writes a baseline that it holds against, whatever it measures."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies

from pytest_triguard import TriGuardFailure
from pytest_triguard.baseline import Baselines, read, write
from pytest_triguard.settings import Session, Settings, use_session
from tests.assertions import TABLE, every_assertion, gate_problem

COUNT = 25
NODEID = "test_gate.py::test_it"


@contextmanager
def session(folder: Path, *, update=False):
    """The session of one test, which compares with a folder or writes to it."""
    given = Settings(baseline=folder, update=update, chunk=8)
    baselines = None if update else Baselines(folder)
    with use_session(Session(settings=given, nodeid=NODEID, baselines=baselines)) as made:
        yield made
    if update:
        write(folder, [each for each in made.records.values() if each.per_sample], {})


def worsened(subject):
    """Return the same classifier with one class favoured, and put it back afterwards."""
    last = subject.module[-1]
    with torch.no_grad():
        last.bias[1] += 0.2
    return subject


@every_assertion
@pytest.mark.parametrize("ids", [None, [f"image-{place}" for place in range(COUNT)]])
def test_what_has_not_changed_holds(case, ids, tmp_path):
    subject, inputs, labels = gate_problem(COUNT)
    with session(tmp_path, update=True):
        case(subject, inputs, labels, ids=ids)
    with session(tmp_path):
        record = case(subject, inputs, labels, ids=ids).record
    assert (record.verdict, record.baseline["verdict"]) == ("passed", "passed")
    assert (record.baseline["delta"], record.baseline["worse"]) == (0, 0)
    assert record.baseline["pairs"] == record.baseline["n"] == record.n
    assert record.baseline["differs"] == ["the same model"]


@every_assertion
def test_what_is_kept_is_every_sample(case, tmp_path):
    subject, inputs, labels = gate_problem(COUNT)
    with session(tmp_path, update=True):
        found = case(subject, inputs, labels)
    (entry,) = read(tmp_path / "test_gate.py.json").values()
    assert entry.samples == COUNT
    assert (entry.value, entry.n) == (found.value, found.n)
    if entry.outcomes is not None:
        assert entry.outcomes.count("Y") == (found.values == 1).sum()
        assert entry.outcomes.count("N") == (found.values == 0).sum()
        open_ = "U" if case.title == "verified" else "-"
        assert set(entry.outcomes) <= {"Y", "N", open_}
    else:
        kept = [float("nan") if each is None else each for each in entry.values]
        assert kept == pytest.approx(found.values.tolist(), rel=1e-5, nan_ok=True)


@every_assertion
def test_another_model_is_compared_sample_by_sample(case, tmp_path):
    subject, inputs, labels = gate_problem(COUNT)
    with session(tmp_path, update=True):
        before = case(subject, inputs, labels).values
    worsened(subject)
    with session(tmp_path) as kept:
        try:
            found = case(subject, inputs, labels)
            after = found.values
        except TriGuardFailure:
            after = None
    (record,) = kept.records.values()
    change = record.baseline
    assert "another model" in change["differs"]
    sign = 1 if record.relation == ">=" else -1
    assert (change["verdict"] == "failed") == (sign * change["delta"] < -1e-5 * abs(record.value))
    assert (record.verdict == "failed") == (change["verdict"] == "failed")
    if after is not None and "verified" not in case.title:
        both = (before == before) & (after == after)
        assert change["pairs"] == both.sum()
        assert change["delta"] == pytest.approx((after - before)[both].mean(), abs=1e-5)


@every_assertion
def test_other_parameters_or_data_are_not_compared(case, tmp_path):
    subject, inputs, labels = gate_problem(COUNT)
    with session(tmp_path, update=True):
        case(subject, inputs, labels)
    with session(tmp_path) as kept, pytest.raises(TriGuardFailure, match="no comparable baseline"):
        case(subject, inputs.flip(0), None if labels is None else labels.flip(0))
    (record,) = kept.records.values()
    assert (record.verdict, record.gate) == ("failed", "passed")
    assert record.baseline["verdict"] == "incomparable"
    assert "other data" in record.baseline["reason"]
    if "eps" in case.options and case.options.get("attack") != "pgd":
        return  # the attack's own eps would disagree
    if "eps" in case.options:
        with session(tmp_path) as kept, pytest.raises(TriGuardFailure, match="no comparable"):
            case(subject, inputs, labels, eps=0.05)
        (record,) = kept.records.values()
        assert "eps 0.03 then, 0.05 now" in record.baseline["reason"]


def test_a_radius_per_sample_is_a_parameter(tmp_path):
    case = next(each for each in TABLE if each.title == "verified")
    subject, inputs, labels = gate_problem(COUNT)
    eps = torch.linspace(0.01, 0.02, COUNT, dtype=torch.float64)
    with session(tmp_path, update=True):
        case(subject, inputs, labels, eps=eps)
    with session(tmp_path):
        case(subject, inputs, labels, eps=eps.clone())
    with session(tmp_path), pytest.raises(TriGuardFailure, match="no comparable baseline"):
        case(subject, inputs, labels, eps=eps.flip(0))


def test_a_check_that_does_not_pass_is_not_kept(tmp_path):
    case = TABLE[0]
    subject, inputs, labels = gate_problem(COUNT)
    with session(tmp_path, update=True), pytest.raises(TriGuardFailure):
        case(subject, inputs, labels, threshold=case.failing)
    assert not list(tmp_path.iterdir())


def test_a_threshold_that_is_missed_stays_missed(tmp_path):
    """The message is about the threshold first; the comparison is told beside it."""
    case = TABLE[0]
    subject, inputs, labels = gate_problem(COUNT)
    with session(tmp_path, update=True):
        case(subject, inputs, labels)
    with session(tmp_path) as kept, pytest.raises(TriGuardFailure, match="is not >= 1"):
        case(subject, inputs, labels, threshold=case.failing)
    (record,) = kept.records.values()
    assert (record.gate, record.verdict) == ("failed", "failed")
    assert record.baseline["verdict"] == "passed"


def test_an_inconclusive_comparison_may_be_let_pass(tmp_path):
    """Five samples carry no interval of a mean change."""
    case = next(each for each in TABLE if each.title == "drift")
    subject, inputs, labels = gate_problem(5)
    options = {"confidence": 0.95, "inconclusive": "pass"}
    with session(tmp_path, update=True):
        case(subject, inputs, labels)
    (path,) = tmp_path.iterdir()
    path.write_text(re.sub(r'"values": \[.*?\]', f'"values": {[0.0] * 5}', path.read_text()))
    with session(tmp_path):
        record = case(subject, inputs, labels, **options).record
    assert record.baseline["verdict"] == "inconclusive"
    assert (record.verdict, record.failed) == ("inconclusive", False)


def test_drawn_inputs_have_no_baseline(tmp_path):
    """Every run draws others, so a property test holds against its threshold alone."""
    case = TABLE[0]
    subject, inputs, labels = gate_problem(COUNT)

    @settings(max_examples=3, database=None)
    @given(strategies.integers(1, COUNT))
    def property_test(count):
        record = case(subject, inputs[:count], labels[:count]).record
        assert (record.baseline, record.per_sample) == (None, None)

    for update in (True, False):
        with session(tmp_path, update=update):
            property_test()
    assert not list(tmp_path.iterdir())
