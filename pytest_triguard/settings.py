"""How checks run: the settings of a session, and the one context variable that carries them.

The plugin sets the context around each test's setup, call and teardown.
Outside pytest the defaults apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_triguard.errors import InputError

if TYPE_CHECKING:
    from pytest_triguard.record import Record

Inconclusive = Literal["fail", "pass"]
Site = tuple[str, int, int | None]
"""Where an assertion is called: file, line and column, if Python knows that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a session, or a marked test in it, asks of its checks.

    Attributes:
        device: Device to run on, or None for the module's own device.
        seed: Seed of every random draw.
        samples: Size of the seeded random subset of the data, or None for all of it.
        confidence: Two-sided confidence of population claims, or None for sample claims.
        budget: Seconds per sample a verifier may spend, or None for no limit.
        inconclusive: Whether an inconclusive check fails or passes.
        chunk: Rows per pass, or None to find the fastest by timing.
        artifacts: Folder for counterexamples, or None to save none.
        json: Path of the JSON report, or None to write none.
    """

    device: str | None = None
    seed: int = 0
    samples: int | None = None
    confidence: float | None = None
    budget: float | None = None
    inconclusive: Inconclusive = "fail"
    chunk: int | None = None
    artifacts: Path | None = None
    json: Path | None = None


@dataclass(kw_only=True)
class Session:
    """The settings in force, and where the checks of one test leave their records.

    Attributes:
        settings: The settings in force.
        nodeid: Node id of the running test, empty outside pytest.
        command: Start of the command that reruns this test, quoted for the shell.
        records: Records of this test by check name, in order of first evaluation.
        sites: Check name by assertion and call site, so that repeated evaluation keeps one key.
    """

    settings: Settings = field(default_factory=Settings)
    nodeid: str = ""
    command: str = ""
    records: dict[str, Record] = field(default_factory=dict)
    sites: dict[tuple[str, Site, str | None], str] = field(default_factory=dict)

    def check_name(self, name: str | None, assertion: str, site: Site) -> str:
        """Return the name of a check: the user's, or the assertion's with its ordinal in the test.

        Args:
            name: The name the user gave, or None.
            assertion: Name of the assertion.
            site: Where it is called; one site is one check, however often it runs.

        Raises:
            InputError: If the name is that of another check of the test, whose record it would
                take the place of.
        """
        key = (assertion, site, name)
        if key in self.sites:
            return self.sites[key]
        taken = {*self.sites.values(), *self.records}
        if name is None:
            names = (f"{assertion}-{ordinal}" for ordinal in count(2))
            name = next(each for each in chain([assertion], names) if each not in taken)
        elif name in taken:
            raise InputError(f"name must be unique in a test, but a second check came as {name!r}")
        self.sites[key] = name
        return name

    def keeps(self, record: Record) -> bool:
        """Return whether a record would be kept: whether it is the first or the worst so far."""
        previous = self.records.get(record.name)
        return previous is None or record.is_worse_than(previous)

    def add(self, record: Record) -> None:
        """Keep a record; of several evaluations of one check keep the worst, and the count."""
        previous = self.records.get(record.name)
        self.records[record.name] = record if previous is None else previous.worse(record)


_SESSION: ContextVar[Session | None] = ContextVar("pytest_triguard_session", default=None)


def current_session() -> Session | None:
    """Return the session in force, or None outside a test."""
    return _SESSION.get()


def current_settings() -> Settings:
    """Return the settings in force, or the defaults outside a test."""
    session = _SESSION.get()
    return session.settings if session is not None else Settings()


@contextmanager
def use_session(session: Session) -> Iterator[Session]:
    """Put a session in force for a `with` block."""
    token = _SESSION.set(session)
    try:
        yield session
    finally:
        _SESSION.reset(token)
