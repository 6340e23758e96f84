"""The hooks of the plugin; everything they do is done elsewhere.

Loading this module imports neither torch nor numpy nor captum.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from pytest_triguard import markers, options
from pytest_triguard.errors import ConfigError
from pytest_triguard.fixtures import (
    triguard,
    triguard_classifier,
    triguard_data,
    triguard_device,
    triguard_seed,
)
from pytest_triguard.reporting import transport
from pytest_triguard.runtime import (
    FIXTURE_RECORDS,
    KNOWN_OPTIONS,
    REFUSAL,
    RUNTIME,
    TEST_RUN,
    TestRun,
    is_worker,
    needs_torch,
    resolve_device,
    start_run,
    start_test,
)
from pytest_triguard.settings import is_in_force, use_session

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_triguard.files import Identity
    from pytest_triguard.ranking import Ranking
    from pytest_triguard.record import Record
    from pytest_triguard.reporting.run import Run
    from pytest_triguard.settings import Settings

__all__ = [
    "triguard",
    "triguard_classifier",
    "triguard_data",
    "triguard_device",
    "triguard_seed",
]

_LOOKING = ("collectonly", "showfixtures", "show_fixtures_per_test", "cacheshow", "setuponly")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and their ini twins."""
    options.add_options(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Remember which options there are before any conftest.py adds its own; refuse a misspelt one.

    An option that looks like ours may be one that a conftest.py adds.
    """
    early_config.stash[KNOWN_OPTIONS] = frozenset(vars(early_config.known_args_namespace))
    result = yield
    if not early_config.known_args_namespace.help:
        with _usage_errors():
            options.check_spelling(parser, args)
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and on the controller what writes the reports."""
    config.addinivalue_line("markers", markers.DESCRIPTION)
    config.pluginmanager.register(Refuser(), "triguard-refuser")
    if not is_worker(config):
        controller = Controller(config)
        config.pluginmanager.register(controller, "triguard-controller")
        asked = config.getoption("triguard_min_checks")
        if asked is not None:
            from pytest_triguard.minimum import MinimumChecks

            minimum = MinimumChecks(config, controller.store, asked)
            config.pluginmanager.register(minimum, "triguard-min-checks")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Read the settings; on the controller judge them before anything runs."""
    config = session.config
    with _usage_errors():
        runtime = start_run(config)
        if is_worker(config):
            return
        options.check_paths(runtime.given)
        looking = any(config.getoption(name, False) for name in _LOOKING)
        if not looking:
            options.check_baselines(runtime.given, config.invocation_params.args)
        if needs_torch(runtime.settings.device) and not looking:
            resolve_device(runtime.settings.device)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Begin an attempt at a test, with its session in force."""
    try:
        run = start_test(item)
    except ConfigError as error:
        item.stash[REFUSAL] = str(error)
        return (yield)
    with use_session(run.session):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run the test with its session in force."""
    with use_session(item.stash[TEST_RUN].session):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Take a test down with its session in force."""
    run = item.stash.get(TEST_RUN, None)
    if run is None:  # its setup was refused
        return (yield)
    with use_session(run.session):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the records of a phase on its report; fail a marked test that checked nothing."""
    run = item.stash.get(TEST_RUN, None)
    if run is None or is_in_force(run.session):  # within a phase: a subtest reports
        return (yield)
    if call.when == "teardown":
        run.session.end()
    records = run.session.records
    if call.when == "setup":
        _keep_fixture_records(item, records)
    if records and item.config.stash[RUNTIME].writes_properties:
        transport.set_properties(item, list(records.values()))
    report = yield
    if records:
        transport.attach(report, run.unreported())
        transport.shorten(report)
        if run.session.unheard and report.passed and not hasattr(report, "wasxfail"):
            _tell_unheard(report, run)
        run.session.unheard.clear()
    elif call.when == "call" and report.passed and markers.is_marked(item):
        _demand_check(report, run)
    return report


def _keep_fixture_records(item: pytest.Item, records: dict[str, Record]) -> None:
    """Keep the records of wider fixtures, which are not set up again when a test is rerun."""
    kept = item.stash.get(FIXTURE_RECORDS, None)
    if kept is not None:
        made = dict(records)
        records.clear()
        records.update(kept | made)
    if records:
        item.stash[FIXTURE_RECORDS] = dict(records)


def _demand_check(report: pytest.TestReport, run: TestRun) -> None:
    """Fail a test that is marked but made no check."""
    report.outcome = "failed"
    report.longrepr = (
        f"{run.session.nodeid} is marked {markers.NAME} but passed without a check: "
        "call one of the assert_* functions of pytest_triguard in it, or remove the marker"
    )
    if hasattr(report, "wasxfail"):  # an unexpected pass is not what went wrong
        del report.wasxfail


def _tell_unheard(report: pytest.TestReport, run: TestRun) -> None:
    """Fail a test that passed although a check of it failed in a thread."""
    from pytest_triguard.reporting.message import failure_message

    session = run.session
    told = [failure_message(session.records[name]) for name in dict.fromkeys(session.unheard)]
    report.outcome = "failed"
    told.append(
        f"It failed in a thread, and {session.nodeid} passed nevertheless: let the failure reach "
        "the test, as the result() of a future does."
    )
    report.longrepr = "\n\n".join(told)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn an error of the configuration into pytest's, which ends the run with exit code 4."""
    try:
        yield
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


class Refuser:
    """Fails the setup of a test that cannot begin, in place of its fixtures.

    A worker of pytest-xdist cannot end the run with a usage error. The setup of other plugins has
    been entered by then, so that their teardown finds what it expects.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail if the marker of the test is wrong, or the device of the worker is missing."""
        refusal = item.stash.get(REFUSAL, None)
        if refusal is not None:
            pytest.fail(refusal, pytrace=False)


class Controller:
    """The hooks of the process that reports; workers of pytest-xdist do not have them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.started = datetime.now(UTC)
        self.clock = time.perf_counter()
        self.store = transport.Store()
        self.rankings: list[Ranking] = []
        self.written: Path | None = None
        self.before: Identity | None = None
        self.unwritten: list[str] = []
        self.updated: list[str] = []

    def pytest_sessionstart(self) -> None:
        """Remember which report is there, to tell it from one that another run writes."""
        path = self.config.stash[RUNTIME].settings.json
        if path is not None:
            from pytest_triguard import files

            self.before = files.identity(path)

    def pytest_report_header(self) -> str | None:
        """State the settings in one line, if any option or ini key was given."""
        runtime = self.config.stash[RUNTIME]
        if not runtime.given:
            return None
        from pytest_triguard.reporting.run import header

        return header(runtime.settings)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, object, object]:
        """Check the markers of all tests, also of those that are then deselected."""
        collected = list(items)
        result = yield
        with _usage_errors():
            markers.check_markers(collected)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the records off a report."""
        self.store.add(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the JSON report, and the properties of the suite before pytest writes JUnit."""
        looking = any(self.config.getoption(name, False) for name in _LOOKING)
        if looking or session.exitstatus == pytest.ExitCode.USAGE_ERROR:
            return
        settings = self.config.stash[RUNTIME].settings
        records = self.store.records()
        if records and settings.update:
            self._update_baselines(session, settings, records)
        if not records and settings.json is None:
            return
        from pytest_triguard.reporting import json, junit

        run = self._run()
        if any(record.compared is not None for record in records):
            from pytest_triguard.ranking import rankings

            self.rankings = rankings(records)
        if records:
            junit.add_suite_properties(self.config, run, records, self.rankings)
        if settings.json is not None:
            try:
                self.written = json.write(settings.json, run, records, self.rankings, self.before)
            except OSError as error:
                self._lose(session, f"the JSON report is lost: {error}")
            else:
                if self.written != settings.json:
                    self._lose(
                        session,
                        f"another run has written {settings.json} meanwhile, so the JSON report of "
                        f"this one is {self.written}",
                    )

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table of checks."""
        verbosity = self.config.get_verbosity()
        if records := self.store.records():
            from pytest_triguard.reporting import terminal

            terminal.write(terminalreporter, records, verbosity)
            if self.rankings:
                from pytest_triguard.reporting import ranked

                ranked.write(terminalreporter, self.rankings, verbosity)
            if verbosity > 0:
                self._tell_what_was_not_made(terminalreporter, records)
        if self.written is not None and verbosity >= 0:
            terminalreporter.write_sep("-", f"generated JSON report: {self.written}")
        for line in self.updated:
            terminalreporter.write_line(line)
        for line in self.unwritten:
            terminalreporter.write_line(line, red=True)

    def _tell_what_was_not_made(
        self, terminalreporter: pytest.TerminalReporter, records: list[Record]
    ) -> None:
        """Name the checks that only the baseline still has: a gate may have been removed."""
        settings = self.config.stash[RUNTIME].settings
        if settings.baseline is None or settings.update:
            return
        from pytest_triguard.baseline import not_made

        try:
            checks = not_made(settings.baseline, records)
        except ConfigError:  # those checks have failed by it
            return
        for check in checks:
            terminalreporter.write_line(f"triguard: in the baseline, but not made: {check}")

    def _update_baselines(
        self, session: pytest.Session, settings: Settings, records: list[Record]
    ) -> None:
        """Write the baselines of the checks whose thresholds hold, and say of which they do not."""
        from pytest_triguard import baseline
        from pytest_triguard.record import Verdict
        from pytest_triguard.reporting.run import installed_versions

        if settings.baseline is None:
            return
        kept = [
            record
            for record in records
            if record.per_sample is not None and record.gate == Verdict.PASSED
            if not record.doubted
        ]
        try:
            paths = baseline.write(settings.baseline, kept, installed_versions())
        except (OSError, ConfigError) as error:
            self._lose(session, f"the baselines are not updated: {error}")
            return
        self.updated += [f"triguard: wrote the baselines in {path}" for path in paths]
        self.updated += [
            f"triguard: no baseline written for {record.nodeid} ({record.name}), for its threshold "
            f"is not met: {record.gate}"
            for record in records
            if record.gate != Verdict.PASSED
        ]

    def _run(self) -> Run:
        from pytest_triguard.reporting.run import Run

        return Run(
            settings=self.config.stash[RUNTIME].settings,
            folder=self.config.rootpath,
            started=self.started,
            seconds=time.perf_counter() - self.clock,
        )

    def _lose(self, session: pytest.Session, what: str) -> None:
        """Say that a file is not where it should be; a run that was fine otherwise is not."""
        self.unwritten.append(f"triguard: {what}")
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
