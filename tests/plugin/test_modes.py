"""Every way pytest is run: without pytest-xdist, with it switched off, and on two workers."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from xml.etree import ElementTree

import pytest
import scipy.stats  # noqa: F401 - a run within this process would load parts of numpy anew

from tests.simulated_accelerator import simulated_accelerator

GATE = """
import threading
import pytest
from checks import check

@pytest.fixture(scope="session")
def shared():
    check("shared", value=0.99)

@pytest.fixture(scope="module")
def once():
    check("once", value=0.98)

@pytest.fixture
def own():
    check("own before")
    yield
    check("own after")

@pytest.mark.triguard(confidence=0.9)
@pytest.mark.parametrize("eps", [1, 2])
class TestGate:
    def test_several(self, shared, eps):
        for number in range(3):
            check(f"check {number}", value=0.9 + eps / 100)

    def test_fixtures(self, once, own, eps):
        pass

def test_thread():
    thread = threading.Thread(target=check, args=("in a thread",))
    thread.start()
    thread.join()

def test_fails():
    check(value=0.836)

def test_undecided():
    check(verdict="inconclusive", reason="too few samples")

@pytest.mark.xfail(strict=True)
def test_expected_to_fail():
    check(value=0.5)

@pytest.mark.skip
def test_skipped():
    check()
"""
OUTCOMES = {"passed": 6, "failed": 1, "skipped": 1, "xfailed": 1}
SHARED = {"shared", "once"}
CHECKS = 16
"""Checks of a run in one process, where each wider fixture is made once."""


@pytest.fixture
def gate(project):
    project.makepyfile(test_gate=GATE)
    return project


def checks_of(folder, name="report.json"):
    """The checks of a report, without what differs from one run to the next."""
    checks = json.loads((folder / name).read_text(encoding="utf-8"))["checks"]
    return [{key: value for key, value in each.items() if key != "seconds"} for each in checks]


def own(checks):
    """Leave out the checks of wider fixtures, which every process makes once."""
    return [each for each in checks if each["name"] not in SHARED]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-W", "error", "--strict-markers", "--strict-config", "-p", "no:cacheprovider", "-v"),
        ("-q",),
        ("-qq",),
        ("-vv", "--tb=short", "--durations=3"),
        ("-p", "no:terminal", "-p", "no:cacheprovider"),
    ],
    ids=lambda arguments: arguments[1] if arguments[1:] else arguments[0],
)
def test_every_way_gives_the_same_reports(gate, run, mode, arguments):
    reports = ("--triguard-json=report.json", "--junitxml=junit.xml")
    result = run(*mode, *arguments, *reports)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str()
    assert "INTERNALERROR" not in text
    assert "warning" not in text.lower()
    checks = own(checks_of(gate.path))
    assert len(checks) == CHECKS - len(SHARED)
    suite = next(ElementTree.parse(gate.path / "junit.xml").getroot().iter("testsuite"))
    assert [suite.get(key) for key in ("tests", "failures", "errors", "skipped")] == [
        *("9", "1", "0", "2")
    ]
    shown = {"-q": True, "-qq": False, "-p": False}.get(arguments[0], True)
    assert ("triguard threshold report" in text) == shown
    if arguments[0] not in ("-qq", "-p"):
        result.assert_outcomes(**OUTCOMES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--co",), "*9 tests collected*"),
        (("--co", "-q"), "test_gate.py::TestGate::test_several[[]1[]]"),
        (("--help",), "*--triguard-min-checks=N*"),
        (("--markers",), "@pytest.mark.triguard(*"),
        (("--fixtures",), "triguard_device [[]session scope[]]*"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, tuple) else "",
)
def test_looking_around(gate, run, mode, arguments, expected):
    options = ("--triguard-device=cuda", "--triguard-json=report.json", "--triguard-min-checks=99")
    result = run(*mode, "-W", "error", *arguments, *options)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([expected])
    result.stdout.no_fnmatch_line("*threshold report*")
    assert not (gate.path / "report.json").exists()


def test_switched_off(project, run, mode):
    """Without the plugin a check is an assertion like any other."""
    project.makepyfile(
        test_gate="""
        import sys
        from pytest_triguard.settings import current_session, current_settings

        def test_gate():
            assert current_session() is None or "triguard" not in current_session().nodeid
            assert current_settings().seed == 0
        """
    )
    run(*mode, "-p", "no:triguard", "-W", "error").assert_outcomes(passed=1)


def test_results_on_workers_are_those_of_a_serial_run(gate, run):
    pytest.importorskip("xdist")
    run("-p", "no:xdist", "--triguard-json=serial.json")
    serial = checks_of(gate.path, "serial.json")
    assert len(serial) == CHECKS
    for scheduler in ("load", "loadscope", "loadfile", "worksteal", "loadgroup"):
        run("-n", "2", "--dist", scheduler, "--triguard-json=report.json")
        found = checks_of(gate.path)
        assert own(found) == own(serial), scheduler
        assert {each["name"] for each in found} == {each["name"] for each in serial}


def test_workers_spread_over_the_devices(project, run, run_apart, pytestconfig, monkeypatch):
    """The results are those of the CPU."""
    pytest.importorskip("xdist")
    with simulated_accelerator():  # skips where torch is too old for it
        pass
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    project.makeconftest(
        """
        import pytest
        from tests.simulated_accelerator import simulated_accelerator

        @pytest.hookimpl(tryfirst=True)
        def pytest_configure(config):
            simulation = simulated_accelerator(devices=2)
            simulation.__enter__()
            config.add_cleanup(lambda: simulation.__exit__(None, None, None))
        """
    )
    project.makepyfile(test_gate=REAL)
    serial = ("-p", "no:xdist", "--noconftest", "--triguard-device=cpu")
    run(*serial, "--triguard-json=serial.json").assert_outcomes(passed=6)
    result = run_apart(
        *("-n", "2", "--maxschedchunk=1"),
        *("--triguard-json=report.json", "--triguard-device=sim"),
    )
    result.assert_outcomes(passed=6)
    found, serial = checks_of(project.path), checks_of(project.path, "serial.json")
    assert {each["device"] for each in found} == {"sim:0", "sim:1"}
    about = ("nodeid", "value", "counts", "worst", "verdict")
    assert [[each[key] for key in about] for each in found] == [
        [each[key] for key in about] for each in serial
    ]


REAL = """
import pytest
import torch
from pytest_triguard import Classifier, assert_accuracy, assert_robust

