"""Checks against each other: the best is told only where the samples tell it."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_triguard.ranking import rankings
from pytest_triguard.record import Record
from pytest_triguard.statistics import paired_interval, paired_rate_interval
from tests.test_record import record as some_record

BASE = np.random.default_rng(0).normal(size=60)


def noise(seed):
    """Return noise of mean 0 and standard deviation 1."""
    drawn = np.random.default_rng(seed).normal(size=60)
    return (drawn - drawn.mean()) / drawn.std()


def check(label, values, *, relation=">=", fixed="", statistic="mean", **changed):
    """Return the record of one check of a test that is compared by `method`."""
    rate = isinstance(values, str)
    known = np.array([each for each in values if rate or each == each])
    value = (known == "Y").mean() if rate else known.mean()
    compared = {"test": "test_it.py::test_it", "by": ["method"], "label": label, "fixed": fixed}
    ids = "-".join(each for each in (fixed, label) if each)
    kept = {"outcomes": values} if rate else {"values": [float(each) for each in values]}
    if not rate:
        kept["values"] = [None if each != each else each for each in kept["values"]]
    facts = {
        "nodeid": f"test_it.py::test_it[{ids}]",
        "value": float(value),
        "relation": relation,
        "data": "d",
        "seed": 3,
        "parameters": {} if rate else {"statistic": statistic},
        "compared": compared,
        "per_sample": kept,
    }
    return some_record(**(facts | changed))


def ranked(*records):
    (found,) = rankings(records)
    return found


def places(found):
    return {row.label: str(row.place) for row in found.rows}


@pytest.mark.parametrize("relation", [">=", "<=", "<"])
def test_better_is_what_the_assertion_wants(relation):
    low, high = check("low", BASE, relation=relation), check("high", BASE + 1, relation=relation)
    low_is_better = relation != ">="
    noisy = check("middle", BASE + 0.5 + noise(1) / 9, relation=relation)
    found = ranked(low, noisy, high)
    order = ["low", "middle", "high"]
    assert [row.label for row in found.rows] == (order if low_is_better else order[::-1])
    assert found.rows[0].difference is None


def test_the_best_is_named_where_every_interval_excludes_zero():
    others = [BASE - shift + noise(shift) / 3 for shift in (1, 2)]
    found = ranked(*(check(name, each) for name, each in zip("abc", [BASE, *others], strict=True)))
    assert found.best == "a"
    assert found.tied == []
    assert places(found) == {"a": "best", "b": "worse", "c": "worse"}
    for row, values in zip(found.rows[1:], others, strict=True):
        rounded = [float(f"{each:.6g}") for each in values]
        expected = paired_interval(BASE, np.array(rounded), "mean", 1 - 0.05 / 3, seed=3)
        assert row.difference_interval == pytest.approx(expected, abs=1e-6)
        assert row.difference == pytest.approx(np.mean(values - BASE), abs=1e-6)
        assert row.pairs == 60


def test_a_tie_is_said_where_one_interval_holds_zero():
    near, far = BASE + 0.1 + noise(1), BASE - 3 + noise(2)
    found = ranked(check("far", far), check("near", near), check("lead", BASE + 0.2))
    assert found.best is None
    assert found.tied == ["lead", "near"]
    assert places(found) == {"lead": "tie", "near": "tie", "far": "worse"}


def test_more_rivals_make_every_interval_wider():
    """All of them hold together."""
    rivals = [check(f"r{place}", BASE - 0.3 + noise(place) / 2) for place in range(4)]
    lead = check("lead", BASE + 0.5)
    alone, among = ranked(lead, rivals[0]), ranked(lead, *rivals)
    (narrow,) = (row.difference_interval for row in alone.rows if row.label == "r0")
    (wide,) = (row.difference_interval for row in among.rows if row.label == "r0")
    assert wide[0] < narrow[0]
    assert narrow[1] < wide[1]


def test_the_luckiest_of_equals_is_not_told_from_the_last_of_them():
    """The samples choose which pair is shown, so all 28 pairs of eight count, not seven."""
    drawn = np.random.default_rng(40).normal(size=(8, 60))
    found = ranked(*(check(name, each) for name, each in zip("abcdefgh", drawn, strict=True)))
    first, last = found.rows[0], found.rows[-1]
    leader, least = (drawn["abcdefgh".index(row.label)] for row in (first, last))
    assert paired_interval(leader, least, "mean", 1 - 0.05 / 7, seed=3)[1] < 0
    assert set(places(found).values()) == {"tie"}


def test_rates_get_the_exact_interval_of_pairs():
    one, two = "Y" * 30 + "N" * 10, "Y" * 12 + "N" * 22 + "Y" * 6
    found = ranked(check("one", one), check("two", two))
    row = found.rows[1]
    assert row.difference == pytest.approx(-12 / 40)
    assert row.difference_interval == paired_rate_interval(18, 6, 40, 0.95)
    assert found.tied == []
    assert found.best == "one"


def test_samples_that_do_not_count_for_both_are_left_out():
    values = BASE.copy()
    values[:5] = np.nan
    found = ranked(check("all", BASE + 2), check("some", values))
    assert found.rows[1].pairs == 55
    assert found.rows[1].difference == pytest.approx(-2, abs=1e-5)
    assert found.rows[1].reason == "on the 55 samples that count for both"


def test_a_leader_that_lacks_samples_is_told_with_the_others():
    values = BASE + 2
    values[:45] = np.nan
    found = ranked(check("some", values), check("all", BASE), check("too", BASE - 1))
    reason = "no interval from fewer than 20 samples; on the 15 samples that count for both"
    assert [row.reason for row in found.rows] == ["", reason, reason]
    found = ranked(check("some", values), check("as few", values - 1))
    assert "count for both" not in found.rows[1].reason


def test_rounding_does_not_make_a_best():
    """Passes in float32 differ by so much from run to run."""
    found = ranked(check("a", BASE + 9), check("b", (BASE + 9) * (1 - 3e-6)))
    assert places(found) == {"a": "tie", "b": "tie"}
    assert found.rows[1].reason == "the same on every sample"


@pytest.mark.parametrize(
    ("changed", "values", "reason", "place"),
    [
        ({"data": "other"}, BASE - 1, "it was measured on other data", "none"),
        ({"per_sample": None}, BASE - 1, "it has no value for each sample", "none"),
        ({"value": None}, BASE - 1, "it has no value for each sample", "none"),
        ({}, np.full(60, np.nan), "no sample counts for both", "none"),
    ],
)
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_no_best_is_named_where_one_cannot_be_compared(changed, values, reason, place):
    changed = {"value": -1.0} | changed
    found = ranked(check("a", BASE), check("b", values, **changed))
    assert (found.rows[1].reason, str(found.rows[1].place)) == (reason, place)
    assert found.best is None
    assert found.tied == []


def test_few_samples_tell_nothing():
    found = ranked(check("a", BASE[:19]), check("b", BASE[:19] - np.linspace(1, 2, 19)))
    assert found.rows[1].reason == "no interval from fewer than 20 samples"
    assert found.tied == ["a", "b"]


def test_an_extreme_has_no_interval():
    one, two = (
        check(name, values, statistic="max") for name, values in (("a", BASE), ("b", -BASE))
    )
    assert ranked(one, two).rows[1].reason == "the max has no interval"


def test_a_table_is_of_one_check_and_of_one_choice_of_the_other_parameters():
    records = [
        check(label, BASE + shift, fixed=fixed, name=name)
        for name in ("insertion", "deletion")
        for fixed in ("small", "large")
        for shift, label in enumerate(("a", "b"))
    ]
    found = rankings([*records, some_record(), check("a", BASE, fixed="alone")])
    assert [(each.check, each.fixed) for each in found] == [
        ("insertion", "small"),
        ("insertion", "large"),
        ("deletion", "small"),
        ("deletion", "large"),
    ]
    assert all(len(each.rows) == 2 for each in found)


def test_it_is_made_of_plain_values():
    found = ranked(check("a", BASE), check("b", BASE - 1)).to_dict()
    assert found["rows"][0]["place"] == "best"
    Record(**(some_record().to_dict() | {"parameters": found}))
