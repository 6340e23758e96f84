"""Properties of the whole suite in the JUnit file that pytest writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_triguard.record import Record
from pytest_triguard.reporting import ranked
from pytest_triguard.reporting.run import Run
from pytest_triguard.reporting.text import plain

if TYPE_CHECKING:
    import pytest

    from pytest_triguard.ranking import Ranking


def add_suite_properties(
    config: pytest.Config, run: Run, records: Sequence[Record], rankings: Sequence[Ranking]
) -> None:
    """State facts of the run and comparisons of checks, if a JUnit file is written.

    This has to happen in the controller, before pytest writes the file: what a worker records
    for the suite is lost.
    """
    if not config.getoption("xmlpath", None):
        return
    from _pytest.junitxml import xml_key

    writer = config.stash.get(xml_key, None)
    if writer is None:
        return
    facts = {
        "device": run.device(records),
        "seed": str(run.settings.seed),
        "version": run.versions.get("pytest-triguard"),
        "torch": run.versions.get("torch"),
        "commit": run.commit,
    }
    for name, value in facts.items():
        if value is not None:
            writer.add_global_property(f"triguard.{name}", value)
    for ranking in rankings:
        for name, value in _compared(ranking):
            writer.add_global_property(f"triguard.compared.{name}", value)


def _compared(ranking: Ranking) -> Iterator[tuple[str, str]]:
    """Yield what a comparison found, for each row and in one sentence."""
    about = f"{plain(ranked.heading(ranking))}.{plain(ranking.check)}"
    yield about, ranked.sentence(ranking)
    for row in ranking.rows:
        low, high = row.difference_interval or (None, None)
        facts = {
            "value": row.value,
            "place": row.place.value,
            "difference": row.difference,
            "difference_low": low,
            "difference_high": high,
        }
        for name, fact in facts.items():
            if fact is not None:
                yield f"{about}.{plain(row.label)}.{name}", str(fact)
