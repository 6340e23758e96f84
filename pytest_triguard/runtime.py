"""What the plugin keeps while tests run: settings of the run, session of each test."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from pytest_triguard.markers import marked_settings, rivals
from pytest_triguard.options import Given, given_options, settings_from
from pytest_triguard.reporting import transport
from pytest_triguard.settings import Session, Settings

if TYPE_CHECKING:
    from pytest_triguard.baseline import Baselines
    from pytest_triguard.record import Record
    from pytest_triguard.reproduce import Reproducer


@dataclass(kw_only=True)
class Runtime:
    """One pytest run, on the controller or on a worker.

    Attributes:
        config: The configuration of the run.
        settings: Settings of the run, before any marker; paths are absolute.
        given: What the command line and the ini file ask for, by name of the option.
        worker: Index of this worker of pytest-xdist, or None.
        baselines: What earlier runs found, or None where nothing is compared.
        placed: Whether the device is the one this worker is to use.
    """

    config: pytest.Config
    settings: Settings
    given: dict[str, Given]
    worker: int | None
    baselines: Baselines | None = None
    placed: bool = False

    @property
    def writes_properties(self) -> bool:
        """Whether a test in the JUnit file has the numbers of its checks as properties."""
        return "junit" not in self.given or self.given["junit"].value == "properties"

    def place(self) -> Settings:
        """Return the settings with the device that this worker is to use.

        Raises:
            ConfigError: If the machine of this worker has no such device.
        """
        if not self.placed:
            device = self.settings.device
            if self.worker is not None and needs_torch(device):
                resolved = resolve_device(device, self.worker)
                self.settings = replace(self.settings, device=resolved)
            self.placed = True
        return self.settings

    @cached_property
    def reproducer(self) -> Reproducer:
        """What makes the commands that rerun tests."""
        from pytest_triguard.reproduce import Reproducer

        known = self.config.stash.get(KNOWN_OPTIONS, frozenset())
        return Reproducer(config=self.config, settings=self.place(), known=known)


@dataclass(kw_only=True)
class TestRun:
    """One attempt at one test.

    Attributes:
        session: Settings in force, and the records made so far.
        reported: Records that a report has carried already, by name.
    """

    __test__ = False

    session: Session
    reported: dict[str, Record] = field(default_factory=dict)

    def unreported(self) -> list[Record]:
        """Return the records that are new or have changed since the last call."""
        records = dict(self.session.records)  # a thread may add to it
        new = [each for name, each in records.items() if self.reported.get(name) is not each]
        self.reported = records
        return new


class ItemSession(Session):
    """The session of a test, which makes its command only when it is asked for."""

    def __init__(
        self,
        settings: Settings,
        item: pytest.Item,
        reproducer: Reproducer,
        baselines: Baselines | None,
    ) -> None:
        from pytest_triguard.reproduce import plain_nodeid

        self._item = item
        self._reproducer = reproducer
        super().__init__(settings=settings, nodeid=plain_nodeid(item), baselines=baselines)

    @property
    def command(self) -> str:
        """Start of the command that reruns this test, quoted for the shell."""
        return self._command or self._reproducer.command(self._item)

    @command.setter
    def command(self, command: str) -> None:
        self._command = command


RUNTIME = pytest.StashKey[Runtime]()
TEST_RUN = pytest.StashKey[TestRun]()
FIXTURE_RECORDS = pytest.StashKey["dict[str, Record]"]()
REFUSAL = pytest.StashKey[str]()
KNOWN_OPTIONS = pytest.StashKey[frozenset[str]]()


def start_run(config: pytest.Config) -> Runtime:
    """Read the options and keep what the run needs.

    Raises:
        ConfigError: If an ini key or its value is wrong.
    """
    given = given_options(config)
    settings = settings_from(given, config.rootpath)
    runtime = Runtime(
        config=config,
        settings=settings,
        given=given,
        worker=worker_index(config),
        baselines=_baselines(settings),
    )
    config.stash[RUNTIME] = runtime
    return runtime


def _baselines(settings: Settings) -> Baselines | None:
    if settings.baseline is None or settings.update:
        return None
    from pytest_triguard.baseline import Baselines

    return Baselines(settings.baseline)


def start_test(item: pytest.Item) -> TestRun:
    """Begin an attempt at a test.

    Raises:
        ConfigError: If a marker is wrong, or the device of this worker is missing.
    """
    runtime = item.config.stash[RUNTIME]
    before = item.stash.get(TEST_RUN, None)
    if before is not None:  # a rerun
        transport.set_properties(item, ())
    settings = marked_settings(runtime.place(), item)
    run = TestRun(session=ItemSession(settings, item, runtime.reproducer, runtime.baselines))
    run.session.rivals = rivals(settings, item)
    if before is not None:  # wider fixtures do not check again, but their checks keep their names
        run.session.sites.update(before.session.ordinals())
    item.stash[TEST_RUN] = run
    return run


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def worker_index(config: pytest.Config) -> int | None:
    """Return the index of this worker of pytest-xdist, or None on the controller."""
    if not is_worker(config):
        return None
    digits = re.search(r"\d+$", str(config.workerinput["workerid"]))  # type: ignore[attr-defined]
    return int(digits.group()) if digits else 0


def needs_torch(device: str | None) -> bool:
    """Return whether a device has to be looked for; the CPU is always there."""
    return device not in (None, "cpu")


def resolve_device(device: str | None, worker: int | None = None) -> str:
    """Return the full name of a device; torch is imported here.

    Args:
        device: Name of the device.
        worker: Index of the worker of pytest-xdist, or None.

    Raises:
        ConfigError: If torch does not know the device, or the machine does not have it.
    """
    import torch

    from pytest_triguard.engine import devices

    return str(devices.resolve(device, fallback=torch.device("cpu"), worker=worker))
