"""`--triguard-min-checks N`: a run in which fewer checks decided has a failed test of its own.

A gate whose tests were skipped, deselected or not found is green otherwise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from pytest_triguard.record import Verdict

if TYPE_CHECKING:
    from pytest_triguard.reporting.transport import Store

NODEID = "triguard::min-checks"
"""Node id of the report, which terminal, JUnit and exit code treat as that of a test."""

_LOCATION = ("triguard", None, "min-checks")
_LOOKING = ("collectonly", "setuponly")
_REMEMBER_TESTS = ("lfplugin", "nfplugin", "stepwiseplugin")
"""Plugins that look for a failed test again in the next run, where this one is none."""


class MinimumChecks:
    """Adds a failed report if fewer checks decided than were asked for.

    Args:
        config: The configuration of the run.
        store: The records of the run.
        asked: How many checks have to decide.
    """

    def __init__(self, config: pytest.Config, store: Store, asked: int) -> None:
        self.config = config
        self.store = store
        self.asked = asked
        self.skipped: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the tests that were skipped."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.add(report.nodeid)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Judge the run when its last test has been reported, also if it ended early."""
        try:
            return (yield)
        finally:
            if not any(self.config.getoption(name, False) for name in _LOOKING):
                self._judge(session)

    def _judge(self, session: pytest.Session) -> None:
        verdicts = Counter(record.verdict for record in self.store.records())
        decided = verdicts[Verdict.PASSED] + verdicts[Verdict.FAILED]
        if decided < self.asked:
            session.testscollected += 1  # or the progress would exceed 100 %
            undecided = verdicts[Verdict.INCONCLUSIVE]
            self._report(shortfall(decided, self.asked, undecided, len(self.skipped)))

    def _report(self, text: str) -> None:
        """Report a failed test, with all that plugins expect of one."""
        hook, plugins = self.config.hook, self.config.pluginmanager
        others = [
            plugin for name in _REMEMBER_TESTS if (plugin := plugins.get_plugin(name)) is not None
        ]
        logreport = plugins.subset_hook_caller("pytest_runtest_logreport", others)
        hook.pytest_runtest_logstart(nodeid=NODEID, location=_LOCATION)
        now = time.time()
        for when in ("setup", "call", "teardown"):
            failed = when == "call"
            logreport(
                report=pytest.TestReport(
                    nodeid=NODEID,
                    location=_LOCATION,
                    keywords={},
                    outcome="failed" if failed else "passed",
                    longrepr=text if failed else None,
                    when=when,
                    start=now,
                    stop=now,
                )
            )
        hook.pytest_runtest_logfinish(nodeid=NODEID, location=_LOCATION)


def shortfall(decided: int, asked: int, inconclusive: int, skipped: int) -> str:
    """Return how many checks decided, how many were asked for, and where the others may be.

    Args:
        decided: Number of checks that passed or failed.
        asked: The value of `--triguard-min-checks`.
        inconclusive: Number of checks that could not decide.
        skipped: Number of tests that were skipped.
    """
    return (
        f"{decided} {'check' if decided == 1 else 'checks'} decided, but --triguard-min-checks "
        f"asks for {asked} ({inconclusive} inconclusive; "
        f"{skipped} {'test' if skipped == 1 else 'tests'} skipped)"
    )
