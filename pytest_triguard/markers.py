"""The marker `triguard(...)`: what may stand in it, and what it changes.

The closest marker wins, key by key: function over class over module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from pytest_triguard.errors import ConfigError, nearest
from pytest_triguard.options import read_confidence, read_count
from pytest_triguard.settings import Inconclusive, Settings

if TYPE_CHECKING:
    import pytest

NAME = "triguard"
DESCRIPTION = (
    f"{NAME}(*, confidence=None, samples=None, budget=None, inconclusive=None, compare=None): "
    "settings of the safety checks in this test: two-sided confidence (False for the given samples "
    "only), number of samples, seconds per sample for a verifier, whether an inconclusive check is "
    "to 'fail' or to 'pass', and the parameter of the test, or several, over whose values the "
    "checks are compared in a table; a marked test that passes without a check fails."
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


def _compare(value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, tuple | list) or not names:
        raise ValueError(f"{value!r} is no name of a parameter of the test, nor a tuple of them")
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{value!r} must hold names of parameters of the test, each once")
    return tuple(names)


_READERS: dict[str, Callable[[object], Any]] = {
    "confidence": _confidence,
    "samples": _samples,
    "budget": _budget,
    "inconclusive": _inconclusive,
    "compare": _compare,
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


def rivals(settings: Settings, item: pytest.Item) -> dict[str, Any] | None:
    """Return what tells a test from those that its checks are compared with, and what does not.

    Args:
        settings: The settings of the test, its markers laid over them.
        item: The test.

    Returns:
        `test`, the node id without parameters; `by`, the parameters that differ; `label`, their
        ids; and `fixed`, the ids of all others. None where nothing is to be compared.

    Raises:
        ConfigError: If a parameter to compare by is none of the test's.
    """
    if not settings.compare:
        return None
    call = getattr(item, "callspec", None)
    params = () if call is None else call.params
    for name in settings.compare:
        if name not in params:
            raise ConfigError(
                f"the marker triguard: compare: the test has no parameter {name!r}"
                f"{nearest(name, params)} (it has: {', '.join(params) or 'none'})"
            )
    ids = _ids(item)
    compared = [next(names for names in ids if name in names) for name in settings.compare]
    parent, name = item.parent, getattr(item, "originalname", item.name)
    return {
        "test": name if parent is None else f"{parent.nodeid}::{name}",
        "by": list(settings.compare),
        "label": "-".join(ids[names] for names in dict.fromkeys(compared)),
        "fixed": "-".join(each for names, each in ids.items() if names not in compared),
    }


def _ids(item: pytest.Item) -> dict[frozenset[str], str]:
    """Return the parts of the id of a parametrised test, by the parameters that each is of.

    pytest keeps one part per `parametrize`, which may have several parameters, and does not keep
    whose it is. Where that cannot be told, the whole id is that of all parameters.
    """
    call = item.callspec  # type: ignore[attr-defined]
    together: dict[str, frozenset[str]] = {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        listed = [each.strip() for each in names.split(",")] if isinstance(names, str) else names
        together |= dict.fromkeys(listed, frozenset(listed))
    groups = list(dict.fromkeys(together.get(name, frozenset({name})) for name in call.params))
    parts = getattr(call, "_idlist", ())
    if len(parts) != len(groups):
        return {frozenset(call.params): call.id}
    return dict(zip(groups, parts, strict=True))


def check_markers(items: Iterable[pytest.Item]) -> None:
    """Check the markers of all collected tests.

    Raises:
        ConfigError: With one line per faulty marker, if there are any.
    """
    problems: dict[str, None] = {}
    for item in filter(is_marked, items):
        for problem in _problems(item):
            problems.setdefault(f"{item.nodeid}: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(item: pytest.Item) -> Iterator[str]:
    """Yield what is wrong with the markers of a test; one thing may come twice."""
    for mark in item.iter_markers(NAME):
        try:
            _read_mark(mark)
        except ConfigError as error:
            yield str(error)
    try:
        rivals(marked_settings(Settings(), item), item)
    except ConfigError as error:
        yield str(error)


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
