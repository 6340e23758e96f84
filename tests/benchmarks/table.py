"""The markdown table that the measurements end up in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tests.benchmarks.timing import Ratio


@dataclass(frozen=True)
class Row:
    """One measured ratio.

    Attributes:
        what: What was measured, on what.
        ratio: The ratio and its interval, or None where it could not be measured.
        required: The bound it is held against, such as `>= 0.95`, or empty.
        processor: The same ratio of processor time, or None.
        details: What else is worth knowing.
    """

    what: str
    ratio: Ratio | None
    required: str = ""
    processor: Ratio | None = None
    details: str = ""

    def cells(self) -> list[str]:
        first, second = (
            "" if each is None else shown(each) for each in (self.ratio, self.processor)
        )
        return [self.what, first, self.required, second, self.details]


HEADER = (
    "measurement",
    "ratio [90 % interval]",
    "required",
    "by processor time",
    "details",
)


def shown(ratio: Ratio) -> str:
    """Return a ratio with its interval, where there is one."""
    if ratio.low == ratio.high or math.isinf(ratio.high):
        return f"{ratio.mean:.3f}"
    return f"{ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def heading() -> str:
    return f"{_line(HEADER)}\n{_line(['---'] * len(HEADER))}\n"


def line(row: Row) -> str:
    return _line(row.cells()) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
