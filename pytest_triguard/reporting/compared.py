"""The comparison of a check with its baseline, in words."""

from __future__ import annotations

from typing import Any

from pytest_triguard.record import Record, Verdict
from pytest_triguard.reporting import numbers


def stands(record: Record) -> bool:
    """Return whether a check holds against its baseline, or was compared with none."""
    return record.baseline is None or record.baseline["verdict"] == Verdict.PASSED


def verdict_sentence(record: Record, found: str) -> str:
    """Return the verdict on a check that fails by its baseline, not by its threshold.

    Args:
        record: The record.
        found: What was measured, in words.
    """
    baseline = record.baseline or {}
    match baseline["verdict"]:
        case "missing":
            return f"no baseline for {found}"
        case "incomparable":
            return f"no comparable baseline for {found}"
        case "inconclusive":
            return f"inconclusive: {found}, {numbers.number(baseline['before'])} in the baseline"
    return f"{found}, worse than {numbers.number(baseline['before'])} in the baseline"


def sentence(record: Record) -> str:
    """Return how a check compares with its baseline, with all counts; empty if it does not."""
    baseline = record.baseline
    if baseline is None:
        return ""
    parts = [_change_sentence(baseline)]
    if baseline.get("interval") is not None:
        low, high = (numbers.change(end) for end in baseline["interval"])
        level = 100 * baseline["confidence"]
        parts.append(f"{level:g} % interval of the change [{low}, {high}]")
    if baseline.get("worse_ids"):
        parts.append(f"worse: sample {', '.join(str(each) for each in baseline['worse_ids'])}")
    return "; ".join([*parts, *baseline.get("differs", ())])


def remark(record: Record) -> str:
    """Return the same in short, for the line below a row of the table."""
    baseline = record.baseline
    if baseline is None:
        return ""
    return "; ".join([_change_sentence(baseline), *baseline.get("differs", ())])


def _change_sentence(baseline: dict[str, Any]) -> str:
    if baseline["delta"] is None:
        return str(baseline["reason"])
    before, delta = baseline["before"], baseline["delta"]
    left_out = f"; {baseline['left_out']} that counted then do not now" * bool(baseline["left_out"])
    return (
        f"{baseline['reason']}: {numbers.number(before)} then, {numbers.number(before + delta)} "
        f"now ({numbers.change(delta)}, {baseline['allowed']:.3g} allowed); of {baseline['pairs']} "
        f"paired samples {baseline['worse']} worse, {baseline['better']} better{left_out}"
    )
