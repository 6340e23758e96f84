"""Today against the baseline: what counts as worse, and by which claim."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard.baseline import Entry
from pytest_triguard.comparison import (
    Allowance,
    compare,
    obstacle,
    outcomes,
    parse_max_regression,
    rounded_values,
)
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.record import Verdict

RATE = Entry(
    test="test_it",
    check="assert_accuracy",
    assertion="assert_accuracy",
    metric="accuracy",
    relation=">=",
    value=0.75,
    n=4,
    parameters={"eps": 0.1},
    data="d",
    classifier="c",
    device="cpu",
    chunk=64,
    versions={},
    outcomes="YYYN",
)
FACTS = {
    "assertion": "assert_accuracy",
    "metric": "accuracy",
    "relation": ">=",
    "parameters": {"eps": 0.1},
    "data": "d",
}


def rate(then, now, *, relation=">=", allowed=0.0, relative=False, confidence=None):
    """Compare the outcomes of a rate."""
    entry = replace(RATE, outcomes=then, relation=relation)
    return compare(
        entry,
        now,
        list(range(len(then))),
        statistic="mean",
        allowance=Allowance(amount=allowed, relative=relative),
        confidence=confidence,
        seed=0,
    )


def values(then, now, *, statistic="mean", relation="<", allowed=0.0, confidence=None):
    """Compare the values of a statistic."""
    entry = replace(RATE, outcomes=None, values=list(then), relation=relation)
    return compare(
        entry,
        list(now),
        list(range(len(then))),
        statistic=statistic,
        allowance=Allowance(amount=allowed),
        confidence=confidence,
        seed=0,
    )


def test_a_rate_is_compared_on_the_samples_that_count_in_both():
    found = rate("YYYY-N", "YNYYY-")
    assert (found.pairs, found.before, found.delta) == (4, 1.0, -0.25)
    assert (found.worse, found.better, found.worse_ids) == (1, 0, [1])
    assert found.left_out == 1
    assert found.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("then", "now", "relation", "verdict"),
    [
        ("YYNN", "YYNN", ">=", "passed"),
        ("YYNN", "YYYN", ">=", "passed"),
        ("YYNN", "YNNN", ">=", "failed"),
        ("YYNN", "NYYN", ">=", "passed"),  # one lost, one won: the rate is what it was
        ("YYNN", "YYYN", "<", "failed"),
        ("YYNN", "YNNN", "<", "passed"),
        ("YYNN", "YUNN", ">=", "failed"),  # proven then, unknown now
        ("YUNN", "YNNN", ">=", "passed"),  # neither is proven
    ],
)
def test_the_relation_tells_which_way_is_worse(then, now, relation, verdict):
    assert rate(then, now, relation=relation).verdict == verdict


def test_exactly_what_is_allowed_may_be_lost():
    ten, nine = "Y" * 10, "Y" * 9 + "N"
    assert rate(ten, nine, allowed=0.1).verdict == "passed"
    assert rate(ten, nine, allowed=0.0999).verdict == "failed"
    half = "Y" * 5 + "N" * 5
    assert rate(half, "Y" * 4 + "N" * 6, allowed=0.2, relative=True).verdict == "passed"
    assert rate(half, "Y" * 4 + "N" * 6, allowed=0.19, relative=True).verdict == "failed"


@pytest.mark.parametrize(("lost", "verdict"), [(0, "passed"), (5, "passed"), (6, "failed")])
def test_a_population_claim_about_a_rate_is_mcnemars(lost, verdict):
    # Six against none are the fewest that McNemar's exact test calls a change at 95 %.
    then, now = "Y" * 100, "N" * lost + "Y" * (100 - lost)
    assert rate(then, now, confidence=0.95).verdict == verdict
    assert rate(then, now).verdict == ("failed" if lost else "passed")


def test_a_population_claim_about_a_rate_heeds_what_is_allowed():
    then, now = "Y" * 400, "N" * 60 + "Y" * 340
    assert rate(then, now, confidence=0.95).verdict == "failed"
    assert rate(then, now, confidence=0.95, allowed=0.15).verdict == "passed"
    low, high = rate(then, now, confidence=0.95).interval
    assert low < -0.15 < high < 0


def test_a_statistic_of_the_same_values_has_not_changed():
    found = values([0.1, 0.2, None], [0.1, 0.2, 0.9])
    assert (found.verdict, found.delta, found.pairs) == ("passed", 0.0, 2)


@pytest.mark.parametrize(("statistic", "delta"), [("mean", 0.25), ("median", 0.0), ("max", 1.0)])
def test_the_statistic_of_the_check_is_compared(statistic, delta):
    found = values([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0], statistic=statistic)
    assert found.delta == pytest.approx(delta)
    assert found.verdict == ("failed" if delta else "passed")


def test_what_single_precision_may_change_is_no_change():
    then = [0.5] * 30
    assert values(then, [0.5 + 4e-6] * 30).verdict == "passed"
    found = values(then, [0.5 + 1e-4] * 30)
    assert (found.verdict, found.worse) == ("failed", 30)


def test_a_population_claim_about_a_mean_takes_the_paired_interval():
    rng = np.random.default_rng(0)
    then = rng.normal(1, 0.5, 100)
    # A shift far smaller than the spread shows in the pairs.
    now = then + rng.normal(0.02, 0.01, 100)
    found = values(then.tolist(), now.tolist(), confidence=0.95)
    assert found.verdict == "failed"
    assert 0.015 < found.interval[0] < found.delta < found.interval[1] < 0.025
    noise = then + rng.normal(0, 0.2, 100)
    assert values(then.tolist(), noise.tolist(), confidence=0.95).verdict == "passed"
    assert values(then.tolist(), now.tolist(), confidence=0.95, allowed=0.1).verdict == "passed"


def test_without_an_interval_a_loss_in_the_population_is_inconclusive():
    few = [0.1] * 5
    assert values(few, [0.2] * 5, confidence=0.95).verdict == "inconclusive"
    assert values(few, few, confidence=0.95).verdict == "passed"
    assert values([0.1] * 30, [0.2] * 30, confidence=0.95).verdict == "inconclusive"


def test_nothing_in_common_is_no_comparison():
    assert rate("--Y", "YN-") is None


def test_the_worst_changes_are_named_first_and_few():
    then, now = [0.0] * 8, [0.1, 0.9, 0.3, 0.0, 0.5, 0.2, 0.8, 0.7]
    assert values(then, now).worse_ids == [1, 6, 7, 4, 2]


def test_what_forbids_a_comparison_is_told():
    ids = list(range(4))
    assert obstacle(RATE, facts=FACTS, ids=ids) == ""
    assert "another metric: accuracy then, entropy now" in obstacle(
        RATE, facts=FACTS | {"metric": "entropy"}, ids=ids
    )
    assert "eps 0.1 then, 0.2 now; steps none then, 3 now" in obstacle(
        RATE, facts=FACTS | {"parameters": {"eps": 0.2, "steps": 3}}, ids=ids
    )
    assert "other data" in obstacle(RATE, facts=FACTS | {"data": "e"}, ids=ids)
    assert "other data" in obstacle(RATE, facts=FACTS, ids=[0, 1, 2, 9])
    # What a file turns into a list was a tuple before.
    assert not obstacle(
        replace(RATE, parameters={"between": ["zero", "blur"]}),
        facts=FACTS | {"parameters": {"between": ("zero", "blur")}},
        ids=ids,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, Allowance()),
        (0.02, Allowance(amount=0.02)),
        ("2%", Allowance(amount=0.02, relative=True)),
        (" 0.5 % ", Allowance(amount=0.005, relative=True)),
    ],
)
def test_max_regression_is_a_number_or_a_percentage(given, expected):
    assert parse_max_regression(given) == expected


@pytest.mark.parametrize("given", [-1, math.inf, math.nan, "2", "-2%", "many%", "nan%", ""])
def test_a_wrong_max_regression_is_refused(given):
    with pytest.raises(InputError, match="max_regression must be a number of at least 0 or a perc"):
        parse_max_regression(given)


@pytest.mark.parametrize("given", [1, 2, 2.0])
def test_a_rate_cannot_lose_as_much_as_one(given):
    with pytest.raises(InputError, match=r"max_regression of a rate must be below 1, but \d came"):
        parse_max_regression(given).require_below_one()


@pytest.mark.parametrize("given", [0, 0.999, "2%", "200%"])
def test_a_rate_may_lose_less(given):
    parse_max_regression(given).require_below_one()


@pytest.mark.parametrize("given", [True, [0.1], {}])
def test_a_max_regression_of_a_wrong_type_is_refused(given):
    with pytest.raises(InputTypeError, match="max_regression"):
        parse_max_regression(given)


def test_samples_are_kept_as_letters_and_rounded_values():
    found = np.array([1.0, 0.0, math.nan])
    assert outcomes(found, unknown=False) == "YN-"
    assert outcomes(found, unknown=True) == "YNU"
    assert rounded_values(np.array([1 / 3, math.nan, 0.0])) == [0.333333, None, 0.0]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from("YN"), min_size=1, max_size=60),
    st.lists(st.sampled_from("YN"), min_size=60, max_size=60),
    st.sampled_from([None, 0.9, 0.99]),
)
def test_turning_time_round_turns_the_change_round(then, now, confidence):
    then, now = "".join(then), "".join(now[: len(then)])
    forth, back = (rate(*each, confidence=confidence) for each in ((then, now), (now, then)))
    assert forth.delta == pytest.approx(-back.delta)
    assert forth.interval == pytest.approx(tuple(-end for end in reversed(back.interval)))
    assert forth.interval[0] <= forth.delta <= forth.interval[1]
    assert not (forth.verdict == back.verdict == "failed")
