"""What the plugin registers with pytest, read from the plugin itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pytest_triguard import markers, plugin


@dataclass(frozen=True)
class Option:
    """An option of the command line and its twin in the ini file.

    Attributes:
        flag: The option, such as `--triguard-seed`.
        metavar: Placeholder of its value; empty for a flag.
        help: What it does.
        key: The ini key, or None where there is no twin.
    """

    flag: str
    metavar: str
    help: str
    key: str | None


@dataclass(frozen=True)
class Fixture:
    """A fixture of the plugin.

    Attributes:
        name: Its name.
        scope: How long its value lives.
        returns: Name of the type it gives, or empty.
        text: Its docstring.
    """

    name: str
    scope: str
    returns: str
    text: str


@dataclass
class _Parser:
    """Takes the place of pytest's parser and notes what is registered."""

    flags: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)

    def getgroup(self, *_: object, **__: object) -> _Parser:
        return self

    def addoption(self, flag: str, **settings: Any) -> None:
        self.flags[flag] = settings

    def addini(self, name: str, *_: object, **__: object) -> None:
        self.keys.append(name)


def options() -> Iterator[Option]:
    """Yield the options in the order in which `pytest --help` shows them."""
    parser = _Parser()
    plugin.pytest_addoption(parser)  # type: ignore[arg-type]
    for flag, settings in parser.flags.items():
        key = flag.removeprefix("--").replace("-", "_")
        yield Option(
            flag=flag,
            metavar=settings.get("metavar") or "",
            help=settings["help"].replace("%%", "%"),
            key=key if key in parser.keys else None,
        )


def fixtures() -> Iterator[Fixture]:
    """Yield the fixtures."""
    for name in plugin.__all__:
        definition = getattr(plugin, name)
        returns = str(inspect.signature(definition.__wrapped__).return_annotation)
        yield Fixture(
            name=name,
            scope=definition._fixture_function_marker.scope,
            returns="" if returns == "Any" else returns,
            text=inspect.getdoc(definition.__wrapped__) or "",
        )


def marker() -> tuple[str, str]:
    """Return the marker as it is called, and what it does."""
    call, _, text = markers.DESCRIPTION.partition(": ")
    return call, text
