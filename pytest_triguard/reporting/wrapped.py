"""A table of words that fits a width: cells are wrapped, nothing is left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

_GAP = "  "


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield the lines of a table with a heading; columns without any content are left out.

    Args:
        titles: Heading of each column.
        rows: Cells of each row, in the order of the headings.
        width: Columns of the terminal; a word is broken only where nothing else fits.
    """
    kept = [place for place in range(len(titles)) if any(row[place] for row in rows)]
    cells = [[row[place] for place in kept] for row in (titles, *rows)]
    widths = _widths(cells, width)
    for row in cells:
        wrapped = [
            textwrap.wrap(text, most, break_on_hyphens=False)
            for text, most in zip(row, widths, strict=True)
        ]
        for line in zip_longest(*wrapped, fillvalue=""):
            padded = (text.ljust(most) for text, most in zip(line, widths, strict=True))
            yield _GAP.join(padded).rstrip()


def _widths(cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the width of each column: the widest give way first, to their longest words."""
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [
        max(len(word) for text in column for word in [*text.split(), ""]) for column in columns
    ]
    room = width - len(_GAP) * (len(columns) - 1)
    while sum(widths) > room:
        shrinkable = [place for place, each in enumerate(widths) if each > least[place]]
        if not shrinkable:
            if max(widths) == 1:
                break
            least = [1] * len(least)
            continue
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    return widths
