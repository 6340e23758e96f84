"""Checks that the project's own tests make are no checks of the project."""

from __future__ import annotations

import pytest

from pytest_triguard.settings import Session, current_settings, use_session

CASES = "random cases"
"""Property of a test that goes through many: how many."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Keep the records of a test out of the report of this run; its settings hold."""
    with use_session(Session(settings=current_settings())):
        return (yield)


def pytest_terminal_summary(terminalreporter):
    """Say how many random cases the tests that count them went through."""
    reports = terminalreporter.getreports("passed")
    counts = [value for each in reports for name, value in each.user_properties if name == CASES]
    if counts:
        terminalreporter.write_line(f"{sum(counts):,} random cases held")
