"""Checks that the project's own tests make are no checks of the project."""

from __future__ import annotations

import pytest

from pytest_triguard.settings import Session, current_settings, use_session


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Keep the records of a test out of the report of this run; its settings hold."""
    with use_session(Session(settings=current_settings())):
        return (yield)
