"""How checks run: the settings of a session, and the one context variable that carries them.

The plugin sets the context around each test's setup, call and teardown.
Outside pytest the defaults apply.
A thread that a test starts has a context of its own, without a session; what it checks belongs to
the test that runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_triguard.errors import InputError, TriGuardError

if TYPE_CHECKING:
    from pytest_triguard.baseline import Baselines
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
        artifacts: Folder for counterexamples, pictures and certificates, or None to save none.
        json: Path of the JSON report, or None to write none.
        baseline: Folder of the baselines to compare with, or None to compare with none.
        update: Whether baselines are written instead.
        compare: Parameters of the test over whose values its checks are compared.
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
    baseline: Path | None = None
    update: bool = False
    compare: tuple[str, ...] = ()


@dataclass(kw_only=True, eq=False)
class Session:
    """The settings in force, and where the checks of one test leave their records.

    Attributes:
        settings: The settings in force.
        nodeid: Node id of the running test, empty outside pytest.
        command: Start of the command that reruns this test, quoted for the shell.
        records: Records of this test by check name, in order of first evaluation.
        baselines: What earlier runs found, or None where nothing is compared.
        rivals: Which tests its checks are compared with, see `Record.compared`, or None.
        sites: Check name by assertion and call site, so that repeated evaluation keeps one key.
        thread: The thread that runs the test.
        unheard: Names of the checks that failed in other threads, where no test fails by it.
        over: Whether the test has been reported, so that another record would be lost.
    """

    settings: Settings = field(default_factory=Settings)
    nodeid: str = ""
    command: str = ""
    records: dict[str, Record] = field(default_factory=dict)
    baselines: Baselines | None = None
    rivals: dict[str, Any] | None = None
    sites: dict[tuple[str, Site, str | None], str] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)
    unheard: list[str] = field(default_factory=list)
    over: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

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
        with self._lock:
            if key in self.sites:
                return self.sites[key]
            taken = {*self.sites.values(), *self.records}
            if name is None:
                names = (f"{assertion}-{ordinal}" for ordinal in count(2))
                name = next(each for each in chain([assertion], names) if each not in taken)
            elif name in taken:
                raise InputError(
                    f"name must be unique in a test, but a second check came as {name!r}"
                )
            self.sites[key] = name
            return name

    def ordinals(self) -> dict[tuple[str, Site, str | None], str]:
        """Return the sites whose checks have names that were counted out, not given."""
        with self._lock:
            return {key: name for key, name in self.sites.items() if key[-1] is None}

    def keeps(self, record: Record) -> bool:
        """Return whether a record would be kept: whether it is the first or the worst so far."""
        previous = self.records.get(record.name)
        return previous is None or record.is_worse_than(previous)

    def add(self, record: Record) -> None:
        """Keep a record; of several evaluations of one check keep the worst, and the count.

        Raises:
            TriGuardError: If the test is over, as when it did not wait for its threads.
        """
        with self._lock:
            if self.over:
                raise TriGuardError(
                    f"the check {record.name} ended after its test {self.nodeid}, so that no "
                    "report has it: wait for the threads of a test before it ends"
                )
            previous = self.records.get(record.name)
            self.records[record.name] = record if previous is None else previous.worse(record)
            if record.failed and threading.get_ident() != self.thread:
                self.unheard.append(record.name)

    def end(self) -> None:
        """Take no more records."""
        with self._lock:
            self.over = True


_SESSION: ContextVar[Session | None] = ContextVar("pytest_triguard_session", default=None)
_IN_FORCE: list[Session] = []
"""The sessions that any thread has put in force, for the threads that have none themselves."""


def current_session() -> Session | None:
    """Return the session in force, or None outside a test.

    A thread that has none uses that of the thread that runs the tests: unlike a task, it does not
    inherit the context it was started in. A task that outlives its test, as where tests share an
    event loop that runs them all, uses that of the test that its thread runs now.

    Raises:
        TriGuardError: If several threads run tests, so that a thread of a test cannot tell whose.
    """
    session, here = _SESSION.get(), threading.get_ident()
    if session is not None:
        now = [each for each in _IN_FORCE if each.thread == here]
        return now[-1] if session.over and now else session
    running = [each for each in _IN_FORCE if each.thread != here]
    if not running:
        return None
    if len({each.thread for each in running}) > 1:
        raise TriGuardError(
            "several tests run at once, and a check in a thread cannot tell which of them started "
            "it: run the thread's function with contextvars.copy_context().run"
        )
    return running[-1]


def is_in_force(session: Session) -> bool:
    """Return whether a session is the one of this thread at this moment."""
    return _SESSION.get() is session


def current_settings() -> Settings:
    """Return the settings in force, or the defaults outside a test."""
    session = current_session()
    return session.settings if session is not None else Settings()


@contextmanager
def use_session(session: Session) -> Iterator[Session]:
    """Put a session in force for a `with` block."""
    token = _SESSION.set(session)
    _IN_FORCE.append(session)
    try:
        yield session
    finally:
        _IN_FORCE.remove(session)
        _SESSION.reset(token)
