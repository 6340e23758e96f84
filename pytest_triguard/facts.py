"""What the lists of methods say of a method, beside what its docstring says."""

from __future__ import annotations

from dataclasses import dataclass

PASSES = "{passes}"
"""Stands in a cost for the number that `passes_per_sample` has with default hyperparameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about one method, stated on its class and nowhere else.

    Attributes:
        cost: Passes per sample in words, `PASSES` standing for the number; a pass is forward and
            backward together unless the words say otherwise.
        sign: Sign of its maps or, of a metric, which way is better.
        axioms: What its results are sure to fulfil, each in a few words.
        checked: Name of the independent implementation that a test holds it against, or empty.
        summary: What the method is, where it has no class whose docstring says so.
    """

    cost: str = PASSES
    sign: str = ""
    axioms: tuple[str, ...] = ()
    checked: str = ""
    summary: str = ""
