"""The JSON report: `schema_version`, `run`, an entry of `checks` per record, and `comparisons`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_triguard import files
from pytest_triguard.record import SCHEMA_VERSION, Record
from pytest_triguard.reporting.run import Run

if TYPE_CHECKING:
    from pytest_triguard.ranking import Ranking


def report(run: Run, records: Sequence[Record], rankings: Sequence[Ranking] = ()) -> dict[str, Any]:
    """Return the report of a run as plain values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run.to_dict(records),
        "checks": [_check(record) for record in records],
        "comparisons": [ranking.to_dict() for ranking in rankings],
    }


def _check(record: Record) -> dict[str, Any]:
    """Return what a report says of a check; the samples go to the baseline."""
    return {name: value for name, value in record.to_dict().items() if name != "per_sample"}


def write(
    path: Path,
    run: Run,
    records: Sequence[Record],
    rankings: Sequence[Ranking],
    before: files.Identity | None,
) -> Path:
    """Write the report of a run, whole or not at all.

    Where another run has written the file meanwhile, its report stays, and this one goes beside it.

    Args:
        path: Where the report is to be.
        run: The run.
        records: Its records.
        rankings: Its checks that are compared with each other.
        before: What `files.identity(path)` was when the run began.

    Returns:
        Where the report is.

    Raises:
        OSError: If the file cannot be written; a report that was there before is then unchanged.
    """
    text = json.dumps(report(run, records, rankings), indent=2, allow_nan=False) + "\n"
    with files.locked(path):
        if files.identity(path) not in (None, before):
            path = files.beside(path)
        files.write(path, text)
    return path
