"""Correlations of measurements: scipy's numbers, intervals that cover, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pytest_triguard import assert_accuracy, metrics
from pytest_triguard.errors import InputError, InputTypeError
from tests.networks import problem


def correlated(n, rho, seed):
    generator = np.random.default_rng(seed)
    first, noise = generator.standard_normal((2, n))
    return first, rho * first + math.sqrt(1 - rho**2) * noise


def test_every_pair_has_scipys_numbers():
    a, b = correlated(40, 0.5, 1)
    c = np.exp(a)
    found = metrics.correlations({"a": a, "b": torch.from_numpy(b), "c": list(c)})
    assert [(each.first, each.second) for each in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    expected = stats.pearsonr(a, b)
    assert found[0].pearson.value == pytest.approx(expected.statistic)
    interval = expected.confidence_interval(0.95)
    assert found[0].pearson.interval == pytest.approx((interval.low, interval.high))
    assert found[0].spearman.value == pytest.approx(stats.spearmanr(a, b).statistic)
    rank, quantile = found[0].spearman.value, stats.norm.ppf(0.975)
    half = quantile * math.sqrt((1 + rank**2 / 2) / 37)
    ends = math.tanh(math.atanh(rank) - half), math.tanh(math.atanh(rank) + half)
    assert found[0].spearman.interval == pytest.approx(ends)
    assert found[1].spearman.value == pytest.approx(1.0)
    assert found[0].n == 40


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_an_interval_covers_the_truth_as_often_as_it_says(kind):
    rho = 0.6
    truth = rho if kind == "pearson" else 6 / math.pi * math.asin(rho / 2)
    covered = 0
    for seed in range(400):
        (found,) = metrics.correlations(
            dict(zip("ab", correlated(30, rho, seed), strict=True)), confidence=0.9
        )
        low, high = getattr(found, kind).interval
        covered += low <= truth <= high
    assert 0.86 <= covered / 400 <= 0.94


def test_undefined_samples_are_left_out_in_pairs():
    a, b = correlated(20, 0.5, 2)
    a[3], b[7] = math.nan, math.inf
    keep = [place for place in range(20) if place not in (3, 7)]
    (found,) = metrics.correlations({"a": a, "b": b})
    (expected,) = metrics.correlations({"a": a[keep], "b": b[keep]})
    assert found == expected
    assert found.n == 18


def test_what_does_not_vary_has_no_correlation():
    (found,) = metrics.correlations({"a": [1.0, 1.0, 1.0, 1.0], "b": [1.0, 2.0, 3.0, 4.0]})
    assert math.isnan(found.pearson.value)
    assert all(math.isnan(end) for end in found.spearman.interval)


def test_few_samples_have_no_interval():
    (found,) = metrics.correlations({"a": [1.0, 2.0, 4.0], "b": [1.0, 3.0, 2.0]})
    assert not math.isnan(found.pearson.value)
    assert math.isnan(found.pearson.interval[0])


def test_measurements_of_assertions_are_columns():
    measured = assert_accuracy(*problem("conv"), at_least=0.0)
    (found,) = metrics.correlations({"right": measured, "twice": 2 * measured.values})
    assert found.pearson.value == pytest.approx(1.0)
    other = assert_accuracy(*problem("conv"), at_least=0.0, ids=list("abcdefgh"))
    with pytest.raises(InputError, match="the same samples, but their ids differ"):
        metrics.correlations({"right": measured, "other": other})


def test_what_is_no_table_is_refused():
    with pytest.raises(InputError, match="at least two measurements, but 1 came"):
        metrics.correlations({"a": [1.0]})
    with pytest.raises(InputError, match="the same samples, but came"):
        metrics.correlations({"a": [1.0], "b": [1.0, 2.0]})
    with pytest.raises(InputError, match=r"column 'b' must have shape \(N,\)"):
        metrics.correlations({"a": [1.0], "b": [[1.0]]})
    with pytest.raises(InputTypeError, match="column 'b' must be a measurement or"):
        metrics.correlations({"a": [1.0], "b": "text"})
    with pytest.raises(InputError, match="confidence must be"):
        metrics.correlations({"a": [1.0], "b": [1.0]}, confidence=2)
    with pytest.raises(InputError, match="confidence must be below 1, but 1 came"):
        metrics.correlations({"a": [1.0], "b": [1.0]}, confidence=1.0)
    with pytest.raises(InputTypeError, match="table must be a mapping of names to measurements"):
        metrics.correlations([[1.0], [1.0]])