@pytest.fixture(scope="session")
def classifier():
    torch.manual_seed(0)
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)))

@pytest.mark.parametrize("number", range(6))
def test_gate(classifier, number):
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(20, 1, 4, 4, generator=generator)
    labels = classifier(images).argmax(1)
    assert_robust(classifier, images, labels, eps=0.01, at_least=0)
"""


def test_a_crashed_worker_keeps_what_it_had_sent(project, run_apart):
    pytest.importorskip("xdist")
    project.makepyfile(
        test_gate="""
        import os
        from checks import check

        def test_before(): check()
        def test_crash():
            check("lost with the worker")
            os._exit(1)
        def test_after(): check()
        """
    )
    reports = ("--triguard-json=report.json", "--junitxml=junit.xml")
    result = run_apart("-n", "1", *reports)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["  test_before *", "  test_after *", "2 checks: 2 passed"])
    assert checked(project.path) == {"test_before", "test_after"}
    cases = list(ElementTree.parse(project.path / "junit.xml").getroot().iter("testcase"))
    assert [each.get("name") for each in cases if each.find("properties") is not None] == [
        *("test_before", "test_after")
    ]


TELLS = """
import os

def pytest_runtest_logreport(report):
    if report.nodeid.endswith("test_before") and report.when == "teardown":
        if "PYTEST_XDIST_WORKER" not in os.environ:
            open("reported.txt", "w").close()
"""
INTERRUPTED = """
import os, time
from checks import check

def test_before(): check()
def test_waits():
    check("of the test that was interrupted")
    while not os.path.exists("reported.txt"):
        time.sleep(0.01)
    open("waiting.txt", "w").close()
    {wait}
def test_after(): check()
"""


@pytest.fixture
def interrupted(project):
    """Tests of which one stops, when the records of another have been reported."""

    def interrupted(wait):
        project.makeconftest(TELLS)
        project.makepyfile(test_gate=INTERRUPTED.format(wait=wait))
        return project

    return interrupted


def checked(folder):
    """The tests whose checks are in the report of a folder."""
    return {each["nodeid"].partition("::")[2] for each in checks_of(folder)}


def test_an_interrupt_within_a_test_keeps_the_records(interrupted, run_apart, mode):
    project = interrupted("raise KeyboardInterrupt")
    result = run_apart(*mode, "--triguard-json=report.json", "--junitxml=junit.xml")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "INTERNALERROR" not in result.stdout.str()
    assert "test_before" in checked(project.path)
    cases = ElementTree.parse(project.path / "junit.xml").getroot().iter("testcase")
    assert "test_before" in [each.get("name") for each in cases]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
def test_a_signal_keeps_the_records(interrupted, mode):
    """Ctrl-C at a terminal, in each way pytest is run."""
    project = interrupted("time.sleep(60)")
    arguments = (*mode, "--triguard-json=report.json", "--junitxml=junit.xml")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", *arguments],
        cwd=project.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A run of these tests in the background ignores the signal, and so would this one.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (project.path / "waiting.txt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == pytest.ExitCode.INTERRUPTED
    assert "test_before" in checked(project.path)


@pytest.mark.parametrize("call", ["os.replace", "pathlib.Path.write_text"])
def test_a_full_disk_is_told_and_leaves_the_report_before(gate, run_apart, call):
    module, _, name = call.rpartition(".")
    gate.makeconftest(
        f"""
        import errno, os, pathlib, pytest

        @pytest.fixture(scope="session", autouse=True)
        def full():
            yield
            before = {call}
            def refuse(*arguments, **keywords):
                if any("report" in str(each) for each in arguments):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return before(*arguments, **keywords)
            {module}.{name} = refuse
        """
    )
    (gate.path / "report.json").write_text("before")
    result = run_apart("--triguard-json=report.json", "-k", "thread")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["triguard: the JSON report is lost: *No space left on device*"])
    assert (gate.path / "report.json").read_text() == "before"
    assert [each for each in os.listdir(gate.path) if each.endswith(".tmp")] == []


@pytest.mark.parametrize("warnings", ["default", "error"])
def test_a_tree_that_cannot_be_written_to(project, run, warnings):
    """A failed check is told although its counterexamples cannot be saved."""
    project.makepyfile(test_gate=REAL.replace("eps=0.01, at_least=0", "eps=0.9, at_least=1"))
    (project.path / ".triguard").write_text("in the way")
    arguments = ("-p", "no:cacheprovider", "-k", "0", "--triguard-json=report.json")
    result = run(*arguments, "-W", warnings)
    result.assert_outcomes(failed=1, warnings=1 if warnings == "default" else 0, deselected=5)
    result.stdout.fnmatch_lines(["*counterexamples could not be saved to *"])
    (check,) = checks_of(project.path)
    assert (check["verdict"], check["artifacts"]) == ("failed", [])
    assert (project.path / ".triguard").read_text() == "in the way"
