"""What it means that a call is refused."""

from __future__ import annotations

import re

import pytest

from pytest_triguard.classifier import Classifier
from tests.bad_input.problem import network
from tests.module_state import state_of
from tests.sessions import with_settings


@pytest.fixture
def subject():
    """A classifier that nothing is wrong with."""
    return Classifier(network())


@pytest.fixture
def refused(tmp_path):
    """Return a check that a call is refused in one sentence and leaves nothing behind.

    No record, no file, and the module is as it came.
    """

    def refused(error, message, call, subject, *args, **options):
        before = state_of(subject.module) if isinstance(subject, Classifier) else None
        folder = tmp_path / "artifacts"
        with with_settings(artifacts=folder) as session, pytest.raises(error) as caught:
            call(subject, *args, **options)
        assert re.match(re.escape(message), str(caught.value)), str(caught.value)
        assert "\n" not in str(caught.value)
        assert session.records == {}
        assert not folder.exists()
        assert before is None or state_of(subject.module) == before

    return refused
