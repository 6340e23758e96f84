"""Which radius to try next, in a search for the largest that can be proven."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass
class Bracket:
    """Where the radius of a sample is still looked for by one stage.

    Attributes:
        low: Radius at which the stage succeeded, or that is proven anyway.
        high: Radius at which it failed, or that is not asked about beyond.
        tested: Whether it failed at `high`, or need not be asked there.
    """

    low: float
    high: float
    tested: bool


class Ladder(Protocol):
    """The radii that may be tried."""

    def next(self, bracket: Bracket, reach: float) -> float | None:
        """Return the radius to try, or None for none.

        Args:
            bracket: Where it is looked for.
            reach: Infinite where a failure costs no more than a success, so that the largest
                radius is tried first; else the multiple of `low` that is tried at most, where the
                ladder has a choice.
        """


@dataclass(frozen=True)
class Anywhere:
    """Any radius, on a logarithmic scale.

    Args:
        tolerance: Relative width of a bracket at which nothing more is tried.
        smallest: What is not told from 0.
    """

    tolerance: float
    smallest: float

    def next(self, bracket: Bracket, reach: float) -> float | None:
        """Return the radius to try, or None for none."""
        low, high, tested = bracket.low, bracket.high, bracket.tested
        near = max(low * (1 + self.tolerance), self.smallest * (1 + self.tolerance))
        if low >= high or (tested and high <= near):
            return None
        middle = math.sqrt(max(low, self.smallest)) * math.sqrt(high)
        wanted = middle if tested else high
        if reach == math.inf:
            return wanted
        return min(wanted, reach * low if low else middle)


@dataclass(frozen=True)
class Among:
    """Some radii.

    Args:
        radii: In ascending order, all above 0.
    """

    radii: Sequence[float]

    def next(self, bracket: Bracket, reach: float) -> float | None:
        """Return the radius to try, or None for none."""
        left = [
            each
            for each in self.radii
            if bracket.low < each < bracket.high or (each == bracket.high and not bracket.tested)
        ]
        if not left or bracket.low >= bracket.high:
            return None
        return left[-1] if reach == math.inf and not bracket.tested else left[(len(left) - 1) // 2]
