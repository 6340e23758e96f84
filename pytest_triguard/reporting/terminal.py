"""The table of all checks at the end of a run: one row each, in the order of execution.

It fits 80 columns and uses what there is beyond. Names are shortened in the middle where room is
short, numbers never. `-q` shows failures only, `-qq` nothing, `-v` every row with its remarks,
`-vv` the worst samples too.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from pytest_triguard.record import Record, Verdict
from pytest_triguard.reporting import compared, numbers
from pytest_triguard.reporting.text import plain

if TYPE_CHECKING:
    import pytest

TITLE = "triguard threshold report"

_ROOM = 60
"""Most rows shown without `-v`; beyond it passed checks are only counted."""

_INDENT = "  "
_LEFT = {"check", "metric", "threshold", "verdict"}
_COLUMNS = ("check", "metric", "value", "interval", "threshold", "margin", "samples", "verdict")
_NARROW = tuple(name for name in _COLUMNS if name != "samples")
_STACKED = tuple(name for name in _NARROW if name != "check")
_SHORT = {"threshold": "gate"}
"""Headings that would be wider than what stands below them."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a table.

    Attributes:
        titles: Heading by column.
        widths: Width by column, in order.
        gap: What stands between two columns.
        stacked: Whether the name of a check stands on a line of its own.
    """

    titles: dict[str, str]
    widths: dict[str, int]
    gap: str
    stacked: bool

    @property
    def width(self) -> int:
        """Width of the widest row."""
        return sum(self.widths.values()) + len(self.gap) * (len(self.widths) - 1)

    def lines(self, cells: dict[str, str]) -> list[str]:
        """Return the lines of one check."""
        above = [elide(cells["check"], self.width)] if self.stacked else []
        shown = cells | {"metric": 2 * _INDENT + cells["metric"]} if self.stacked else cells
        row = self.gap.join(
            elide(shown[name], width).ljust(width) if name in _LEFT else shown[name].rjust(width)
            for name, width in self.widths.items()
        )
        return [*above, row.rstrip()]


def elide(text: str, width: int) -> str:
    """Return a text no longer than `width`, shortened in the middle."""
    if len(text) <= width:
        return text
    kept = max(width - 3, 1)
    tail = kept // 2
    return f"{text[: kept - tail]}...{text[len(text) - tail :]}"


def layout(titles: dict[str, str], rows: Sequence[dict[str, str]], width: int) -> Layout:
    """Return the fullest layout that fits a width and shortens no number.

    With less room the count of samples goes, then the gaps and a heading shrink, and at last the
    names of checks stand on lines of their own, and those of metrics are shortened; before that the
    names of checks are shortened to a readable part.
    """
    for columns, gap, short, readable in (
        (_COLUMNS, "  ", {}, 32),
        (_NARROW, "  ", {}, 28),
        (_NARROW, " ", {}, 24),
        (_NARROW, " ", _SHORT, 24),
    ):
        choice = _natural(columns, titles | short, rows, gap)
        name = choice.widths["check"]
        room = name - max(choice.width - width, 0)
        if room >= min(name, readable):
            choice.widths["check"] = room
            return choice
    loose, tight = (_natural(_STACKED, titles, rows, gap) for gap in ("  ", " "))
    if loose.width <= width:
        return loose
    tight.widths["metric"] -= max(tight.width - width, 0)
    return tight


def _natural(
    columns: tuple[str, ...], titles: dict[str, str], rows: Sequence[dict[str, str]], gap: str
) -> Layout:
    """Return a layout that shortens nothing."""
    widths = {name: max(len(row[name]) for row in (titles, *rows)) for name in columns}
    stacked = "check" not in widths
    if stacked:
        widths["metric"] += len(2 * _INDENT)
    return Layout(titles, widths, gap, stacked)


def cells(record: Record) -> dict[str, str]:
    """Return the row of a record, by column."""
    return {
        "check": _INDENT + _label(record),
        "metric": plain(record.metric),
        "value": numbers.value(record),
        "interval": numbers.interval(record),
        "threshold": numbers.threshold(record),
        "margin": numbers.margin(record),
        "samples": numbers.samples(record),
        "verdict": record.verdict.value,
    }


def heading(records: Sequence[Record]) -> dict[str, str]:
    """Return the heading of the table, by column."""
    levels = {record.confidence for record in records if record.interval is not None}
    level = levels.pop() if len(levels) == 1 else None
    interval = "interval" if level is None else f"{100 * level:g}% interval"
    return {name: name for name in _COLUMNS} | {"interval": interval}


def _label(record: Record) -> str:
    """Return the test of a record, with the name of the check where it says more."""
    test = record.nodeid.partition("::")[2] or record.nodeid
    suffix = record.name.removeprefix(record.assertion)
    if suffix == "":
        return plain(test)
    if suffix[1:].isdecimal() and suffix.startswith("-"):
        return plain(f"{test} #{suffix[1:]}")
    return plain(f"{test}: {record.name}")


def summary(records: Sequence[Record]) -> str:
    """Return the closing line, such as `7 checks: 6 passed, 1 failed`."""
    counts = Counter(record.verdict for record in records)
    parts = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]]
    noun = "check" if len(records) == 1 else "checks"
    return f"{len(records)} {noun}: {', '.join(parts)}"


def remarks(record: Record, verbosity: int) -> Iterator[str]:
    """Yield what is worth saying below a row."""
    if record.gate is Verdict.INCONCLUSIVE and record.reason:
        yield plain(record.reason)
    for name, sentence in record.warnings.items():
        yield f"warning: {plain(name)}: {plain(sentence)}"
    if record.baseline is not None and (verbosity >= 1 or not compared.stands(record)):
        yield f"baseline: {plain(compared.remark(record))}"
    if verbosity >= 1:
        if record.undefined:
            noun = "sample" if record.undefined == 1 else "samples"
            yield f"undefined for {record.undefined} {noun}"
        if record.evaluations > 1:
            yield f"worst of {record.evaluations} evaluations"
    if verbosity >= 2:
        if record.worst:
            yield _worst(record.worst)
        for path in record.artifacts:
            yield f"saved: {plain(path)}"


def _worst(samples: Sequence[dict[str, object]]) -> str:
    """Return the ids of the worst samples, each with the first number known about it."""
    measured = [
        next(((key, each) for key, each in sample.items() if isinstance(each, float)), None)
        for sample in samples
    ]
    named = ", ".join(
        f"{sample.get('id')}" if pair is None else f"{sample.get('id')} ({numbers.number(pair[1])})"
        for sample, pair in zip(samples, measured, strict=True)
    )
    keys = {pair[0] for pair in measured if pair is not None}
    by = f" by {keys.pop()}" if len(keys) == 1 else ""
    return plain(f"worst samples{by}: {named}")


def write(reporter: pytest.TerminalReporter, records: Sequence[Record], verbosity: int) -> None:
    """Write the table.

    Args:
        reporter: pytest's own; it decides on colours.
        records: All records of the run.
        verbosity: 0 by default, one more per `-v`, one less per `-q`.
    """
    shown = [record for record in records if verbosity >= 0 or record.failed]
    if verbosity < -1 or not shown:
        return
    if verbosity == 0 and len(shown) > _ROOM:
        shown = [record for record in shown if record.verdict is not Verdict.PASSED]
    reporter.write_sep("=", TITLE)
    if shown:
        _write_table(reporter, shown, verbosity)
    hidden = len(records) - len(shown)
    closing = summary(records)
    if hidden and verbosity >= 0:
        closing += f" ({hidden} passed not shown, -v shows them)"
    reporter.write_line(closing, **_markup(records), bold=True)


def _write_table(
    reporter: pytest.TerminalReporter, records: Sequence[Record], verbosity: int
) -> None:
    rows = [cells(record) for record in records]
    width = int(reporter._tw.fullwidth)
    table = layout(heading(records), rows, width)
    for line in table.lines(table.titles):
        reporter.write_line(line, bold=True)
    for file, group in groupby(zip(records, rows, strict=True), lambda pair: _file(pair[0])):
        reporter.write_line(elide(file, width))
        for record, row in group:
            *above, last = table.lines(row)
            for line in above:
                reporter.write_line(line)
            reporter.write(last.removesuffix(row["verdict"]))
            reporter.write_line(row["verdict"], **_markup([record]))
            for remark in remarks(record, verbosity):
                _write_remark(reporter, remark, width)


def _write_remark(reporter: pytest.TerminalReporter, remark: str, width: int) -> None:
    indent = 3 * _INDENT
    for line in textwrap.wrap(
        remark, max(width, 40), initial_indent=indent, subsequent_indent=indent
    ):
        reporter.write_line(line)


def _file(record: Record) -> str:
    return plain(record.nodeid.partition("::")[0])


def _markup(records: Sequence[Record]) -> dict[str, bool]:
    if any(record.failed for record in records):
        return {"red": True}
    passed = all(record.verdict is Verdict.PASSED for record in records)
    return {"green": True} if passed else {"yellow": True}
