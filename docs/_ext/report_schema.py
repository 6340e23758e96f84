"""The JSON Schema of the report, made from the classes that make the report."""

from __future__ import annotations

import types
import typing
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstrings import entries

from pytest_triguard.ranking import Rank, Ranking
from pytest_triguard.record import SCHEMA_VERSION, Record, Verdict
from pytest_triguard.reporting.json import report
from pytest_triguard.reporting.run import Run
from pytest_triguard.settings import Settings

_PLAIN: dict[object, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
_RUN: dict[str, dict[str, Any]] = {
    "device": {
        "type": ["string", "null"],
        "description": "Device that was asked for, else those that the checks ran on.",
    },
    "seed": {"type": "integer", "description": "Seed of every random draw."},
    "versions": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "Versions of Python and of the packages that decide results.",
    },
    "commit": {
        "type": ["string", "null"],
        "description": "Commit that is checked out, or null where git knows none.",
    },
    "started": {"type": "string", "description": "When the run started: ISO 8601, with a zone."},
    "seconds": {"type": "number", "description": "Wall time of the run."},
}


def schema() -> dict[str, Any]:
    """Return the schema of the whole report."""
    sample = _sample()
    hints, texts = get_type_hints(Record), entries(Record)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-triguard report",
        "type": "object",
        "required": ["schema_version", "run", "checks", "comparisons"],
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION},
            "run": _object({name: _RUN[name] for name in sample["run"]}),
            "checks": {
                "type": "array",
                "items": _object(
                    {
                        name: _kind(hints[name]) | {"description": texts[name]}
                        for name in sample["checks"][0]
                    }
                ),
            },
            "comparisons": {"type": "array", "items": _described(Ranking, rows=_rows())},
        },
    }


def _rows() -> dict[str, Any]:
    return {"type": "array", "items": _described(Rank)}


def _described(kind: type, **given: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a dataclass: its fields, but for those whose schemas are given."""
    hints, texts = get_type_hints(kind), entries(kind)
    return _object(
        {
            each.name: (given.get(each.name) or _kind(hints[each.name]))
            | {"description": texts[each.name]}
            for each in fields(kind)
        }
    )


def _sample() -> dict[str, Any]:
    """Return a report of one check, for its keys."""
    run = Run(settings=Settings(), folder=Path(), started=datetime.now(UTC), seconds=0.0)
    record = Record(
        nodeid="",
        name="",
        assertion="",
        metric="",
        value=None,
        relation=">=",
        threshold=0.0,
        verdict=Verdict.INCONCLUSIVE,
        failed=True,
        n=0,
        undefined=0,
        counts={},
        interval=None,
        confidence=None,
        claim="sample",
    )
    return report(run, [record])


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def _kind(hint: Any) -> dict[str, Any]:
    """Return the schema of an annotated type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"enum": [each.value for each in hint]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_kind(each) for each in inner]}
    if origin is list:
        return {"type": "array", "items": _kind(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _kind(inner[1])}
    if origin is tuple:
        count = len(inner)
        items = [_kind(each) for each in inner]
        return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
    raise typing.assert_never(hint)
