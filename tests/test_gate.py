"""Every branch of the verdict table, and what holds between its rows."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.gate import (
    check_confidence,
    check_fraction,
    check_threshold,
    gate_rate,
    gate_statistic,
)
from pytest_triguard.record import Verdict
from pytest_triguard.statistics import (
    clopper_pearson,
    mean_interval,
    quantile_interval,
    samples_to_decide_rate,
    statistic_value,
)

P, F, INC = Verdict.PASSED, Verdict.FAILED, Verdict.INCONCLUSIVE

few = settings(max_examples=20, deadline=None)
relations = st.sampled_from([">=", "<=", "<"])
confidences = st.floats(0.01, 0.99)


@st.composite
def counts(draw, known=False):
    n = draw(st.integers(1, 400))
    successes = draw(st.integers(0, n))
    failures = n - successes if known else draw(st.integers(0, n - successes))
    return {"successes": successes, "failures": failures, "n": n}


@st.composite
def thresholds(draw):
    whole = draw(st.integers(1, 400))
    return draw(st.one_of(st.floats(0, 1), st.integers(0, whole).map(lambda k: k / whole)))


def rate(successes, failures, n, relation, threshold, confidence=None, **others):
    return gate_rate(
        successes=successes,
        failures=failures,
        n=n,
        relation=relation,
        threshold=threshold,
        confidence=confidence,
        **others,
    )


def statistic(values, relation, threshold, confidence=None, name="mean", undefined=0, at_most=0.05):
    return gate_statistic(
        values=np.asarray(values, dtype=np.float64),
        statistic=name,
        relation=relation,
        threshold=threshold,
        confidence=confidence,
        undefined=undefined,
        undefined_at_most=at_most,
        seed=3,
    )


class TestRateOfTheSamples:
    @pytest.mark.parametrize(
        ("successes", "failures", "relation", "threshold", "verdict", "reason"),
        [
            (9, 1, ">=", 0.9, P, "the value reaches the threshold"),
            (9, 0, ">=", 0.9, P, "the value reaches the threshold"),
            (8, 2, ">=", 0.9, F, "the value is below the threshold"),
            (
                5,
                2,
                ">=",
                0.9,
                F,
                "the value is below the threshold, even with 3 unknown samples counted in",
            ),
            (8, 1, ">=", 0.9, INC, "1 of 10 samples is unknown"),
            (3, 0, ">=", 0.9, INC, "7 of 10 samples are unknown"),
            (0, 10, "<", 0.1, P, "the value is below the threshold"),
            (
                0,
                9,
                "<",
                0.2,
                P,
                "the value is below the threshold, even with 1 unknown sample counted in",
            ),
            (1, 9, "<", 0.1, F, "the value is not below the threshold"),
            (1, 4, "<", 0.1, F, "the value is not below the threshold"),
            (0, 9, "<", 0.1, INC, "1 of 10 samples is unknown"),
            (1, 9, "<=", 0.1, P, "the value does not exceed the threshold"),
            (2, 8, "<=", 0.1, F, "the value exceeds the threshold"),
            (2, 0, "<=", 0.1, F, "the value exceeds the threshold"),
            (1, 8, "<=", 0.1, INC, "1 of 10 samples is unknown"),
        ],
    )
    def test_verdict_table(self, successes, failures, relation, threshold, verdict, reason):
        decision = rate(successes, failures, 10, relation, threshold)
        assert (decision.verdict, decision.reason) == (verdict, reason)
        assert (decision.claim, decision.n, decision.value) == ("sample", 10, successes / 10)
        assert decision.samples_needed is None

    @pytest.mark.parametrize("whole", [3, 7, 10, 49, 100, 1000])
    def test_a_rate_written_as_a_fraction_reaches_itself(self, whole):
        for k in range(1, whole + 1):
            assert rate(k, whole - k, whole, ">=", k / whole).verdict is P
            assert rate(0, whole - k, whole, ">=", k / whole).verdict is INC
            assert rate(k, whole - k, whole, "<", k / whole).verdict is F

    @pytest.mark.parametrize("confidence", [None, False])
    def test_shows_the_interval_it_does_not_judge_by(self, confidence):
        decision = rate(90, 4, 100, ">=", 0.9, confidence)
        low, high = clopper_pearson(90, 100, 0.95)[0], clopper_pearson(96, 100, 0.95)[1]
        assert decision.interval == (low, high)
        assert decision.confidence == 0.95
        assert decision.verdict is P
        assert low < 0.9

    def test_is_frozen(self):
        with pytest.raises(FrozenInstanceError):
            rate(1, 0, 1, ">=", 0.5).verdict = F

    @few
    @given(counts(), thresholds())
    def test_at_least_and_below_are_mirror_images(self, given_counts, threshold):
        at_least = rate(**given_counts, relation=">=", threshold=threshold)
        below = rate(**given_counts, relation="<", threshold=threshold)
        assert below.verdict is {P: F, F: P, INC: INC}[at_least.verdict]

    @few
    @given(counts(), thresholds(), relations, st.data())
    def test_a_verdict_stands_however_the_unknown_samples_turn_out(
        self, given_counts, threshold, relation, data
    ):
        decision = rate(**given_counts, relation=relation, threshold=threshold)
        unknown = given_counts["n"] - given_counts["successes"] - given_counts["failures"]
        turned = data.draw(st.integers(0, unknown))
        successes = given_counts["successes"] + turned
        settled = rate(
            successes, given_counts["n"] - successes, given_counts["n"], relation, threshold
        )
        assert settled.verdict is not INC
        assert decision.verdict in (INC, settled.verdict)

    @few
    @given(counts(), thresholds(), relations)
    def test_undecided_samples_leave_both_verdicts_open(self, given_counts, threshold, relation):
        successes, failures, n = given_counts.values()
        decision = rate(successes, failures, n, relation, threshold)
        ends = {
            rate(successes, n - successes, n, relation, threshold).verdict,
            rate(n - failures, failures, n, relation, threshold).verdict,
        }
        assert (decision.verdict is INC) == (len(ends) == 2)


class TestRateOfThePopulation:
    @pytest.mark.parametrize(
        ("successes", "failures", "relation", "threshold", "verdict", "reason"),
        [
            (98, 2, ">=", 0.9, P, "the whole 95 % interval reaches the threshold"),
            (80, 20, ">=", 0.9, F, "the whole 95 % interval is below the threshold"),
            (91, 9, ">=", 0.9, INC, "the 95 % interval straddles the threshold"),
            (2, 98, "<", 0.1, P, "the whole 95 % interval is below the threshold"),
            (20, 80, "<", 0.1, F, "the whole 95 % interval is not below the threshold"),
            (9, 91, "<", 0.1, INC, "the 95 % interval straddles the threshold"),
            (2, 98, "<=", 0.1, P, "the whole 95 % interval does not exceed the threshold"),
            (20, 80, "<=", 0.1, F, "the whole 95 % interval exceeds the threshold"),
            (
                90,
                10,
                ">=",
                0.9,
                INC,
                "the 95 % interval straddles the threshold, which the value equals",
            ),
            (
                92,
                7,
                ">=",
                0.9,
                INC,
                "the 95 % interval straddles the threshold, and 1 of 100 samples is unknown",
            ),
            (
                50,
                2,
                ">=",
                0.9,
                INC,
                "the 95 % interval straddles the threshold, and 48 of 100 samples are unknown",
            ),
        ],
    )
    def test_verdict_table(self, successes, failures, relation, threshold, verdict, reason):
        decision = rate(successes, failures, 100, relation, threshold, 0.95)
        assert (decision.verdict, decision.reason) == (verdict, reason)
        assert (decision.claim, decision.confidence) == ("population", 0.95)
        assert decision.value == successes / 100

    def test_the_interval_spans_proven_to_not_falsified(self):
        decision = rate(60, 10, 100, ">=", 0.5, 0.9)
        low, high = clopper_pearson(60, 100, 0.9)[0], clopper_pearson(90, 100, 0.9)[1]
        assert decision.interval == (low, high)

    def test_the_confidence_is_named_as_it_was_given(self):
        assert "99.9 %" in rate(90, 10, 100, ">=", 0.88, 0.999).reason

    def test_an_end_on_the_threshold_decides(self):
        low, high = clopper_pearson(95, 100, 0.95)
        assert rate(95, 5, 100, ">=", low, 0.95).verdict is P
        assert rate(95, 5, 100, "<", low, 0.95).verdict is F
        assert rate(95, 5, 100, "<=", high, 0.95).verdict is P
        assert rate(95, 5, 100, "<", high, 0.95).verdict is INC
        assert rate(95, 5, 100, ">=", high, 0.95).verdict is INC
        assert rate(95, 5, 100, "<=", low, 0.95).verdict is INC

    def test_names_the_samples_that_would_decide(self):
        decision = rate(92, 8, 100, ">=", 0.9, 0.95)
        n = 25 * math.ceil(decision.samples_needed / 25)
        assert rate(23 * n // 25, 2 * n // 25, n, ">=", 0.9, 0.95).verdict is P
        assert rate(23 * 20, 2 * 20, 500, ">=", 0.9, 0.95).verdict is INC
        assert decision.samples_needed > 500

    @pytest.mark.parametrize(("successes", "failures"), [(90, 10), (50, 2), (90, 9), (85, 10)])
    def test_no_number_of_samples_decides_where_the_unknown_ones_have_to(self, successes, failures):
        decision = rate(successes, failures, 100, ">=", 0.9, 0.95)
        assert (decision.verdict, decision.samples_needed) == (INC, None)

    def test_unknown_samples_above_the_threshold_are_counted_out(self):
        clear, unsure = (rate(92, 8 - k, 100, ">=", 0.9, 0.95) for k in (0, 5))
        assert unsure.samples_needed == clear.samples_needed

    def test_unknown_samples_below_the_threshold_are_counted_in(self):
        unsure, clear = (rate(k, 12, 100, ">=", 0.9, 0.95) for k in (60, 88))
        assert unsure.verdict is INC
        assert unsure.samples_needed == clear.samples_needed

    @few
    @given(counts(), thresholds(), relations, confidences)
    def test_a_verdict_on_the_population_holds_for_the_samples(
        self, given_counts, threshold, relation, confidence
    ):
        population = rate(
            **given_counts, relation=relation, threshold=threshold, confidence=confidence
        )
        sample = rate(**given_counts, relation=relation, threshold=threshold)
        assert population.verdict in (INC, sample.verdict)
        low, high = population.interval
        assert low <= population.value <= high

    @few
    @given(counts(), thresholds(), relations, confidences, confidences)
    def test_more_confidence_only_makes_it_less_sure(
        self, given_counts, threshold, relation, one, other
    ):
        lesser, greater = (
            rate(**given_counts, relation=relation, threshold=threshold, confidence=each)
            for each in sorted((one, other))
        )
        assert greater.verdict in (INC, lesser.verdict)

    @few
    @given(counts(), thresholds(), confidences)
    def test_at_least_and_below_are_mirror_images(self, given_counts, threshold, confidence):
        at_least, below = (
            rate(**given_counts, relation=each, threshold=threshold, confidence=confidence)
            for each in (">=", "<")
        )
        assert below.verdict is {P: F, F: P, INC: INC}[at_least.verdict]
        assert below.samples_needed == at_least.samples_needed

    @few
    @given(counts(known=True), st.floats(0.01, 0.99), relations)
    def test_the_samples_that_would_decide_are_more_than_there_are(
        self, given_counts, within, relation
    ):
        low, high = clopper_pearson(given_counts["successes"], given_counts["n"], 0.9)
        threshold = low + within * (high - low)
        decision = rate(**given_counts, relation=relation, threshold=threshold, confidence=0.9)
        assert decision.verdict is INC
        if decision.samples_needed is None:
            assert abs(decision.value - threshold) < 1e-4
        else:
            assert decision.samples_needed > decision.n


class TestUndefined:
    @pytest.mark.parametrize("confidence", [None, 0.95])
    def test_too_many_are_inconclusive_whatever_the_rest(self, confidence):
        for threshold in (0.0, 0.5, 1.0):
            decision = rate(0, 88, 88, ">=", threshold, confidence, undefined=12)
            assert decision.verdict is INC
            assert decision.reason == "12 of 100 samples are undefined, more than 5 %"
            assert (decision.value, decision.n, decision.undefined) == (0.0, 88, 12)
            assert decision.interval == clopper_pearson(0, 88, 0.95)
            assert decision.samples_needed is None

    @pytest.mark.parametrize("confidence", [None, 0.95])
    def test_too_many_are_inconclusive_for_a_statistic_too(self, confidence):
        values = np.linspace(0, 1, 40)
        decision = statistic(values, "<", 5.0, confidence, undefined=3)
        assert decision.verdict is INC
        assert decision.reason == "3 of 43 samples are undefined, more than 5 %"
        assert decision.value == statistic_value(values, "mean")
        assert decision.interval == mean_interval(values, 0.95, seed=3)

    def test_as_many_as_allowed_leave_the_verdict(self):
        assert rate(95, 0, 95, ">=", 0.5, undefined=5).verdict is P
        assert rate(94, 0, 94, ">=", 0.5, undefined=6).verdict is INC
        assert rate(94, 0, 94, ">=", 0.5, undefined=6, undefined_at_most=0.06).verdict is P
        assert statistic(np.ones(95), ">=", 0.5, undefined=5).verdict is P

    def test_one_is_spoken_of_alone(self):
        reason = rate(1, 0, 1, ">=", 0.5, undefined=1, undefined_at_most=0.0).reason
        assert reason == "1 of 2 samples is undefined, more than 0 %"

    @pytest.mark.parametrize("confidence", [None, 0.9])
    @pytest.mark.parametrize("at_most", [0.0, 1.0])
    def test_no_defined_sample_has_no_value(self, confidence, at_most):
        for decision in (
            rate(0, 0, 0, ">=", 0.5, confidence, undefined=12, undefined_at_most=at_most),
            statistic([], "<", 0.5, confidence, undefined=12, at_most=at_most),
        ):
            assert decision.verdict is INC
            assert (decision.value, decision.interval, decision.n) == (None, None, 0)
            assert decision.undefined == 12
            assert decision.reason == "none of 12 samples is defined"
            assert decision.samples_needed is None
            assert decision.confidence == (0.95 if confidence is None else 0.9)

    def test_no_sample_at_all_is_said(self):
        assert rate(0, 0, 0, ">=", 0.5).reason == "there are no samples"


class TestStatisticOfTheSamples:
    @pytest.mark.parametrize(
        ("name", "value"), [("mean", 2.75), ("median", 1.5), ("p75", 3.5), ("max", 8), ("min", 0)]
    )
    def test_verdict_table(self, name, value):
        values = [8.0, 0.0, 2.0, 1.0]
        for relation, below, at, above in ((">=", P, P, F), ("<=", F, P, P), ("<", F, F, P)):
            for threshold, verdict in ((value - 0.1, below), (value, at), (value + 0.1, above)):
                decision = statistic(values, relation, threshold, name=name)
                assert decision.verdict is verdict
                assert decision.value == value
                assert (decision.claim, decision.n, decision.samples_needed) == ("sample", 4, None)

    def test_shows_the_interval_at_95_percent(self):
        values = np.random.default_rng(0).exponential(size=50)
        for name, expected in (
            ("mean", mean_interval(values, 0.95, seed=3)),
            ("p80", quantile_interval(values, 0.8, 0.95)),
            ("max", None),
            ("min", None),
        ):
            decision = statistic(values, "<", 1e3, False, name=name)
            assert (decision.interval, decision.confidence) == (expected, 0.95)
            assert decision.reason == "the value is below the threshold"

    def test_few_or_constant_values_are_judged_without_an_interval(self):
        for values in ([0.5], np.full(50, 0.5)):
            decision = statistic(values, "<", 0.6)
            assert (decision.verdict, decision.interval) == (P, None)


class TestStatisticOfThePopulation:
    values = np.random.default_rng(1).normal(0.5, 0.1, 60)

    @pytest.mark.parametrize("name", ["mean", "median", "p80"])
    def test_the_interval_decides(self, name):
        shown = statistic(self.values, "<", 0.9, 0.9, name=name)
        low, high = shown.interval
        table = {
            ">=": [(low, P), (math.nextafter(low, 1), INC), (high, INC), (high + 1e-9, F)],
            "<=": [(high, P), (math.nextafter(high, 0), INC), (low, INC), (low - 1e-9, F)],
            "<": [(high + 1e-9, P), (high, INC), (math.nextafter(low, 1), INC), (low, F)],
        }
        for relation, rows in table.items():
            for threshold, verdict in rows:
                decision = statistic(self.values, relation, threshold, 0.9, name=name)
                assert decision.verdict is verdict
                assert (decision.claim, decision.confidence) == ("population", 0.9)
                if verdict is INC:
                    assert decision.reason == "the 90 % interval straddles the threshold"
                    assert decision.samples_needed > 60
                else:
                    assert decision.reason.startswith("the whole 90 % interval ")
                    assert decision.samples_needed is None

    @pytest.mark.parametrize("name", ["max", "min"])
    @pytest.mark.parametrize("values", [[], [0.1, 0.2]])
    def test_extremes_are_refused(self, name, values):
        with pytest.raises(InputError, match=f"'{name}' allows no population claim"):
            statistic(values, "<", 0.5, 0.95, name=name)

    def test_few_values_are_inconclusive(self):
        decision = statistic(self.values[:19], "<", 0.9, 0.95)
        assert decision.verdict is INC
        assert decision.reason == (
            "19 samples are too few for a 95 % interval of the mean, which takes 20"
        )
        assert decision.samples_needed == 20
        assert statistic(self.values[:20], "<", 0.9, 0.95).verdict is P

    def test_a_single_value_is_spoken_of_alone(self):
        decision = statistic([0.5], "<", 0.9, 0.95)
        assert decision.reason.startswith("1 sample is too few")
        assert decision.samples_needed is None

    @pytest.mark.parametrize("n", [20, 50])
    def test_constant_values_are_inconclusive(self, n):
        decision = statistic(np.full(n, 0.25), "<", 0.9, 0.95)
        assert decision.verdict is INC
        assert decision.reason == f"all {n} values are equal, which gives no interval of the mean"
        assert (decision.value, decision.interval, decision.samples_needed) == (0.25, None, None)

    def test_constant_values_still_have_quantiles(self):
        assert statistic(np.full(50, 0.25), "<", 0.9, 0.95, name="median").verdict is P

    def test_too_few_values_for_a_quantile_are_inconclusive(self):
        for n, threshold in ((30, 0.9), (30, 0.25), (71, 0.9)):
            decision = statistic(np.linspace(0, 0.5, n), "<", threshold, 0.95, name="p95")
            assert decision.verdict is INC
            assert decision.reason == (
                f"{n} samples are too few for a 95 % interval of the p95, which takes 72"
            )
            assert decision.samples_needed == 72
        assert statistic(np.linspace(0, 0.5, 72), "<", 0.9, 0.95, name="p95").verdict is P

    @pytest.mark.parametrize("name", ["median", "p90"])
    @pytest.mark.parametrize("relation", [">=", "<=", "<"])
    def test_a_quantile_is_decided_by_the_samples_named(self, name, relation):
        threshold = 0.52 if name == "median" else 0.57
        few_values = statistic(self.values, relation, threshold, 0.95, name=name)
        assert few_values.verdict is INC
        copies = math.ceil(few_values.samples_needed / 60)
        decided = statistic(np.tile(self.values, copies), relation, threshold, 0.95, name=name)
        assert decided.verdict is not INC
        assert copies > 1

    def test_values_on_the_threshold_count_as_the_relation_says(self):
        values = np.repeat([0.0, 0.5, 1.0], [28, 10, 22])
        at_most, below = (statistic(values, each, 0.5, 0.95, name="median") for each in ("<=", "<"))
        assert (at_most.verdict, below.verdict) == (INC, INC)
        assert at_most.samples_needed == samples_to_decide_rate(38 / 60, 0.5, 0.95)
        assert below.samples_needed == samples_to_decide_rate(28 / 60, 0.5, 0.95)

    def test_a_mean_is_decided_by_the_samples_named(self):
        threshold = self.values.mean() + 0.01
        needed = statistic(self.values, "<", threshold, 0.95).samples_needed
        repeated = np.tile(self.values, math.ceil(1.1 * needed / 60))
        assert statistic(repeated, "<", threshold, 0.95).verdict is P

    def test_no_number_of_samples_decides_a_mean_on_its_threshold(self):
        decision = statistic(self.values, "<", statistic_value(self.values, "mean"), 0.95)
        assert decision.samples_needed is None
        assert decision.reason.endswith("straddles the threshold, which the value equals")

    @few
    @given(
        st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=120),
        st.floats(0, 1),
        relations,
        confidences,
        st.sampled_from(["mean", "median", "p80"]),
    )
    def test_a_verdict_on_the_population_holds_for_the_samples(
        self, values, threshold, relation, confidence, name
    ):
        population = statistic(values, relation, threshold, confidence, name=name)
        sample = statistic(values, relation, threshold, name=name)
        assert sample.verdict is not INC
        assert population.verdict in (INC, sample.verdict)
        assert population.value == sample.value


class TestArguments:
    @pytest.mark.parametrize("threshold", [0, 0.5, 1, np.float32(0.5), np.int64(1)])
    def test_a_reachable_threshold_comes_back_as_a_plain_float(self, threshold):
        value = check_threshold(threshold, low=0.0, high=1.0, name="at_least")
        assert type(value) is float
        assert value == threshold

    @pytest.mark.parametrize("threshold", [-0.01, 1.0000001, math.nan, math.inf, -math.inf])
    def test_an_unreachable_threshold_is_refused(self, threshold):
        with pytest.raises(InputError) as caught:
            check_threshold(threshold, low=0.0, high=1.0, name="at_least")
        expected = f"at_least must be a finite number, at least 0 and at most 1, got {threshold}"
        assert str(caught.value) == expected

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [
            (0.0, math.inf, "a finite number, at least 0, got"),
            (-math.inf, 2.0, "a finite number, at most 2, got"),
            (-math.inf, math.inf, "a finite number, got"),
        ],
    )
    def test_open_ends_still_take_a_finite_threshold(self, low, high, expected):
        assert check_threshold(1.5, low=low, high=high, name="threshold") == 1.5
        with pytest.raises(InputError, match=expected):
            check_threshold(math.inf, low=low, high=high, name="threshold")

    def test_nothing_lies_below_the_smallest_value(self):
        assert check_threshold(0.0, low=0.0, high=1.0, name="threshold", relation="<=") == 0.0
        with pytest.raises(InputError, match=r"above 0 and at most 1, got 0\.0"):
            check_threshold(0.0, low=0.0, high=1.0, name="threshold", relation="<")

    @pytest.mark.parametrize(
        ("threshold", "described"),
        [
            (torch.zeros(5, dtype=torch.long), "a Tensor of shape (5,)"),
            (torch.tensor(0.5), "a Tensor of shape ()"),
            (np.zeros((2, 3)), "a ndarray of shape (2, 3)"),
            (np.array(0.5), "a ndarray of shape ()"),
            (np.True_, "a bool of shape ()"),
            (True, "True (bool)"),
            ([0.5], "[0.5] (list)"),
            ("0.5", "'0.5' (str)"),
            (None, "None (NoneType)"),
            (0.5j, "0.5j (complex)"),
        ],
    )
    def test_a_threshold_that_is_no_number_says_that_labels_are_keyword_only(
        self, threshold, described
    ):
        with pytest.raises(InputTypeError, match="labels are keyword-only") as caught:
            check_threshold(threshold, low=0.0, high=1.0, name="threshold")
        assert str(caught.value).startswith("threshold must be a finite number, at least 0")
        assert described in str(caught.value)
        assert isinstance(caught.value, TypeError)

    @pytest.mark.parametrize("value", [0, 0.05, 1, np.float32(0.25)])
    def test_a_share_comes_back_as_a_plain_float(self, value):
        assert type(check_fraction("undefined_at_most", value)) is float
        assert check_fraction("undefined_at_most", value) == value

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            (-0.1, InputError),
            (5, InputError),
            (math.nan, InputError),
            (True, InputTypeError),
            ("0.05", InputTypeError),
            (None, InputTypeError),
        ],
    )
    def test_a_bad_share_is_refused_by_name(self, value, error):
        with pytest.raises(error, match=r"share must be a number from 0 to 1, got .*\S"):
            check_fraction("share", value)

    def test_confidence_is_a_level_or_the_wish_for_none(self):
        assert check_confidence(None) is None
        assert check_confidence(False) is None
        assert check_confidence(0.9) == 0.9
        assert type(check_confidence(np.float64(0.9))) is float

    @pytest.mark.parametrize(
        ("confidence", "error", "message"),
        [
            (True, InputError, "got True, which names no level"),
            (0, InputError, r"got 0\.0$"),
            (1.0, InputError, r"got 1\.0$"),
            (95, InputError, r"got 95\.0; did you mean 0\.95\?"),
            (-0.5, InputError, r"got -0\.5$"),
            (math.nan, InputError, "got nan$"),
            ("0.95", InputTypeError, "got '0.95'"),
            (torch.tensor(0.95), InputTypeError, "got a Tensor"),
        ],
    )
    def test_a_bad_confidence_is_refused(self, confidence, error, message):
        with pytest.raises(error, match=message):
            check_confidence(confidence)
        with pytest.raises(error, match=message):
            rate(1, 0, 1, ">=", 0.5, confidence)

    @pytest.mark.parametrize(
        "bad",
        [
            {"successes": -1},
            {"failures": -1},
            {"undefined": -1},
            {"successes": 6, "failures": 5},
            {"n": 0},
        ],
    )
    def test_counts_that_do_not_fit_are_refused(self, bad):
        good = {"successes": 5, "failures": 5, "n": 10, "undefined": 0}
        with pytest.raises(InputError, match="successes, failures and undefined"):
            rate(**(good | bad), relation=">=", threshold=0.5)

    def test_the_gates_check_what_they_are_asked(self):
        with pytest.raises(InputError, match="threshold must be"):
            rate(1, 0, 1, ">=", 1.5)
        with pytest.raises(InputError, match="threshold must be"):
            statistic([0.5], "<", math.nan)
        with pytest.raises(InputError, match="undefined_at_most must be"):
            rate(1, 0, 1, ">=", 0.5, undefined_at_most=5)
        with pytest.raises(InputError, match="undefined_at_most must be"):
            statistic([0.5], "<", 0.5, at_most=-1)
        with pytest.raises(InputError, match="unknown statistic 'average'"):
            statistic([0.5], "<", 0.5, name="average")
        with pytest.raises(InputError, match="values must be a vector"):
            statistic([0.5, math.nan], "<", 0.5)
