"""How fast the output rises when the most important pixels enter a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.removal import Direction
from pytest_triguard.metrics.removal_curve import RemovalCurve


@dataclass(frozen=True, kw_only=True)
class Insertion(RemovalCurve):
    """Area under the output while pixels enter a baseline, most important first.

    High where the map names the pixels that suffice for the output first.

    References:
        Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box
        Models", arXiv:1806.07421, section 4.2.
    """

    name: ClassVar[str] = "insertion"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES} forward", sign="higher is better")
    direction: ClassVar[Direction] = "insertion"
