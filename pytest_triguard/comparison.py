"""Today against the baseline, sample by sample: is a check worse than it was?

A sample claim compares the numbers on the samples that count in both; a population claim asks
whether the interval of the paired change lies wholly beyond what is allowed. Everything is pure.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_triguard.baseline import Entry, rounded
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.gate import SHOWN_CONFIDENCE
from pytest_triguard.record import Verdict
from pytest_triguard.statistics import (
    Interval,
    Values,
    paired_interval,
    paired_rate_interval,
    statistic_value,
)

RESOLUTION = 1e-5
"""Relative change of a statistic that counts as none: passes in float32 differ by less."""

SHOWN = 5
"""How many of the samples that got worse are named."""

_OUTCOME_VALUES = {"Y": 1.0, "N": 0.0, "U": 0.0, "-": math.nan}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What `max_regression` allows: an absolute change, or a share of the baseline's value."""

    amount: float = 0.0
    relative: bool = False

    def of(self, value: float) -> float:
        """Return the largest change for the worse from a value."""
        return self.amount * abs(value) if self.relative else self.amount

    def require_below_one(self) -> None:
        """Refuse an allowance that no change of a rate exceeds, as where 2 stands for 2 %.

        Raises:
            InputError: If it is an absolute change of 1 or more.
        """
        if not self.relative and self.amount >= 1:
            raise InputError(
                f"max_regression of a rate must be below 1, but {self.amount:g} came: a share such "
                'as 0.02, or a percentage of the baseline\'s value such as "2%"'
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a check compares with its baseline.

    Attributes:
        verdict: Passed, failed, or inconclusive where a population claim has no interval.
        before: The number then, on the samples that count in both.
        delta: The number now minus the number then, on the same samples.
        allowed: Largest change for the worse.
        interval: Interval of the change, or None where there is none.
        confidence: Two-sided confidence of the interval.
        pairs: Samples that count in both.
        worse: Samples that got worse.
        better: Samples that got better.
        worse_ids: Ids of the first that got worse, by how much.
        left_out: Samples that counted then and do not now.
        reason: Why, as a sentence without its full stop.
    """

    verdict: Verdict
    before: float
    delta: float
    allowed: float
    interval: Interval | None
    confidence: float
    pairs: int
    worse: int
    better: int
    worse_ids: list[Hashable]
    left_out: int
    reason: str


def parse_max_regression(value: Any) -> Allowance:
    """Return what `max_regression` allows.

    Args:
        value: A number of at least 0, or a percentage of the baseline's value such as `"2%"`.

    Raises:
        InputTypeError: If it is neither.
        InputError: If it is negative or not finite.
    """
    expected = 'max_regression must be a number of at least 0 or a percentage such as "2%"'
    if isinstance(value, str):
        text = value.strip()
        try:
            amount = float(text.removesuffix("%")) if text.endswith("%") else math.nan
        except ValueError:
            amount = math.nan
        if not math.isfinite(amount) or amount < 0:
            raise InputError(f"{expected}, but {value!r} came")
        return Allowance(amount=amount / 100, relative=True)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputTypeError(f"{expected}, but {value!r} came")
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{expected}, but {value!r} came")
    return Allowance(amount=float(value))


def outcomes(values: Values, *, unknown: bool) -> str:
    """Return the per-sample outcomes of a rate, one letter each.

    Args:
        values: `(N,)` float64: 1 has the property, 0 has not, NaN is unknown or does not count.
        unknown: Whether NaN stands for samples whose value is not known although it is defined.
    """
    letters, neither = {1.0: "Y", 0.0: "N"}, "U" if unknown else "-"
    return "".join(letters.get(each, neither) for each in values.tolist())


def rounded_values(values: Values) -> list[float | None]:
    """Return the per-sample values of a statistic as a baseline keeps them."""
    return [rounded(each) for each in values.tolist()]


def sample_values(kept: dict[str, Any]) -> Values:
    """Return the `(N,)` values that a record keeps per sample, NaN where one does not count.

    Args:
        kept: `Record.per_sample`: `outcomes` of a rate, or `values` of a statistic.
    """
    return _numbers(kept["outcomes"] if "outcomes" in kept else kept["values"])


def obstacle(entry: Entry, *, facts: dict[str, Any], ids: Sequence[Hashable]) -> str:
    """Return what forbids a comparison, as a sentence, or nothing.

    Args:
        entry: The baseline.
        facts: Assertion, metric, relation, parameters and data of the check.
        ids: Sample ids of the check.
    """
    for name in ("assertion", "metric", "relation"):
        then, now = getattr(entry, name), facts[name]
        if then != now:
            return f"the baseline is of another {name}: {then} then, {now} now"
    asked = json.loads(json.dumps(facts["parameters"]))  # as it comes back from a file
    if entry.parameters != asked:
        return (
            f"the baseline was made with other parameters: {_difference(entry.parameters, asked)}"
        )
    if entry.data != facts["data"] or _ids(entry) != list(ids):
        return (
            f"the baseline was made with other data: {entry.samples} samples then, {len(ids)} now, "
            "and inputs, labels or ids differ"
        )
    return ""


def compare(
    entry: Entry,
    now: str | list[float | None],
    ids: Sequence[Hashable],
    *,
    statistic: str,
    allowance: Allowance,
    confidence: float | None,
    seed: int,
) -> Comparison | None:
    """Compare a check with its baseline.

    Args:
        entry: The baseline, of the same samples.
        now: Per-sample outcomes or rounded values of today.
        ids: Sample ids.
        statistic: Statistic of the values; a rate is a mean.
        allowance: Largest change for the worse.
        confidence: Confidence of a population claim, or None for a sample claim.
        seed: Seed of the bootstrap.

    Returns:
        The comparison, or None where no sample counts in both.
    """
    rate = entry.outcomes is not None
    before = _numbers(entry.outcomes if entry.outcomes is not None else entry.values or [])
    after = _numbers(now)
    both = ~np.isnan(before) & ~np.isnan(after)
    left_out = int((~np.isnan(before)).sum() - both.sum())
    places, before, after = np.flatnonzero(both), before[both], after[both]
    if not len(places):
        return None
    sign = 1.0 if entry.relation == ">=" else -1.0
    gains = sign * (after - before)
    noise = RESOLUTION * np.maximum(np.abs(before), np.abs(after))
    worse, better = int((gains < -noise).sum()), int((gains > noise).sum())
    then, today = (statistic_value(each, statistic) for each in (before, after))
    allowed, loss = allowance.of(then), sign * (then - today)
    level = SHOWN_CONFIDENCE if confidence is None else confidence
    interval: Interval | None
    if rate:
        low, high = paired_rate_interval(worse, better, len(places), level)
        interval = (low, high) if sign > 0 else (-high, -low)
    else:
        interval = paired_interval(before, after, statistic, level, seed=seed)
    least = None if interval is None else -max(sign * end for end in interval)
    slack = 1e-12 if rate else RESOLUTION * max(abs(then), abs(today))
    verdict, reason = _judge(loss, least, allowed + slack, population=confidence is not None)
    worst = np.argsort(gains, kind="stable")[:SHOWN]
    return Comparison(
        verdict=verdict,
        before=then,
        delta=today - then,
        allowed=allowed,
        interval=interval,
        confidence=level,
        pairs=len(places),
        worse=worse,
        better=better,
        worse_ids=[ids[places[place]] for place in worst if gains[place] < -noise[place]],
        left_out=left_out,
        reason=reason,
    )


def _judge(
    loss: float, least: float | None, allowed: float, *, population: bool
) -> tuple[Verdict, str]:
    """Judge a loss on the samples, and the least loss that its interval leaves possible."""
    if population and least is not None:
        if least > allowed:
            return Verdict.FAILED, "the whole interval of the paired change is worse than allowed"
        return Verdict.PASSED, "the interval of the paired change leaves open that it is not worse"
    if loss <= allowed:
        return Verdict.PASSED, "not worse on these samples than allowed"
    if population:
        return Verdict.INCONCLUSIVE, "worse on these samples, which carry no interval of the change"
    return Verdict.FAILED, "worse on these samples than allowed"


def _ids(entry: Entry) -> list[Hashable]:
    return list(range(entry.samples)) if entry.ids is None else list(entry.ids)


def _numbers(kept: str | Sequence[float | None]) -> Values:
    if isinstance(kept, str):
        return np.array([_OUTCOME_VALUES[each] for each in kept], dtype=np.float64)
    return np.array([math.nan if each is None else each for each in kept], dtype=np.float64)


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the first parameters that differ."""
    found = []
    for name in [*now, *(each for each in then if each not in now)]:
        old, new = then.get(name, "none"), now.get(name, "none")
        if old != new:
            found.append(f"{name} {_short(old)} then, {_short(new)} now")
    return "; ".join(found[:3])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
