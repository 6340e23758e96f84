"""What the plugin's own tests share: small test projects, run with a quiet environment.

The checks of these projects leave records without measuring anything, so that a run is fast and
needs no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

CHECKS = '''
"""Checks that measure nothing: they leave the record they are told to leave."""

from pytest_triguard.errors import TriGuardFailure
from pytest_triguard.record import Record
from pytest_triguard.settings import current_session


def check(name="assert_accuracy", value=0.964, threshold=0.9, relation=">=", **more):
    session = current_session()
    holds = {">=": value >= threshold, "<=": value <= threshold, "<": value < threshold}[relation]
    fields = {
        "nodeid": session.nodeid,
        "name": name,
        "assertion": "assert_accuracy",
        "metric": "accuracy",
        "value": value,
        "relation": relation,
        "threshold": threshold,
        "verdict": "passed" if holds else "failed",
        "failed": not holds,
        "n": 500,
        "undefined": 0,
        "counts": {"correct": round(value * 500)},
        "interval": (value - 0.03, value + 0.02),
        "confidence": 0.95,
        "claim": "sample",
        "device": session.settings.device or "cpu",
        "seed": session.settings.seed,
        "reproduce": session.command,
        "compared": session.rivals,
    }
    record = Record(**(fields | more))
    session.add(record)
    if record.failed:
        raise TriGuardFailure(f"accuracy {value} is not {relation} {threshold}", record)
'''

OTHERS = (
    "randomly",
    "rerunfailures",
    "timeout",
    "html",
    "html_fixtures",
    "metadata",
    "hypothesispytest",
)
"""Plugins that may be installed. Where the run is within this process, that of hypothesis would
import all of hypothesis at its end, anew each time."""


def quiet(*kept):
    """Return the arguments that switch off all other plugins but some."""
    return tuple(word for name in OTHERS if name not in kept for word in ("-p", f"no:{name}"))


QUIET = quiet()
MODES = {
    "no-xdist": ("-p", "no:xdist"),
    "n0": ("-p", "xdist", "-n", "0"),
    "n2": ("-p", "xdist", "-n", "2"),
}
_OUTSIDE = (
    *("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "COLUMNS", "NO_COLOR", "FORCE_COLOR"),
    *("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"),
)
"""What the run of these tests may have, and those within them must not."""


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch):
    """Make pytest print alike on every machine, also on one that calls itself CI."""
    for name in _OUTSIDE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(pytester):
    """A folder with an ini file and the checks that measure nothing."""
    pytester.makefile(".ini", pytest="[pytest]\n")
    pytester.makepyfile(checks=CHECKS)
    return pytester


@pytest.fixture
def run(project):
    """Run pytest on the project, within this process."""

    def run(*arguments):
        return project.runpytest_inprocess(*QUIET, *arguments)

    return run


@pytest.fixture
def run_with(project):
    """Run pytest on the project in a process of its own, with some other plugins."""

    def run(plugins, *arguments):
        for name in plugins:
            pytest.importorskip(f"pytest_{name}")
        needed = ("metadata", "html_fixtures") if "html" in plugins else ()
        return project.runpytest_subprocess(*quiet(*plugins, *needed), *arguments)

    return run


@pytest.fixture
def run_apart(project):
    """Run pytest on the project in a process of its own, where exit codes and imports are true."""

    def run(*arguments):
        return project.runpytest_subprocess(*QUIET, *arguments)

    return run


@pytest.fixture(scope="session", params=MODES)
def mode(request):
    """The arguments for a run without pytest-xdist, with it, and with two workers."""
    if request.param != "no-xdist":
        pytest.importorskip("xdist")
    return MODES[request.param]


@dataclass(frozen=True)
class Finished:
    """A run that left every kind of report."""

    code: int
    output: str
    report: dict
    junit: ElementTree.Element

    def properties(self, test):
        """The JUnit properties of a test, by name; a name that occurs twice is a list too long."""
        case = next(each for each in self.junit.iter("testcase") if each.get("name") == test)
        pairs = [(each.get("name"), each.get("value")) for each in case.iter("property")]
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)


@pytest.fixture(scope="session")
def finish(tmp_path_factory):
    """Run pytest on a test file with all reports, and read them."""

    def finish(text: str, *arguments: str) -> Finished:
        folder = tmp_path_factory.mktemp("finished")
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "checks.py").write_text(CHECKS)
        (folder / "test_gate.py").write_text(text)
        return _finish(folder, *arguments)

    return finish


def _finish(folder: Path, *arguments: str) -> Finished:
    environment = {key: value for key, value in os.environ.items() if key not in _OUTSIDE}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *QUIET, *arguments),
            *("--triguard-json=report.json", "--junitxml=junit.xml"),
        ],
        cwd=folder,
        env=environment | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "report.json").exists(), done.stdout + done.stderr
    return Finished(
        done.returncode,
        done.stdout,
        json.loads((folder / "report.json").read_text(encoding="utf-8")),
        ElementTree.parse(folder / "junit.xml").getroot(),
    )
