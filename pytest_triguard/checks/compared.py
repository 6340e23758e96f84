"""A check and its baseline: what is kept of it, and how it compares with what was kept."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from pytest_triguard.baseline import Baselines, Entry
from pytest_triguard.checks.finding import Finding, plain_id
from pytest_triguard.comparison import (
    Allowance,
    Comparison,
    compare,
    obstacle,
    outcomes,
    rounded_values,
)
from pytest_triguard.record import Record, Verdict
from pytest_triguard.reporting.run import version_of


def is_drawn() -> bool:
    """Return whether hypothesis is drawing the inputs, so that no two runs see the same."""
    hypothesis = sys.modules.get("hypothesis")
    return hypothesis is not None and bool(hypothesis.currently_in_test_context())


def per_sample(finding: Finding) -> dict[str, Any]:
    """Return what a baseline keeps of every sample: ids where they are no count, and results."""
    ids = [plain_id(each) for each in finding.ids]
    kept: dict[str, Any] = {} if ids == list(range(len(ids))) else {"ids": ids}
    if finding.statistic is None:
        return kept | {"outcomes": outcomes(finding.values, unknown=finding.unknown > 0)}
    return kept | {"values": rounded_values(finding.values)}


def compared(
    record: Record,
    finding: Finding,
    baselines: Baselines,
    *,
    allowance: Allowance,
    confidence: float | None,
    tolerated: bool,
    update: str,
) -> Record:
    """Return the record of a check with its comparison, judged by both.

    Args:
        record: What the check found, judged by its threshold.
        finding: The same, sample by sample.
        baselines: What was found before.
        allowance: Largest change for the worse.
        confidence: Confidence of a population claim, or None for a sample claim.
        tolerated: Whether an inconclusive check passes.
        update: The command that writes the baseline.

    Raises:
        ConfigError: If the file of the baseline is broken.
    """
    entry = baselines.find(record.nodeid, record.name)
    if entry is None:
        return _refused(record, "missing", "there is none of this check", update)
    facts = {
        name: getattr(record, name)
        for name in ("assertion", "metric", "relation", "parameters", "data")
    }
    kept = per_sample(finding)
    ids = kept.get("ids", list(range(len(finding.ids))))
    if reason := obstacle(entry, facts=facts, ids=ids):
        return _refused(record, "incomparable", reason, update)
    comparison = compare(
        entry,
        kept["outcomes"] if "outcomes" in kept else kept["values"],
        ids,
        statistic=finding.statistic or "mean",
        allowance=allowance,
        confidence=confidence,
        seed=record.seed,
    )
    if comparison is None:
        return _refused(record, "incomparable", "no sample counts both then and now", update)
    return _judged(record, entry, comparison, tolerated=tolerated)


def _refused(record: Record, verdict: str, reason: str, update: str) -> Record:
    """Return the record of a check that cannot be compared, which is a failure."""
    found = {"verdict": verdict, "value": None, "delta": None, "reason": reason, "update": update}
    return replace(record, verdict=Verdict.FAILED, failed=True, baseline=found)


def _judged(record: Record, entry: Entry, comparison: Comparison, *, tolerated: bool) -> Record:
    verdict = comparison.verdict
    inconclusive = verdict is Verdict.INCONCLUSIVE and record.verdict is Verdict.PASSED
    if verdict is Verdict.FAILED or inconclusive:
        lenient = inconclusive and tolerated
        record = replace(record, verdict=verdict, failed=record.failed or not lenient)
    found = {
        "verdict": verdict.value,
        "value": entry.value,
        "delta": comparison.delta,
        "n": entry.n,
        "before": comparison.before,
        "allowed": comparison.allowed,
        "interval": comparison.interval,
        "confidence": comparison.confidence,
        "pairs": comparison.pairs,
        "worse": comparison.worse,
        "better": comparison.better,
        "worse_ids": comparison.worse_ids,
        "left_out": comparison.left_out,
        "reason": comparison.reason,
        "differs": list(_differences(record, entry)),
        "classifier": entry.classifier,
        "device": entry.device,
        "chunk": entry.chunk,
        "versions": entry.versions,
    }
    return replace(record, baseline=found)


def _differences(record: Record, entry: Entry) -> list[str]:
    """Return what else differs from then, in words: it is shown and decides nothing."""
    pairs = [("device", entry.device, record.device), ("chunk", entry.chunk, record.chunk)]
    pairs += [(name, version, version_of(name)) for name, version in entry.versions.items()]
    model = ["another model"] if entry.classifier != record.classifier else ["the same model"]
    return model + [f"{name} {then} then, {now} now" for name, then, now in pairs if then != now]
