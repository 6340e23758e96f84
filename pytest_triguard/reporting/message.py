"""The text of a failed check: the verdict first, then what it takes to act on it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from pytest_triguard.record import Record, Verdict
from pytest_triguard.reporting import compared, numbers
from pytest_triguard.reporting.text import plain

WIDTH = 96
"""Columns of a line; pytest puts `E   ` before it."""

LINES = 19
"""Most lines; where room is short, fewer of the worst samples are named."""

FIRST = 63
"""Columns of the first line; pytest puts the name of the exception before it."""

_LABEL = 12
_ROOM = WIDTH - _LABEL
_LONGEST_ID = 32


def failure_message(record: Record) -> str:
    """Return the message of a check that did not pass: under 20 lines, plain text.

    Everything is wrapped but paths and the command, which are there to be copied.

    Args:
        record: What the check did and found.
    """
    lines = textwrap.wrap(
        plain(verdict_line(record)), FIRST, subsequent_indent="  ", break_on_hyphens=False
    )
    lines += _entry("check", record.name if record.name != record.assertion else "", most=1)
    lines += _entry("judged", _judged(record), most=3)
    lines += _entry("baseline", compared.sentence(record), most=3)
    for name, sentence in record.warnings.items():
        lines += _entry("warning", f"{name}: {sentence}")
    lines += _entry("counts", ", ".join(f"{count} {name}" for name, count in record.counts.items()))
    lines += _entry("property", record.subject)
    lines += _entry("method", record.method, most=3)
    tail = [*_labelled("saved", [_saved(path) for path in record.artifacts])]
    tail += _labelled("reproduce", [record.reproduce])
    tail += _labelled("update", [each for each in [(record.baseline or {}).get("update")] if each])
    worst = record.worst[: max(1, LINES - len(lines) - len(tail))]
    lines += _labelled("worst", [_sample(sample) for sample in worst])
    return "\n".join([*lines, *tail])


def also(record: Record) -> str:
    """Return what the message of another check says of one that failed beside it."""
    return "\n".join(_entry("also", verdict_line(record)))


def _saved(path: str) -> str:
    """Return what there is to say of a saved file."""
    kinds = {".certificates.json": "certificates", ".png": "picture of the worst sample"}
    known = (kind for ending, kind in kinds.items() if path.endswith(ending))
    return f"{path} ({next(known, 'read back and confirmed')})"


def verdict_line(record: Record) -> str:
    """Return the verdict in one sentence: metric, value, number of samples, threshold."""
    threshold = f"{record.relation} {_as_given(record.threshold)}"
    if record.value is None:
        return f"inconclusive: no {record.metric} to hold against {threshold}"
    found = _found(record)
    if record.verdict is not record.gate:  # something but the threshold has decided
        if record.doubted:
            return f"{found} is in doubt: {', '.join(record.warnings)}"
        return compared.verdict_sentence(record, found)
    if record.verdict is Verdict.INCONCLUSIVE:
        return f"inconclusive: {found} against {threshold}"
    return f"{found} {'is' if record.verdict is Verdict.PASSED else 'is not'} {threshold}"


def _found(record: Record) -> str:
    """Return metric, value and number of samples."""
    samples = numbers.samples(record)
    counted = samples if "/" in samples else f"n = {samples}"
    return f"{record.metric} {numbers.value(record)} ({counted})"


def _as_given(threshold: float) -> str:
    short = f"{threshold:.6g}"
    return short if float(short) == threshold else repr(threshold)


def _judged(record: Record) -> str:
    """Return what was judged, why so, the interval, and how many samples would decide."""
    about = "on these samples" if record.claim == "sample" else "on the population behind them"
    parts = [f"{about}: {record.reason}"]
    if record.interval is not None and record.confidence is not None:
        parts.append(f"{100 * record.confidence:g} % interval {numbers.interval(record)}")
    if record.samples_needed is not None:
        parts.append(f"about {record.samples_needed} samples would decide")
    return "; ".join(parts)


def _sample(sample: dict[str, Any]) -> str:
    """Return a sample and what is known about it; a long id is shortened in the middle."""
    name = plain(str(sample["id"]))
    if len(name) > _LONGEST_ID:
        half = (_LONGEST_ID - 3) // 2
        name = f"{name[:half]}...{name[-half:]}"
    known = ", ".join(
        f"{key} {numbers.number(value) if isinstance(value, float) else value}"
        + (f" ({sample[named]})" if (named := f"{key} name") in sample else "")
        for key, value in sample.items()
        if key != "id" and not key.endswith(" name")
    )
    return textwrap.shorten(plain(f"sample {name}: {known}"), _ROOM, placeholder=" ...")


def _entry(label: str, text: str, *, most: int = 2) -> Iterator[str]:
    """Yield a labelled entry of at most so many lines, nothing where there is nothing to say."""
    if text:
        wrapped = textwrap.wrap(plain(text), _ROOM, max_lines=most, placeholder=" ...")
        yield from _labelled(label, wrapped)


def _labelled(label: str, lines: list[str]) -> Iterator[str]:
    for place, line in enumerate(lines):
        yield f"{'' if place else '  ' + label:<{_LABEL}}{plain(line)}"
