"""Tables of checks that are compared with each other, one row each, best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING

from pytest_triguard.reporting import numbers
from pytest_triguard.reporting.terminal import elide
from pytest_triguard.reporting.text import plain

if TYPE_CHECKING:
    import pytest

    from pytest_triguard.ranking import Rank, Ranking

TITLE = "triguard comparison"

_INDENT = "  "
_GAP = "  "
_PLACES = {"best": "best", "tie": "tie", "worse": "worse", "none": "-"}


def sentence(ranking: Ranking) -> str:
    """Return what the comparison has shown."""
    level = f"{100 * ranking.confidence:g} % confidence for all differences together"
    if ranking.best is not None:
        return f"best: {plain(ranking.best)} ({level})"
    if ranking.tied:
        *most, last = map(plain, ranking.tied)
        return f"tie: {', '.join(most)} and {last} cannot be told apart ({level})"
    return "no best, for not all can be compared"


def heading(ranking: Ranking) -> str:
    """Return the test whose checks are compared, and by what."""
    fixed = f"[{ranking.fixed}]" if ranking.fixed else ""
    return plain(f"{ranking.test}{fixed} by {' and '.join(ranking.by)}")


def subject(ranking: Ranking) -> str:
    """Return what is compared, and which way is better."""
    better = "higher" if ranking.relation == ">=" else "lower"
    return plain(f"{ranking.check}: {ranking.metric}, {better} is better")


def table(ranking: Ranking, width: int) -> Iterator[tuple[str, Rank | None]]:
    """Yield the lines of a table, each with the row that it shows, or None.

    Args:
        ranking: The comparison.
        width: Columns of the terminal. Where it is short, the interval of the value is left out,
            which the report of thresholds has too, and then labels are shortened.
    """
    level = f"{100 * ranking.confidence:g}%"
    titles = ["-".join(ranking.by), "value", f"{level} interval", "difference", f"{level} jointly"]
    rows = [_cells(row) for row in ranking.rows]
    lines = [[plain(titles[0]), *titles[1:], "place"], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = list(range(len(widths)))
    if _total(widths, shown) > width:
        shown.remove(2)
    widths[0] = max(1, widths[0] - max(0, _total(widths, shown) - width))
    for line, row in zip(lines, (None, *ranking.rows), strict=True):
        cells = [
            elide(line[at], widths[at]).ljust(widths[at])
            if at in (0, len(line) - 1)
            else line[at].rjust(widths[at])
            for at in shown
        ]
        yield (_INDENT + _GAP.join(cells)).rstrip(), row
        if row is not None and row.reason:
            yield f"{3 * _INDENT}{row.reason}", None


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return len(_INDENT) + sum(widths[at] for at in shown) + len(_GAP) * (len(shown) - 1)


def _cells(row: Rank) -> list[str]:
    return [
        plain(row.label),
        "-" if row.value is None else numbers.number(row.value),
        _ends(row.interval, signed=False),
        "" if row.difference is None else numbers.change(row.difference),
        "" if row.difference is None else _ends(row.difference_interval, signed=True),
        _PLACES[row.place],
    ]


def _ends(interval: tuple[float, float] | None, *, signed: bool) -> str:
    if interval is None:
        return "-"
    low, high = (numbers.change(end) if signed else numbers.number(end) for end in interval)
    return f"[{low}, {high}]"


def write(reporter: pytest.TerminalReporter, rankings: Sequence[Ranking], verbosity: int) -> None:
    """Write all tables, unless the run is to be quiet.

    Args:
        reporter: pytest's own; it decides on colours.
        rankings: The comparisons, those of one test side by side.
        verbosity: 0 by default, one less per `-q`.
    """
    if verbosity < 0 or not rankings:
        return
    reporter.write_sep("=", TITLE)
    width = int(reporter._tw.fullwidth)
    for test, group in groupby(rankings, heading):
        reporter.write_line(elide(test, width))
        for ranking in group:
            for line in _wrapped(subject(ranking), width, 1):
                reporter.write_line(line)
            for line, row in table(ranking, width - len(_INDENT)):
                reporter.write_line(_INDENT + line, green=row is not None and row.place == "best")
            for line in _wrapped(sentence(ranking), width, 2):
                reporter.write_line(line)


def _wrapped(text: str, width: int, depth: int) -> list[str]:
    first, rest = depth * _INDENT, (depth + 1) * _INDENT
    return wrap(text, width, initial_indent=first, subsequent_indent=rest)
