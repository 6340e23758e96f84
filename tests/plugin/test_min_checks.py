"""--triguard-min-checks: a run in which too few checks decided has a failed test of its own."""

from xml.etree import ElementTree

import pytest

GATE = """
import pytest
from checks import check

def test_passes():
    check()

@pytest.mark.skipif("True", reason="no data")
def test_skipped():
    check()

@pytest.mark.xfail
def test_expected_to_fail():
    check("first", value=0.95)
    check("second", value=0.5)

def test_undecided():
    check(verdict="inconclusive")
"""
SHORT = "3 checks decided, but --triguard-min-checks asks for 4 (1 inconclusive; 1 test skipped)"

TOLD = pytest.version_tuple >= (9, 2)
"""Whether the short summary shows the text of a failure that no exception caused."""


@pytest.fixture
def gate(project, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    project.makepyfile(test_gate=GATE)
    return project


def case(folder):
    """The suite and the one test case of the guard in a JUnit file."""
    suite = next(ElementTree.parse(folder / "junit.xml").getroot().iter("testsuite"))
    (found,) = [each for each in suite.iter("testcase") if each.get("name") == "min-checks"]
    return suite, found


def test_too_few_are_a_failed_test_of_their_own(gate, run_apart, mode):
    result = run_apart("--triguard-min-checks=4", "--junitxml=junit.xml", "-rf", *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, passed=2, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "*= FAILURES =*",
            "*_ min-checks _*",
            SHORT,
            "*= triguard threshold report =*",
            f"FAILED triguard::min-checks{f' - {SHORT}' if TOLD else ''}",
        ]
    )
    suite, found = case(gate.path)
    assert (suite.get("tests"), suite.get("failures")) == ("5", "1")
    assert found.get("classname") == "triguard"
    assert found.find("failure").get("message") == SHORT


@pytest.mark.parametrize("asked", [1, 3])
def test_enough_are_no_matter(gate, run, asked):
    result = run(f"--triguard-min-checks={asked}", "--junitxml=junit.xml")
    result.assert_outcomes(passed=2, skipped=1, xfailed=1)
    assert "min-checks" not in (gate.path / "junit.xml").read_text()


def test_it_tells_without_a_terminal(gate, run_apart):
    arguments = ("-p", "no:terminal", "-p", "no:cacheprovider", "--junitxml=junit.xml")
    assert run_apart("--triguard-min-checks=4", *arguments).ret == pytest.ExitCode.TESTS_FAILED
    assert case(gate.path)[1].find("failure") is not None


@pytest.mark.parametrize("selection", [(), ("-k", "nothing")])
def test_no_test_at_all_is_too_few(project, run, selection):
    if selection:
        project.makepyfile(test_gate=GATE)
    result = run("--triguard-min-checks=1", *selection)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, deselected=4 if selection else 0)
    result.stdout.fnmatch_lines(["0 checks decided, but --triguard-min-checks asks for 1 *"])


def test_no_test_at_all_is_too_few_for_workers(project, run_apart):
    pytest.importorskip("xdist")
    result = run_apart("--triguard-min-checks=1", "-n", "2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)


@pytest.mark.parametrize("arguments", [("-x",), ("--maxfail=1",), ("--maxfail=2",)])
def test_a_run_that_stopped_early_is_judged_too(project, run, arguments):
    project.makepyfile(
        test_gate="""
        from checks import check

        def test_fails(): check(value=0.5)
        def test_passes(): check()
        """
    )
    result = run("--triguard-min-checks=3", "--junitxml=junit.xml", *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    decided = "1 check" if "=2" not in arguments[0] else "2 checks"
    result.stdout.fnmatch_lines([f"{decided} decided, but *asks for 3*"])
    assert case(project.path)[1].find("failure") is not None


def test_an_interrupted_run_is_judged_too(project, run_apart):
    project.makepyfile(
        test_gate="""
        from checks import check

        def test_passes(): check()
        def test_interrupted(): raise KeyboardInterrupt
        """
    )
    result = run_apart("--triguard-min-checks=2", "--junitxml=junit.xml")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert case(project.path)[1].find("failure") is not None


def test_files_that_cannot_be_read_are_no_checks(project, run):
    project.makepyfile(test_gate="import absent")
    result = run("--triguard-min-checks=1", "--junitxml=junit.xml")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert case(project.path)[1].find("failure") is not None


def test_looking_around_is_not_judged(gate, run):
    result = run("--triguard-min-checks=99", "--collect-only")
    assert result.ret == pytest.ExitCode.OK
    assert "min-checks" not in result.stdout.str()


@pytest.mark.parametrize("verbosity", ["-qq", "-q", "-v", "-vv"])
def test_it_is_shown_at_every_verbosity(gate, run, verbosity):
    result = run("--triguard-min-checks=4", verbosity)
    result.stdout.fnmatch_lines([f"*{SHORT}"])
    if verbosity.startswith("-v"):
        result.stdout.fnmatch_lines(["triguard::min-checks FAILED*[[]100%]"])


def test_a_next_run_does_not_look_for_it(gate, run):
    run("--triguard-min-checks=4")
    result = run("--last-failed", "--triguard-min-checks=3")
    result.assert_outcomes(passed=2, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["run-last-failure: no previously failed tests, not deselecting*"])


def test_several_checks_of_a_test_count_each_and_a_rerun_counts_once(project, run_with):
    project.makepyfile(
        test_gate="""
        from checks import check

        attempts = []

        def test_flaky():
            attempts.append(1)
            check("first")
            check("second", value=0.95 if len(attempts) == 2 else 0.5)
        """
    )
    assert run_with(["rerunfailures"], "--reruns=1", "--triguard-min-checks=2").ret == 0
    few = run_with(["rerunfailures"], "--reruns=1", "--triguard-min-checks=3")
    few.stdout.fnmatch_lines(["2 checks decided, but *"])


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_a_wrong_number_ends_the_run(gate, run, value):
    result = run(f"--triguard-min-checks={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*argument --triguard-min-checks: '{value}' is not a count*"])


def test_it_has_no_ini_twin(gate, run):
    gate.makefile(".ini", pytest="[pytest]\ntriguard_min_checks = 1\n")
    assert run().ret == pytest.ExitCode.USAGE_ERROR
