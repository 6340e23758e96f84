"""The JSON report: `schema_version`, `run`, and one entry of `checks` per record."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_triguard.record import SCHEMA_VERSION, Record
from pytest_triguard.reporting.run import Run


def report(run: Run, records: Sequence[Record]) -> dict[str, Any]:
    """Return the report of a run as plain values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run.to_dict(records),
        "checks": [record.to_dict() for record in records],
    }


def write(path: Path, run: Run, records: Sequence[Record]) -> None:
    """Write the report of a run, whole or not at all.

    Raises:
        OSError: If the file cannot be written; a report that was there before is then unchanged.
    """
    text = json.dumps(report(run, records), indent=2, allow_nan=False)
    target = path.resolve()  # a link stays a link
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
