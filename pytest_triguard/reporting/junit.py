"""Properties of the whole suite in the JUnit file that pytest writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_triguard.record import Record
from pytest_triguard.reporting.run import Run

if TYPE_CHECKING:
    import pytest


def add_suite_properties(config: pytest.Config, run: Run, records: Sequence[Record]) -> None:
    """State device, seed, versions and commit once for the suite, if a JUnit file is written.

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
