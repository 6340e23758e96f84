"""Every method there is, with its facts: what the command line and the documentation list."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.registry import Family

FAMILIES = (
    "attacks",
    "attributions",
    "attribution_attacks",
    "metrics",
    "verification",
    "backdoors",
)
"""Packages that hold methods, in the order in which they are listed."""

_REFERENCES = re.compile(r"^References:\n(.+?)(?=\n\n\S|\Z)", re.MULTILINE | re.DOTALL)
_AUTHORS_AND_YEAR = re.compile(r".+? \d{4}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One method and what there is to say of it.

    Attributes:
        family: Package that holds it.
        name: Its name there.
        summary: What it is, in a sentence.
        passes: Passes per sample with default hyperparameters, or None where they are not counted.
        cost: The same in words.
        sign: Sign of its maps or, of a metric, which way is better; may be empty.
        axioms: What its results are sure to fulfil.
        source: Authors and year, or empty where the method is this project's own.
        reference: Where it comes from in full, with section or equation.
        checked: Name of the independent implementation that it is tested against, or None.
    """

    family: str
    name: str
    summary: str
    passes: int | None
    cost: str
    sign: str
    axioms: tuple[str, ...]
    source: str
    reference: str
    checked: str | None


def methods(family: str) -> Iterator[Listed]:
    """Yield the methods of a family, sorted by name.

    Args:
        family: One of `FAMILIES`.
    """
    if family == "verification":
        yield from _verifiers()
        return
    table: Family[object] = importlib.import_module(f"pytest_triguard.{family}")._FAMILY
    for name in table.names():
        found = table.find(name)
        facts: Facts = found.facts  # type: ignore[attr-defined]
        passes = getattr(table.get(name), "passes_per_sample", None)
        yield _listed(family, name, found, facts, passes)


def _verifiers() -> Iterator[Listed]:
    from pytest_triguard.verification.methods import BOUNDS, FACTS, names

    for name in names():
        found = BOUNDS.find(name) if name in BOUNDS.names() else None
        yield _listed("verification", name, found, FACTS[name], None)


def _listed(family: str, name: str, found: type | None, facts: Facts, passes: int | None) -> Listed:
    docstring = "" if found is None else inspect.getdoc(found) or ""
    references = _REFERENCES.search(docstring)
    reference = "" if references is None else " ".join(references[1].split())
    source = _AUTHORS_AND_YEAR.match(reference)
    return Listed(
        family=family,
        name=name,
        summary=facts.summary or " ".join(docstring.partition("\n\n")[0].split()),
        passes=passes,
        cost=facts.cost.replace(PASSES, str(passes)),
        sign=facts.sign,
        axioms=facts.axioms,
        source="" if source is None else source[0],
        reference=reference,
        checked=facts.checked or None,
    )
