"""How records travel: from the test, on its reports, to the process that writes the reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pytest_triguard.errors import TriGuardFailure
from pytest_triguard.reporting.text import plain

if TYPE_CHECKING:
    import pytest

    from pytest_triguard.record import Record

_ATTRIBUTE = "triguard_records"
_PREFIX = "triguard."
_EXCEPTION = f"{TriGuardFailure.__module__}.{TriGuardFailure.__qualname__}: "


def attach(report: pytest.TestReport, records: Iterable[Record]) -> None:
    """Put records on a report, as one string, which survives the way from a worker."""
    values = [record.to_dict() for record in records]
    if values:
        setattr(report, _ATTRIBUTE, json.dumps(values, allow_nan=False))


def attached(report: pytest.TestReport) -> list[Record]:
    """Return the records that a report carries."""
    text = getattr(report, _ATTRIBUTE, None)
    if text is None:
        return []
    from pytest_triguard.record import Record

    return [Record.from_dict(each) for each in json.loads(text)]


def set_properties(item: pytest.Item, records: Iterable[Record]) -> None:
    """Give a test one property per number of its records, in place of those it had."""
    others = [pair for pair in item.user_properties if not pair[0].startswith(_PREFIX)]
    item.user_properties[:] = others
    for record in records:
        name = plain(record.name)  # pytest writes the name of a property into the XML as it is
        item.user_properties.extend(
            (f"{_PREFIX}{name}.{key}", value) for key, value in properties(record).items()
        )


def properties(record: Record) -> Mapping[str, str]:
    """Return the short facts of a record, each as text; what there is none of is left out."""
    low, high = record.interval or (None, None)
    baseline = record.baseline or {}
    facts: dict[str, object] = {
        "metric": record.metric,
        "value": record.value,
        "interval_low": low,
        "interval_high": high,
        "confidence": record.confidence,
        "relation": record.relation,
        "threshold": record.threshold,
        "verdict": record.verdict.value,
        "n": record.n,
        "undefined": record.undefined,
        "seed": record.seed,
        "artifact": ", ".join(record.artifacts) or None,
        "baseline_verdict": baseline.get("verdict"),
        "baseline_value": baseline.get("value"),
        "baseline_delta": baseline.get("delta"),
    }
    return {key: plain(str(value)) for key, value in facts.items() if value is not None}


def shorten(report: pytest.TestReport) -> None:
    """Let the short summary begin with the verdict rather than with the name of the exception."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = crash.message.removeprefix(_EXCEPTION)


class Store:
    """The records of a run, by test, in the order in which the tests stand."""

    def __init__(self) -> None:
        self._tests: dict[str, dict[str, Record]] = {}
        self._order: dict[str, int] = {}

    def add(self, report: pytest.TestReport) -> None:
        """Keep the records of a report; a new attempt at a test replaces the one before."""
        if report.when == "setup" and self._tests:
            self._tests.pop(report.nodeid, None)
        for record in attached(report):
            nodeid = report.nodeid
            place = getattr(report, "item_index", len(self._order))
            self._order.setdefault(nodeid, place)
            self._tests.setdefault(nodeid, {})[record.name] = record

    def records(self) -> list[Record]:
        """Return all records; with workers in the order of collection, else in that of the run."""
        nodeids = sorted(self._tests, key=self._order.__getitem__)
        return [record for nodeid in nodeids for record in self._tests[nodeid].values()]
