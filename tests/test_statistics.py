"""Intervals and sample sizes, held against closed forms, scipy and simulation."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_triguard import statistics
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.statistics import (
    clopper_pearson,
    mean_interval,
    paired_interval,
    paired_rate_interval,
    parse_statistic,
    quantile_interval,
    samples_for_quantile,
    samples_to_decide_mean,
    samples_to_decide_rate,
    statistic_value,
)

few = settings(max_examples=20, deadline=None)
numbers = st.floats(-1e3, 1e3, allow_subnormal=False)
vectors = st.lists(numbers, min_size=20, max_size=60).map(np.array)
levels = st.floats(0.01, 0.999)


def skewed(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=n)


class TestClopperPearson:
    @pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
    @pytest.mark.parametrize(
        ("successes", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 10), (93, 100), (9_999, 10_000)]
    )
    def test_agrees_with_scipys_exact_interval(self, successes, n, confidence):
        exact = stats.binomtest(successes, n).proportion_ci(confidence, method="exact")
        found = clopper_pearson(successes, n, confidence)
        np.testing.assert_allclose(found, (exact.low, exact.high), rtol=1e-9, atol=1e-12)

    def test_has_the_closed_form_where_all_succeed(self):
        low, high = clopper_pearson(50, 50, 0.95)
        assert low == pytest.approx(0.025 ** (1 / 50), rel=1e-12)
        assert high == 1.0

    def test_published_value(self):
        assert clopper_pearson(10, 100, 0.95) == pytest.approx((0.0490, 0.1762), abs=5e-5)

    def test_knows_nothing_without_a_trial(self):
        assert clopper_pearson(0, 0, 0.95) == (0.0, 1.0)

    @pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (0, -1)])
    def test_refuses_counts_that_do_not_fit(self, successes, n):
        with pytest.raises(InputError, match=f"got {successes} with n = {n}"):
            clopper_pearson(successes, n, 0.95)

    @few
    @given(st.data(), st.integers(1, 3000), levels, levels)
    def test_contains_the_rate_and_grows_with_the_confidence(self, data, n, one, other):
        successes = data.draw(st.integers(0, n))
        small, large = (clopper_pearson(successes, n, each) for each in sorted((one, other)))
        assert 0.0 <= large[0] <= small[0] <= successes / n <= small[1] <= large[1] <= 1.0

    @few
    @given(st.data(), st.integers(1, 3000))
    def test_failures_have_the_mirrored_interval(self, data, n):
        successes = data.draw(st.integers(0, n))
        low, high = clopper_pearson(successes, n, 0.95)
        mirrored = clopper_pearson(n - successes, n, 0.95)
        np.testing.assert_allclose(mirrored, (1 - high, 1 - low), atol=1e-12)


class TestMeanInterval:
    @pytest.mark.parametrize(("confidence", "errors"), [(0.5, 0.03), (0.8, 0.06), (0.95, 0.12)])
    @pytest.mark.parametrize(
        ("values", "jump"),
        [
            (skewed(25), 0.0),
            (-skewed(80, 1), 0.0),
            (np.random.default_rng(2).normal(3, 0.1, 40), 0.0),
            (np.repeat([0.0, 1.0], [37, 3]), 1 / 40),
            (np.repeat([0.0, 10.0], [60, 1]), 10 / 61),
        ],
        ids=["skewed", "skewed-left", "normal", "binary", "outlier"],
    )
    def test_agrees_with_scipys_bca(self, values, jump, confidence, errors):
        theirs = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            n_resamples=100_000,
            method="BCa",
            vectorized=True,
            random_state=np.random.default_rng(5),
        ).confidence_interval
        ours = mean_interval(values, confidence, seed=0, resamples=100_000)
        # Monte Carlo moves an end by some hundredths of a standard error of the mean, or by the
        # distance between neighbouring means where there are only a few.
        tolerance = errors * values.std() / math.sqrt(values.size) + 1.01 * jump
        np.testing.assert_allclose(ours, theirs, atol=tolerance)

    def test_is_corrected_for_skew(self):
        values = skewed(40)
        low, high = mean_interval(values, 0.95, seed=0)
        assert high - values.mean() > 1.1 * (values.mean() - low)

    def test_covers_about_as_often_as_it_says(self):
        rng = np.random.default_rng(11)
        covered = 0
        for trial in range(300):
            low, high = mean_interval(rng.exponential(size=60), 0.9, seed=trial, resamples=499)
            covered += low <= 1.0 <= high
        assert 0.84 <= covered / 300 <= 0.95

    def test_large_normal_samples_have_the_normal_interval(self):
        values = np.random.default_rng(3).normal(size=2000)
        half = 1.959964 * values.std() / math.sqrt(values.size)
        expected = (values.mean() - half, values.mean() + half)
        np.testing.assert_allclose(mean_interval(values, 0.95, seed=0), expected, atol=0.08 * half)

    @pytest.mark.parametrize("values", [np.arange(19.0), np.array([0.5]), np.full(100, 0.1)])
    def test_is_none_for_few_or_constant_values(self, values):
        assert mean_interval(values, 0.95, seed=0) is None

    def test_twenty_values_are_enough(self):
        assert mean_interval(np.arange(20.0), 0.95, seed=0) is not None

    @few
    @given(vectors, levels, levels, st.integers(0, 2**32))
    def test_contains_the_mean_and_grows_with_the_confidence(self, values, one, other, seed):
        intervals = [
            mean_interval(values, each, seed=seed, resamples=200) for each in sorted((one, other))
        ]
        if np.ptp(values) == 0:
            assert intervals == [None, None]
            return
        small, large = intervals
        slack = 1e-9 * np.ptp(values)
        assert large[0] <= small[0] + slack
        assert large[1] >= small[1] - slack
        assert small[0] <= statistic_value(values, "mean") <= small[1]

    @few
    @given(vectors, st.randoms(use_true_random=False))
    def test_does_not_depend_on_the_order_of_the_values(self, values, random):
        shuffled = values.tolist()
        random.shuffle(shuffled)
        interval = mean_interval(np.array(shuffled), 0.9, seed=4, resamples=200)
        assert interval == mean_interval(values, 0.9, seed=4, resamples=200)

    @few
    @given(vectors, st.integers(-6, 6), st.sampled_from([0.0, 1.0, -64.0]))
    def test_moves_and_scales_with_the_values(self, values, power, shift):
        interval = mean_interval(values, 0.9, seed=4, resamples=200)
        moved = mean_interval(values * 2.0**power + shift, 0.9, seed=4, resamples=200)
        if interval is None or moved is None:
            return
        expected = np.array(interval) * 2.0**power + shift
        np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-6 * 2.0**power)

    def test_depends_on_the_seed_alone(self):
        values = skewed(50)
        np.random.seed(1)
        before = np.random.get_state()[1].copy()
        first, second, other = (mean_interval(values, 0.95, seed=each) for each in (7, 7, 8))
        assert first == second != other
        np.testing.assert_array_equal(np.random.get_state()[1], before)

    @pytest.mark.parametrize("draws", [1, 97, 1000, 10**9])
    def test_does_not_depend_on_the_block_size(self, monkeypatch, draws):
        values = skewed(33)
        expected = mean_interval(values, 0.95, seed=0, resamples=500)
        monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", draws)
        assert mean_interval(values, 0.95, seed=0, resamples=500) == expected

    @pytest.mark.parametrize(
        "values",
        [
            np.repeat([1.0, np.nextafter(1.0, 2.0)], 500),
            np.repeat([0.1, np.nextafter(0.1, 1.0)], [1, 40]),
            np.repeat([0.0, 5e-324], 30),
            1e12 + np.repeat([0.0, 1.0], 40),
        ],
        ids=["one-ulp", "one-ulp-skewed", "subnormal", "large-offset"],
    )
    def test_stays_finite_where_the_spread_is_tiny(self, values):
        low, high = mean_interval(values, 0.95, seed=0, resamples=500)
        assert values.min() <= low <= high <= values.max()

    def test_is_finite_at_extreme_confidence_and_few_resamples(self):
        values = np.concatenate([np.zeros(500), [1.0]])
        low, high = mean_interval(values, 1 - 1e-12, seed=0, resamples=50)
        assert 0.0 <= low <= 1 / 501
        assert high >= mean_interval(values, 0.99, seed=0, resamples=50)[1] > 1 / 501
        for seed in range(10):
            low, high = mean_interval(-values, 0.95, seed=seed, resamples=1)
            assert -1.0 <= low <= -1 / 501 <= high <= 0.0

    def test_memory_does_not_grow_with_the_number_of_resamples(self):
        values = skewed(20_000)
        tracemalloc.start()
        try:
            mean_interval(values, 0.95, seed=0, resamples=300)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 12e6  # all resamples at once would be 96e6

    def test_twenty_thousand_values_take_seconds(self):
        values = skewed(20_000)
        start = time.process_time()
        mean_interval(values, 0.95, seed=0, resamples=999)
        assert time.process_time() - start < 1.5  # a tenth of the default; 0.1 s where idle


class TestQuantileInterval:
    @pytest.mark.parametrize(
        ("n", "ranks"), [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (100, (40, 61))]
    )
    def test_has_the_tabulated_ranks_for_the_median(self, n, ranks):
        assert quantile_interval(np.arange(1.0, n + 1), 0.5, 0.95) == ranks

    @pytest.mark.parametrize("q", [0.05, 0.3, 0.5, 0.9, 0.95])
    @pytest.mark.parametrize("n", [75, 200, 1001])
    def test_each_end_is_the_tightest_that_keeps_its_tail(self, n, q):
        low, high = quantile_interval(np.arange(1.0, n + 1), q, 0.95)
        law = stats.binom(n, q)
        assert law.cdf(low - 1) <= 0.025 < law.cdf(low)
        assert law.sf(high - 1) <= 0.025 < law.sf(high - 2)

    def test_covers_at_least_as_often_as_it_says(self):
        rng = np.random.default_rng(8)
        intervals = [quantile_interval(rng.normal(size=60), 0.8, 0.9) for _ in range(500)]
        truth = stats.norm.ppf(0.8)
        assert sum(low <= truth <= high for low, high in intervals) / 500 >= 0.88

    @pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.95, 0.99])
    @pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
    def test_exists_from_the_smallest_n_named(self, q, confidence):
        n = samples_for_quantile(q, confidence)
        assert quantile_interval(np.arange(float(n)), q, confidence) is not None
        if n > 1:
            assert quantile_interval(np.arange(n - 1.0), q, confidence) is None

    @pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.95, 72), (0.99, 368)])
    def test_smallest_n_is_the_known_one(self, q, n):
        assert samples_for_quantile(q, 0.95) == n

    def test_an_end_that_just_keeps_its_tail_is_taken(self):
        assert quantile_interval(np.array([1.0, 2.0]), 0.5, 0.5) == (1.0, 2.0)

    @pytest.mark.parametrize(("n", "q"), [(6, 0.75), (23, 0.9), (23, 0.1)])
    def test_contains_the_quantile_at_little_confidence(self, n, q):
        values = np.arange(float(n))
        low, high = quantile_interval(values, q, 0.05)
        assert low <= np.quantile(values, q) <= high

    def test_constant_values_have_an_interval(self):
        assert quantile_interval(np.full(50, 0.25), 0.5, 0.95) == (0.25, 0.25)

    @few
    @given(vectors, st.floats(0.05, 0.95), levels, levels)
    def test_contains_the_quantile_and_grows_with_the_confidence(self, values, q, one, other):
        small, large = (quantile_interval(values, q, each) for each in sorted((one, other)))
        if small is not None:
            assert small[0] <= np.quantile(values, q) <= small[1]
        if large is not None:
            assert small is not None
            assert large[0] <= small[0] <= small[1] <= large[1]

    @few
    @given(vectors, st.floats(0.1, 0.9))
    def test_mirrors_with_the_values(self, values, q):
        interval = quantile_interval(values, q, 0.9)
        mirrored = quantile_interval(-values, 1 - q, 0.9)
        if interval is None or mirrored is None:
            assert interval == mirrored
        else:
            np.testing.assert_allclose(mirrored, (-interval[1], -interval[0]), rtol=1e-9, atol=1e-9)


class TestStatistics:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("mean", 2.75),
            ("median", 1.5),
            ("max", 8.0),
            ("min", 0.0),
            ("p50", 1.5),
            ("p25", 0.75),
            ("p99.9", np.quantile([0.0, 1.0, 2.0, 8.0], 0.999)),
        ],
    )
    def test_values_by_hand(self, name, expected):
        assert statistic_value(np.array([8.0, 0.0, 2.0, 1.0]), name) == pytest.approx(expected)

    def test_a_mean_is_rounded_once_and_in_any_order(self):
        assert statistic_value(np.full(10, 0.1), "mean") == 0.1
        assert statistic_value(np.array([1e16, 1.0, -1e16]), "mean") == pytest.approx(1 / 3)

    @pytest.mark.parametrize(
        ("name", "kind", "q"),
        [("mean", "mean", None), ("median", "quantile", 0.5), ("p5", "quantile", 0.05)],
    )
    def test_names_are_parsed(self, name, kind, q):
        parsed = parse_statistic(name)
        assert (parsed.name, parsed.kind, parsed.q) == (name, kind, q)

    @pytest.mark.parametrize(
        "name", ["", "Mean", "p0", "p00.0", "p100", "p-5", "q95", "95", "p95\n"]
    )
    def test_an_unknown_name_says_what_is_known(self, name):
        with pytest.raises(InputError, match="mean, median, max, min, and percentiles") as caught:
            parse_statistic(name)
        assert repr(name) in str(caught.value)

    def test_a_misspelt_name_brings_the_nearest(self):
        with pytest.raises(InputError, match="did you mean 'median'"):
            parse_statistic("medain")

    def test_a_name_is_a_string(self):
        with pytest.raises(InputTypeError, match="statistic must be a name"):
            parse_statistic(np.mean)

    @pytest.mark.parametrize(
        "values", [np.array([]), np.zeros((3, 2)), np.array([1.0, np.nan]), np.array([np.inf])]
    )
    @pytest.mark.parametrize(
        "use",
        [
            lambda values: statistic_value(values, "mean"),
            lambda values: mean_interval(values, 0.95, seed=0),
            lambda values: quantile_interval(values, 0.5, 0.95),
            lambda values: samples_to_decide_mean(values, 0.0, 0.95),
        ],
        ids=["value", "mean", "quantile", "decide"],
    )
    def test_values_are_a_vector_of_finite_numbers(self, values, use):
        with pytest.raises(InputError, match="values must be a vector"):
            use(values)


class TestSamplesToDecide:
    @pytest.mark.parametrize(
        ("rate", "threshold"), [(0.9, 0.85), (0.9, 0.95), (1.0, 0.95), (0.0, 0.02), (0.5, 0.51)]
    )
    def test_a_rate_is_decided_there_and_not_before(self, rate, threshold):
        def excluded(n):
            successes = rate * n
            low = stats.beta.ppf(0.025, successes, n - successes + 1) if successes else 0.0
            high = stats.beta.ppf(0.975, successes + 1, n - successes) if successes < n else 1.0
            return not low <= threshold <= high

        needed = samples_to_decide_rate(rate, threshold, 0.95)
        decided = [n for n in range(1, min(needed, 2000) + 1) if excluded(n)]
        assert decided == ([needed] if needed <= 2000 else [])
        assert excluded(needed)

    def test_all_successes_have_the_closed_form(self):
        expected = math.ceil(math.log(0.025) / math.log(0.95))
        assert samples_to_decide_rate(1.0, 0.95, 0.95) == expected

    def test_whole_successes_at_that_n_are_decided(self):
        needed = samples_to_decide_rate(0.9, 0.85, 0.95)
        n = 10 * math.ceil(needed / 10)
        assert clopper_pearson(9 * n // 10, n, 0.95)[0] > 0.85

    @pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
    def test_no_n_decides_a_rate_on_its_threshold(self, rate):
        assert samples_to_decide_rate(rate, rate, 0.95) is None

    def test_a_billion_samples_are_the_end(self):
        assert samples_to_decide_rate(0.3, 0.1 + 0.2, 0.95) is None
        assert samples_to_decide_mean(np.array([0.0, 1.0]), 0.5 + 1e-9, 0.95) is None

    @few
    @given(st.floats(0, 1), st.floats(0.01, 0.4), st.floats(0.5, 0.99))
    def test_a_wider_gap_takes_fewer_samples_and_more_confidence_more(self, rate, gap, confidence):
        near = rate + gap if rate < 0.5 else rate - gap
        far = rate + 1.2 * gap if rate < 0.5 else rate - 1.2 * gap
        needed = samples_to_decide_rate(rate, near, confidence)
        assert samples_to_decide_rate(rate, far, confidence) <= needed
        assert needed <= samples_to_decide_rate(rate, near, confidence + 0.005)

    def test_a_mean_is_decided_about_there(self):
        values = np.random.default_rng(0).normal(0.0, 1.0, 50)
        threshold = values.mean() + 0.1
        needed = samples_to_decide_mean(values, threshold, 0.95)
        for factor, decided in ((0.85, False), (1.15, True)):
            repeated = np.tile(values, round(factor * needed / 50))
            low, high = mean_interval(repeated, 0.95, seed=0)
            assert (not low <= threshold <= high) is decided

    def test_a_mean_has_the_normal_closed_form(self):
        expected = math.ceil((stats.norm.ppf(0.975) / 0.1) ** 2)
        assert samples_to_decide_mean(np.array([-1.0, 1.0]), 0.1, 0.95) == expected

    def test_a_mean_takes_twenty_samples_at_least(self):
        assert samples_to_decide_mean(np.array([0.0, 0.1]), 100.0, 0.95) == 20

    @pytest.mark.parametrize("values", [np.full(5, 0.3), np.array([0.2, 0.4])])
    def test_no_n_decides_constant_values_or_a_mean_on_its_threshold(self, values):
        assert samples_to_decide_mean(values, statistic_value(values, "mean"), 0.95) is None
        assert samples_to_decide_mean(np.full(5, 0.3), 0.9, 0.95) is None


def mcnemar(worse, better):
    """Return the two-sided p-value of the exact test."""
    if worse + better == 0:
        return 1.0
    return stats.binomtest(worse, worse + better).pvalue


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("worse", "better"), list(itertools.product(range(0, 40, 3), repeat=2)))
def test_a_paired_rate_has_changed_exactly_when_mcnemar_says_so(worse, better, confidence):
    low, high = paired_rate_interval(worse, better, 200, confidence)
    p, error = mcnemar(worse, better), 1 - confidence
    if not 0.99 * error < p <= error:  # a hundredth of the error goes to the changed share
        assert (low > 0 or high < 0) == (p <= error)
    assert -1 <= low <= (better - worse) / 200 <= high <= 1


@pytest.mark.parametrize(
    ("lost", "won"), [(0.0, 0.0), (0.1, 0.0), (0.05, 0.05), (0.3, 0.1), (0.02, 0.01), (0.9, 0.0)]
)
def test_a_paired_rate_interval_covers_at_least_as_often_as_it_says(lost, won):
    """Summed over all outcomes of 40 pairs: no simulation, so no luck."""
    n, confidence, covered = 40, 0.9, 0.0
    for worse in range(n + 1):
        for better in range(n + 1 - worse):
            low, high = paired_rate_interval(worse, better, n, confidence)
            if low <= won - lost <= high:
                covered += stats.multinomial.pmf(
                    [worse, better, n - worse - better], n, [lost, won, 1 - lost - won]
                )
    assert covered >= confidence


def test_no_pairs_say_nothing_changed_and_wrong_counts_are_refused():
    assert paired_rate_interval(0, 0, 0, 0.95) == (0.0, 0.0)
    with pytest.raises(InputError, match="worse and better must fit into n"):
        paired_rate_interval(3, 3, 5, 0.95)


def test_the_paired_interval_of_a_mean_is_that_of_the_differences():
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=(2, 50))
    found = paired_interval(before, after, "mean", 0.95, seed=4)
    assert found == mean_interval(after - before, 0.95, seed=4)


@pytest.mark.parametrize("statistic", ["median", "p90"])
def test_the_paired_interval_of_a_quantile_sees_a_shift(statistic):
    rng = np.random.default_rng(2)
    before = rng.normal(size=300)
    low, high = paired_interval(before, before + rng.normal(0.5, 0.1, 300), statistic, 0.95, seed=0)
    assert 0.3 < low < 0.5 < high < 0.7
    # Equal differences leave nothing to resample.
    assert paired_interval(before, before, statistic, 0.95, seed=0) is None


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_few_pairs_and_extremes_have_no_paired_interval(statistic):
    rng = np.random.default_rng(3)
    assert paired_interval(*rng.normal(size=(2, 19)), statistic, 0.95, seed=0) is None
    assert paired_interval(*rng.normal(size=(2, 50)), "max", 0.95, seed=0) is None
