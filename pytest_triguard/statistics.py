"""Statistics of per-sample values: point values, intervals, and how many samples would decide.

Proportions get the exact interval of Clopper and Pearson, means the BCa bootstrap, quantiles the
order statistics; changes between two measurements of the same samples get paired intervals. All
confidences are two-sided: each tail outside an interval holds `(1 - confidence) / 2`.

References:
    C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case
    of the binomial", Biometrika 26, 1934.
    B. Efron, "Better bootstrap confidence intervals", JASA 82, 1987, sections 2 to 4 and 6.
    H. A. David, H. N. Nagaraja, "Order Statistics", 3rd edition, 2003, section 7.1.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_triguard.errors import InputError, InputTypeError, nearest

Values = npt.NDArray[np.float64]
Interval = tuple[float, float]

FEWEST_FOR_MEAN = 20
"""Fewest values from which the interval of a mean is computed."""

MOST_SAMPLES = 10**9
"""A larger number of samples is not worth naming as the one that would decide."""

_DRAWS_AT_ONCE = 1 << 18
# Equal resample means come out apart by rounding, and count as ties; values are scaled to 1.
_TIE = 1e-12
_NUISANCE = 0.01
"""Share of the error that bounds how many samples changed, in a paired interval."""

_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_KNOWN = ("mean", "median", "max", "min", "p5", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """What sums up the values of all samples in one number.

    Attributes:
        name: The name it was asked by, such as `p95`.
        kind: Which family of intervals fits it; the extremes have none.
        q: The quantile's level in (0, 1), or None for the other kinds.
    """

    name: str
    kind: Literal["mean", "quantile", "max", "min"]
    q: float | None = None


def parse_statistic(name: str) -> Statistic:
    """Return the statistic of a name: `mean`, `median`, `max`, `min`, or a percentile as `p95`.

    Args:
        name: The name; percentiles lie strictly between 0 and 100 and may have decimals (`p99.9`).

    Raises:
        InputError: The name is not known.
        InputTypeError: The name is not a string.
    """
    if not isinstance(name, str):
        raise InputTypeError(f"statistic must be a name such as 'mean' or 'p95', got {name!r}")
    match name:
        case "mean" | "max" | "min":
            return Statistic(name=name, kind=name)
        case "median":
            return Statistic(name=name, kind="quantile", q=0.5)
    found = _PERCENTILE.fullmatch(name)
    level = float(found[1]) / 100 if found else 0.0
    if level == 0.0:
        raise InputError(
            f"unknown statistic {name!r}{nearest(name, _KNOWN)} "
            "(known: mean, median, max, min, and percentiles between p0 and p100 such as p95)"
        )
    return Statistic(name=name, kind="quantile", q=level)


def statistic_value(values: Values, statistic: str) -> float:
    """Return a statistic of the values; the order of the values does not matter.

    Args:
        values: `(N,)` float64, finite, N at least 1.
        statistic: A name that `parse_statistic` knows. Quantiles interpolate linearly.

    Raises:
        InputError: The statistic is not known, or the values are not as described.
    """
    asked, values = parse_statistic(statistic), _checked(values)
    if asked.q is not None:
        return float(np.quantile(values, asked.q))
    if asked.kind == "mean":
        return _mean(values)
    return float(values.max() if asked.kind == "max" else values.min())


def clopper_pearson(successes: int, n: int, confidence: float) -> Interval:
    """Return the exact two-sided interval of a proportion; `(0, 1)` where n is 0.

    Args:
        successes: Number of successes, from 0 to n.
        n: Number of trials.
        confidence: Two-sided confidence in (0, 1).

    Raises:
        InputError: The counts do not fit together.
    """
    if not 0 <= successes <= n:
        raise InputError(f"successes must lie between 0 and n, got {successes} with n = {n}")
    tail = (1 - confidence) / 2
    return _proportion_low(successes, n, tail), _proportion_high(successes, n, tail)


def mean_interval(
    values: Values, confidence: float, *, seed: int, resamples: int = 9999
) -> Interval | None:
    """Return the BCa bootstrap interval of the mean, or None where the data cannot carry one.

    The acceleration is the jackknife's in closed form, `sum d^3 / (6 (sum d^2)^1.5)` with d the
    deviations from the mean. The interval depends on the values and the seed, not on the order of
    the values, and always contains the mean. Time grows with N x resamples, memory with N.

    Args:
        values: `(N,)` float64, finite.
        confidence: Two-sided confidence in (0, 1).
        seed: Seed of the resampling, not negative.
        resamples: Number of bootstrap resamples.

    Returns:
        The two ends, or None for fewer than 20 values or constant values.

    Raises:
        InputError: The values are not as described.
    """
    values = np.sort(_checked(values))
    if values.size < FEWEST_FOR_MEAN or values[0] == values[-1]:
        return None
    mean = _mean(values)
    # Centred and scaled: the same interval, without cancellation where the spread is small.
    deviations = values - mean
    scale = float(np.abs(deviations).max())
    deviations /= scale
    means = _resampled_means(deviations, resamples, np.random.default_rng(seed))
    levels = _bca_levels(means, deviations, confidence)
    low, high = (mean + scale * float(end) for end in np.quantile(means, levels))
    # Within the data: rounding must not take an end below zero where no value is.
    return max(min(low, mean), float(values[0])), min(max(high, mean), float(values[-1]))


def quantile_interval(values: Values, q: float, confidence: float) -> Interval | None:
    """Return the distribution-free interval of a quantile, between two order statistics.

    It covers at least as often as `confidence` says, for discrete distributions too, and always
    contains the sample's own quantile.

    Args:
        values: `(N,)` float64, finite.
        q: Level of the quantile in (0, 1).
        confidence: Two-sided confidence in (0, 1).

    Returns:
        The two ends, or None where fewer than `samples_for_quantile` values are given.

    Raises:
        InputError: The values are not as described.
    """
    values = np.sort(_checked(values))
    n, tail = values.size, (1 - confidence) / 2
    below, above = _ranks_in_tail(n, q, tail), _ranks_in_tail(n, 1 - q, tail)
    if below == 0 or above == 0:
        return None
    point = float(np.quantile(values, q))
    return min(float(values[below - 1]), point), max(float(values[n - above]), point)


def paired_rate_interval(worse: int, better: int, n: int, confidence: float) -> Interval:
    """Return the interval of the change of a rate between two measurements of the same samples.

    The interval of Clopper and Pearson of the share of gains among the samples that changed,
    times an end of theirs of the share that changed: exact for every n (Berger and Boos's way
    with the nuisance share). It excludes 0 exactly when McNemar's exact test does, at a level a
    hundredth of the error stricter, which is what the bound on the changed share takes.

    Args:
        worse: Samples that had the property before and do not now.
        better: Samples that have it now and had it not before.
        n: Number of pairs.
        confidence: Two-sided confidence in (0, 1).

    Returns:
        The two ends of the change, each in [-1, 1]; `(0, 0)` where n is 0.

    Raises:
        InputError: The counts do not fit together.

    References:
        Q. McNemar, "Note on the sampling error of the difference between correlated proportions",
        Psychometrika 12, 1947.
        R. L. Berger, D. D. Boos, "P values maximized over a confidence set for the nuisance
        parameter", JASA 89, 1994.
    """
    changed = worse + better
    if min(worse, better) < 0 or changed > n:
        raise InputError(f"worse and better must fit into n, got {worse} and {better} with n = {n}")
    if n == 0:
        return 0.0, 0.0
    tail = (1 - confidence) / 2
    rest = tail * _NUISANCE
    gains = clopper_pearson(better, changed, 1 - 2 * (tail - rest))
    share = clopper_pearson(changed, n, 1 - 2 * rest)
    # A change is (2 gains - 1) x share, which has its ends at ends of the two.
    low, high = (2 * end - 1 for end in gains)
    return low * share[low < 0], high * share[high > 0]


def paired_interval(
    before: Values, after: Values, statistic: str, confidence: float, *, seed: int
) -> Interval | None:
    """Return the interval of the change of a statistic of the same samples.

    For a mean it is the BCa bootstrap interval of the mean difference, for a quantile the
    percentile interval over resampled pairs.

    Args:
        before: `(N,)` float64, finite.
        after: `(N,)` float64, finite, in the same order.
        statistic: `mean`, `median`, or a percentile such as `p95`.
        confidence: Two-sided confidence in (0, 1).
        seed: Seed of the resampling, not negative.

    Returns:
        The two ends, or None for fewer than 20 pairs, equal differences, or an extreme.

    Raises:
        InputError: The values are not as described, or the statistic is not known.
    """
    asked, before, after = parse_statistic(statistic), _checked(before), _checked(after)
    differences = after - before
    if asked.kind == "mean":
        return mean_interval(differences, confidence, seed=seed)
    too_few = differences.size < FEWEST_FOR_MEAN or differences.min() == differences.max()
    if asked.q is None or too_few:
        return None
    changes = _resampled_changes(before, after, asked.q, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = (float(end) for end in np.quantile(changes, (tail, 1 - tail)))
    point = float(np.quantile(after, asked.q) - np.quantile(before, asked.q))
    return min(low, point), max(high, point)


def samples_for_quantile(q: float, confidence: float) -> int:
    """Return the smallest n at which `quantile_interval` has two ends.

    Args:
        q: Level of the quantile in (0, 1).
        confidence: Two-sided confidence in (0, 1).
    """
    tail, rarer = (1 - confidence) / 2, min(q, 1 - q)
    n = max(1, math.floor(math.log(tail) / math.log1p(-rarer)) - 1)
    while not (_ranks_in_tail(n, q, tail) and _ranks_in_tail(n, 1 - q, tail)):
        n += 1
    return n


def samples_to_decide_rate(rate: float, threshold: float, confidence: float) -> int | None:
    """Return the smallest n at which the Clopper-Pearson interval would exclude the threshold.

    The rate is taken to stay as it is, so the number of successes `rate * n` need not be whole.
    A quantile's interval excludes a threshold exactly when the Clopper-Pearson interval of the
    share of values below the threshold excludes the quantile's level: call it with those two.

    Args:
        rate: Observed rate in [0, 1].
        threshold: Rate to tell it from, in [0, 1].
        confidence: Two-sided confidence in (0, 1).

    Returns:
        The number of samples, or None where the two are equal or closer than a billion samples
        can tell.
    """
    tail = (1 - confidence) / 2

    def excludes(n: int) -> bool:
        if threshold < rate:
            return _proportion_low(rate * n, n, tail) > threshold
        return _proportion_high(rate * n, n, tail) < threshold

    if rate == threshold or not excludes(MOST_SAMPLES):
        return None
    return 1 + bisect_left(range(1, MOST_SAMPLES + 1), True, key=excludes)


def samples_to_decide_mean(values: Values, threshold: float, confidence: float) -> int | None:
    """Return about the smallest n at which the interval of the mean would exclude the threshold.

    Mean and spread are taken to stay as they are, and the interval to be as wide as the normal
    one, which the bootstrap's approaches as n grows.

    Args:
        values: `(N,)` float64, finite, N at least 1.
        threshold: Value to tell the mean from.
        confidence: Two-sided confidence in (0, 1).

    Returns:
        The number of samples, at least 20, or None where the mean equals the threshold, where the
        values are constant, or where a billion samples would not do.

    Raises:
        InputError: The values are not as described.
    """
    values = _checked(values)
    gap = abs(_mean(values) - threshold)
    if gap == 0 or values.min() == values.max():
        return None
    width = -float(special.ndtri((1 - confidence) / 2)) * float(values.std())
    if width > gap * math.sqrt(MOST_SAMPLES):
        return None
    return max(FEWEST_FOR_MEAN, math.floor((width / gap) ** 2) + 1)


def _checked(values: Values) -> Values:
    """Return the values as they are if they are one or more finite numbers in a vector."""
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(
            f"values must be a vector of one or more finite numbers, got shape {values.shape}"
            f" with {np.count_nonzero(~np.isfinite(values))} that are not finite"
        )
    return values.astype(np.float64, copy=False)


def _mean(values: Values) -> float:
    """Return the mean, exactly rounded: ten times 0.1 has the mean 0.1, in whatever order."""
    return math.fsum(values.tolist()) / values.size


def _proportion_low(successes: float, n: int, tail: float) -> float:
    """Return the rate at which `successes` or more have the probability `tail`."""
    return float(special.betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0


def _proportion_high(successes: float, n: int, tail: float) -> float:
    """Return the rate at which `successes` or fewer have the probability `tail`."""
    return float(special.betainccinv(successes + 1, n - successes, tail)) if successes < n else 1.0


def _ranks_in_tail(n: int, q: float, tail: float) -> int:
    """Return how many of the lowest order statistics are below the quantile but for `tail`."""
    return bisect_right(range(n + 1), tail, key=lambda k: float(special.bdtr(k, n, q)))


def _resampled_means(values: Values, resamples: int, rng: np.random.Generator) -> Values:
    """Return `(resamples,)` means of bootstrap resamples, the same for every block size."""
    means = np.empty(resamples)
    rows = max(1, _DRAWS_AT_ONCE // values.size)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(values.size, size=(stop - start, values.size))
        means[start:stop] = values[drawn].mean(axis=1)
    return means


def _resampled_changes(
    before: Values, after: Values, q: float, rng: np.random.Generator, resamples: int = 2000
) -> Values:
    """Return `(resamples,)` changes of a quantile over resampled pairs."""
    changes = np.empty(resamples)
    rows = max(1, _DRAWS_AT_ONCE // before.size)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(before.size, size=(stop - start, before.size))
        changes[start:stop] = np.quantile(after[drawn], q, axis=1) - np.quantile(
            before[drawn], q, axis=1
        )
    return changes


def _bca_levels(means: Values, deviations: Values, confidence: float) -> Values:
    """Return the `(2,)` levels of the bootstrap distribution at which the BCa interval ends."""
    centre = _mean(deviations)
    below = np.count_nonzero(means < centre - _TIE)
    ties = np.count_nonzero(means <= centre + _TIE) - below
    # A handful of resamples may all lie on one side; the share then stays off 0 and 1.
    share = min(max(below + ties / 2, 0.5), means.size - 0.5) / means.size
    bias = special.ndtri(share)
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    tail = (1 - confidence) / 2
    shifted = bias + np.array([special.ndtri(tail), -special.ndtri(tail)])
    stretch = 1 - acceleration * shifted
    # Past the pole of the correction the end lies beyond every resample.
    ends = np.copysign(np.inf, shifted)
    np.divide(shifted, stretch, out=ends, where=stretch > 0)
    levels: Values = special.ndtr(bias + ends)
    return levels
