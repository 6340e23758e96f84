"""Checks of a parametrised test against each other: which value of the parameter is best.

Each is held against the one with the best value, on the same samples. Every interval is so wide
that all of one table hold together with the confidence that is stated (Bonferroni), so that the
best is not only called so because many were tried. As the samples say which one that is, any pair
can come to be compared, and all pairs are counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from pytest_triguard.comparison import RESOLUTION, sample_values
from pytest_triguard.gate import SHOWN_CONFIDENCE
from pytest_triguard.record import Record, Relation
from pytest_triguard.statistics import (
    FEWEST_FOR_MEAN,
    Interval,
    Values,
    paired_interval,
    paired_rate_interval,
    statistic_value,
)


class Place(StrEnum):
    """Where a check stands among those it is compared with."""

    BEST = "best"
    TIE = "tie"
    WORSE = "worse"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One check in a table of checks that are compared.

    Attributes:
        nodeid: Node id of its test.
        label: What tells its test from the others: the ids of the parameters compared by.
        value: The measured number, or None where no sample was defined.
        interval: Interval of the value alone, or None.
        verdict: Outcome of its own threshold.
        place: Best, worse than the best, part of a tie with the leader, or none where it cannot be
            compared.
        pairs: Samples that count for it and for the leader.
        difference: By how much its number differs from the leader's on those samples; None for the
            leader itself.
        difference_interval: Interval of the difference, or None where there is none.
        reason: Why it cannot be compared, has no interval, or differs from the leader by another
            amount than their values do: some samples count for one of them alone; else empty.
    """

    nodeid: str
    label: str
    value: float | None
    interval: Interval | None
    verdict: str
    place: Place
    pairs: int
    difference: float | None
    difference_interval: Interval | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The checks of one assertion over the values of a parameter, best first.

    Attributes:
        test: Node id of the test without parameters.
        fixed: Ids of the other parameters, which are the same for all; empty where there are none.
        by: Names of the parameters compared by.
        check: Name of the check in its test.
        metric: What was measured.
        relation: How values are held against thresholds, which tells whether higher is better.
        confidence: Two-sided confidence with which all intervals of differences hold together.
        best: Label of the check that is better than every other, or None.
        tied: Labels of those among which the best cannot be told, the leader first.
        rows: The checks.
    """

    test: str
    fixed: str
    by: list[str]
    check: str
    metric: str
    relation: Relation
    confidence: float
    best: str | None
    tied: list[str]
    rows: list[Rank]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values."""
        return asdict(self) | {
            "rows": [asdict(row) | {"place": str(row.place)} for row in self.rows]
        }


def rankings(records: Sequence[Record]) -> list[Ranking]:
    """Return one table for each check that several tests made to be compared.

    Args:
        records: All records of the run, in the order in which they are to be shown.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.compared is not None:
            common = [record.compared[name] for name in ("test", "by", "fixed")]
            about = json.dumps([*common, record.name, record.metric, record.relation])
            groups.setdefault(about, []).append(record)
    return [_ranking(group) for group in groups.values() if len(group) > 1]


def _ranking(records: Sequence[Record]) -> Ranking:
    common = records[0].compared or {}
    sign = 1.0 if records[0].relation == ">=" else -1.0
    leader, *others = sorted(records, key=lambda record: _badness(record, sign))
    known = [each.confidence for each in records if each.confidence is not None]
    confidence = known[0] if known else SHOWN_CONFIDENCE
    each_confidence = 1 - (1 - confidence) / math.comb(len(records), 2)
    rows = [_rank(record, leader, sign, each_confidence) for record in others]
    tied = [row.label for row in rows if row.place is Place.TIE]
    decided = leader.value is not None and all(row.place is Place.WORSE for row in rows)
    place = Place.BEST if decided else Place.TIE if tied else Place.NONE
    first = _row(leader, place=place, pairs=leader.n)
    return Ranking(
        test=common["test"],
        fixed=common["fixed"],
        by=common["by"],
        check=leader.name,
        metric=leader.metric,
        relation=leader.relation,
        confidence=confidence,
        best=first.label if decided else None,
        tied=[first.label, *tied] if tied else [],
        rows=[first, *rows],
    )


def _badness(record: Record, sign: float) -> float:
    return math.inf if record.value is None else -sign * record.value


def _rank(record: Record, leader: Record, sign: float, confidence: float) -> Rank:
    """Hold a check against the leader."""
    if record.value is None or record.per_sample is None or leader.per_sample is None:
        return _row(record, reason="it has no value for each sample")
    if record.data != leader.data:
        return _row(record, reason="it was measured on other data")
    before, after = sample_values(leader.per_sample), sample_values(record.per_sample)
    both = ~np.isnan(before) & ~np.isnan(after)
    if not both.any():
        return _row(record, reason="no sample counts for both")
    fewer = bool((np.isnan(before) != np.isnan(after)).any())
    before, after = before[both], after[both]
    noise = RESOLUTION * np.maximum(np.abs(before), np.abs(after))
    after = np.where(np.abs(after - before) <= noise, before, after)
    statistic = record.parameters.get("statistic", "mean")
    change = statistic_value(after, statistic) - statistic_value(before, statistic)
    interval = _interval(before, after, record, statistic, confidence)
    worse = interval is not None and max(sign * end for end in interval) < 0
    reasons = [] if interval is not None else [_missing(before, after, statistic)]
    reasons += [f"on the {len(before)} samples that count for both"] if fewer else []
    return _row(
        record,
        place=Place.WORSE if worse else Place.TIE,
        pairs=len(before),
        difference=change,
        interval=interval,
        reason="; ".join(reasons),
    )


def _interval(
    before: Values, after: Values, record: Record, statistic: str, confidence: float
) -> Interval | None:
    if record.per_sample is not None and "outcomes" in record.per_sample:
        lost, gained = int((after < before).sum()), int((after > before).sum())
        return paired_rate_interval(lost, gained, len(before), confidence)
    return paired_interval(before, after, statistic, confidence, seed=record.seed)


def _missing(before: Values, after: Values, statistic: str) -> str:
    """Return why a difference has no interval."""
    if np.array_equal(before, after):
        return "the same on every sample"
    if len(before) < FEWEST_FOR_MEAN:
        return f"no interval from fewer than {FEWEST_FOR_MEAN} samples"
    if statistic in ("max", "min"):
        return f"the {statistic} has no interval"
    return "no interval, for it differs alike on every sample"


def _row(
    record: Record,
    *,
    place: Place = Place.NONE,
    pairs: int = 0,
    difference: float | None = None,
    interval: Interval | None = None,
    reason: str = "",
) -> Rank:
    return Rank(
        nodeid=record.nodeid,
        label=(record.compared or {})["label"],
        value=record.value,
        interval=record.interval,
        verdict=record.verdict.value,
        place=place,
        pairs=pairs,
        difference=difference,
        difference_interval=interval,
        reason=reason,
    )
