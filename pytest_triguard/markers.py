"""The marker `triguard(...)`: what may stand in it, and what it changes.

The closest marker wins, key by key: function over class over module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from pytest_triguard.errors import ConfigError, nearest
from pytest_triguard.options import read_confidence, read_count
from pytest_triguard.settings import Inconclusive, Settings

if TYPE_CHECKING:
    import pytest

NAME = "triguard"
DESCRIPTION = (
    f"{NAME}(*, confidence=None, samples=None, budget=None, inconclusive=None): settings of the "
    "safety checks in this test: two-sided confidence (False for the given samples only), number "
    "of samples, seconds per sample for a verifier, and whether an inconclusive check is to 'fail' "
    "or to 'pass'; a marked test that passes without a check fails."
)


def _confidence(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a confidence: use a number between 0 and 1, or False")
    return read_confidence(value)


def _samples(value: object) -> int:
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a count: use a whole number of at least 1")
    return read_count(value)


def _budget(value: object) -> float:
    number = float(value) if type(value) in (int, float) else 0.0  # type: ignore[arg-type]
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{value!r} is not a budget: use a number of seconds above 0")
    return number


def _inconclusive(value: object) -> object:
    if value not in get_args(Inconclusive):
        raise ValueError(f"{value!r} is not a choice: use 'fail' or 'pass'")
    return value


_READERS: dict[str, Callable[[object], Any]] = {
    "confidence": _confidence,
    "samples": _samples,
    "budget": _budget,
    "inconclusive": _inconclusive,
}


def is_marked(item: pytest.Item) -> bool:
    """Return whether a test carries the marker, or one of its classes or its module does."""
    return NAME in item.keywords and item.get_closest_marker(NAME) is not None


def marked_settings(settings: Settings, item: pytest.Item) -> Settings:
    """Return the settings of a session with the markers of a test laid over them.

    Args:
        settings: The settings of the session.
        item: The test.

    Raises:
        ConfigError: If a marker has a positional argument, an unknown keyword or a wrong value.
    """
    if not is_marked(item):
        return settings
    merged: dict[str, Any] = {}
    for mark in item.iter_markers(NAME):
        merged = _read_mark(mark) | merged
    if "confidence" in merged:
        merged["confidence"] = merged["confidence"] or None
    return replace(settings, **merged)


def check_markers(items: Iterable[pytest.Item]) -> None:
    """Check the markers of all collected tests.

    Raises:
        ConfigError: With one line per faulty marker, if there are any.
    """
    problems: dict[str, None] = {}
    for item in filter(is_marked, items):
        for mark in item.iter_markers(NAME):
            try:
                _read_mark(mark)
            except ConfigError as error:
                problems.setdefault(f"{item.nodeid}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def _read_mark(mark: pytest.Mark) -> dict[str, Any]:
    """Return the keywords of one marker that are set, read and checked."""
    if mark.args:
        values = ", ".join(map(repr, mark.args))
        raise ConfigError(
            f"the marker triguard takes keywords only ({', '.join(_READERS)}), got {values}"
        )
    read: dict[str, Any] = {}
    for key, value in mark.kwargs.items():
        if key not in _READERS:
            raise ConfigError(
                f"the marker triguard has no keyword {key!r}{nearest(key, _READERS)} "
                f"(known: {', '.join(_READERS)})"
            )
        if value is None:
            continue
        try:
            read[key] = _READERS[key](value)
        except ValueError as error:
            raise ConfigError(f"the marker triguard: {key}: {error}") from error
    return read
