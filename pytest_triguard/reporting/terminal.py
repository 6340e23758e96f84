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
from pytest_triguard.reporting import numbers

if TYPE_CHECKING:
    import pytest

TITLE = "triguard threshold report"

_ROOM = 60
"""Most rows shown without `-v`; beyond it passed checks are only counted."""

_READABLE = 20
"""Columns that a name needs on its row; with less room it stands on a line above."""

_INDENT = "  "
_LEFT = {"check", "metric", "threshold", "verdict"}
_COLUMNS = ("check", "metric", "value", "interval", "threshold", "margin", "samples", "verdict")
_NARROW = tuple(name for name in _COLUMNS if name != "samples")
_STACKED = tuple(name for name in _NARROW if name != "check")


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a table.

    Attributes:
        widths: Width by column, in order.
        gap: What stands between two columns.
        stacked: Whether the name of a check stands on a line of its own.
    """

    widths: dict[str, int]
    gap: str = "  "
    stacked: bool = False

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


def layout(rows: Sequence[dict[str, str]], width: int) -> Layout:
    """Return the columns that fit a width: the fullest layout that shortens no number.

    With room the samples are shown too; without, the gaps shrink, then the names of checks down
    to a readable length, and at last they move to lines of their own.
    """
    natural = {name: max(len(row[name]) for row in rows) for name in _COLUMNS}
    wide, narrow = ({name: natural[name] for name in names} for names in (_COLUMNS, _NARROW))
    for choice in (Layout(wide), Layout(narrow), Layout(narrow, " ")):
        if choice.width <= width:
            return choice
    room = natural["check"] - (choice.width - width)
    if room >= min(_READABLE, natural["check"]):
        return Layout(narrow | {"check": room}, " ")
    stacked = {name: natural[name] for name in _STACKED}
    stacked["metric"] += len(2 * _INDENT)
    loose = Layout(stacked, stacked=True)
    return loose if loose.width <= width else Layout(stacked, " ", stacked=True)


def cells(record: Record) -> dict[str, str]:
    """Return the row of a record, by column."""
    return {
        "check": _INDENT + _label(record),
        "metric": _clean(record.metric),
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
        return _clean(test)
    if suffix[1:].isdecimal() and suffix.startswith("-"):
        return _clean(f"{test} #{suffix[1:]}")
    return _clean(f"{test}: {record.name}")


def _clean(text: str) -> str:
    """Return a text on one line that cannot steer the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def summary(records: Sequence[Record]) -> str:
    """Return the closing line, such as `7 checks: 6 passed, 1 failed`."""
    counts = Counter(record.verdict for record in records)
    parts = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]]
    noun = "check" if len(records) == 1 else "checks"
    return f"{len(records)} {noun}: {', '.join(parts)}"


def remarks(record: Record, verbosity: int) -> Iterator[str]:
    """Yield what is worth saying below a row."""
    if verbosity >= 1:
        if record.undefined:
            noun = "sample" if record.undefined == 1 else "samples"
            yield f"undefined for {record.undefined} {noun}"
        if record.evaluations > 1:
            yield f"worst of {record.evaluations} evaluations"
    if verbosity >= 2:
        if record.worst:
            yield f"worst samples: {', '.join(_worst(each) for each in record.worst)}"
        for path in record.artifacts:
            yield f"saved: {_clean(path)}"


def _worst(sample: dict[str, object]) -> str:
    identity, value = sample.get("id"), sample.get("value")
    return f"{identity} ({numbers.number(value)})" if isinstance(value, float) else f"{identity}"


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
    titles = heading(records)
    width = int(reporter._tw.fullwidth)
    table = layout([titles, *rows], width)
    for line in table.lines(titles):
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
    return _clean(record.nodeid.partition("::")[0])


def _markup(records: Sequence[Record]) -> dict[str, bool]:
    if any(record.failed for record in records):
        return {"red": True}
    passed = all(record.verdict is Verdict.PASSED for record in records)
    return {"green": True} if passed else {"yellow": True}
