"""A test that is marked triguard and passes without a check is a hole in the gate: it fails."""

import pytest


def outcome(project, run, body, decorators=""):
    project.makepyfile(
        test_gate=f"""
import pytest
from checks import check

@pytest.fixture
def checked():
    check()

@pytest.mark.triguard
{decorators}
{body}
"""
    )
    return run("-rA", "--junitxml=junit.xml")


def test_it_fails(project, run):
    result = outcome(project, run, "def test_gate(): pass")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["test_gate.py::test_gate is marked triguard but passed without*"])
    assert "<failure" in (project.path / "junit.xml").read_text()


def test_it_fails_in_every_mode(project, run_apart, mode):
    project.makepyfile(
        test_gate="import pytest\npytestmark = pytest.mark.triguard\ndef test_gate(): pass"
    )
    result = run_apart(*mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)


def test_a_rerun_does_not_hide_it(project, run_with):
    project.makepyfile(
        test_gate="import pytest\npytestmark = pytest.mark.triguard\ndef test_gate(): pass"
    )
    result = run_with(["rerunfailures"], "--reruns=1")
    result.stdout.fnmatch_lines(["*1 failed, 1 rerun*"])


@pytest.mark.parametrize("strict", [False, True])
def test_an_expected_failure_that_passed_fails(project, run, strict):
    result = outcome(project, run, "def test_gate(): pass", f"@pytest.mark.xfail(strict={strict})")
    result.assert_outcomes(failed=1)
    assert "<failure" in (project.path / "junit.xml").read_text()


@pytest.mark.parametrize(
    ("body", "decorators", "expected"),
    [
        ("def test_gate(): check()", "", {"passed": 1}),
        ("def test_gate(checked): pass", "", {"passed": 1}),
        ("def test_gate(): pytest.skip('no data')", "", {"skipped": 1}),
        ("def test_gate(): pass", "@pytest.mark.skip(reason='x')", {"skipped": 1}),
        ("def test_gate(): 1 / 0", "", {"failed": 1}),
        ("def test_gate(absent): pass", "", {"errors": 1}),
        ("def test_gate(): 1 / 0", "@pytest.mark.xfail", {"xfailed": 1}),
        ("def test_gate(): check(value=0.1)", "@pytest.mark.xfail", {"xfailed": 1}),
        ("def test_gate(): check()", "@pytest.mark.xfail", {"xpassed": 1}),
    ],
)
def test_others_are_left_alone(project, run, body, decorators, expected):
    result = outcome(project, run, body, decorators)
    result.assert_outcomes(**expected)
    assert "passed without a check" not in result.stdout.str()


def test_a_marked_class_is_judged_test_by_test(project, run):
    project.makepyfile(
        test_gate="""
        import pytest
        from checks import check

        @pytest.mark.triguard
        class TestGate:
            def test_checks(self): check()
            def test_does_not(self): pass
        """
    )
    run().assert_outcomes(passed=1, failed=1)


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_subtests_are_not_judged(project, run):
    project.makepyfile(
        test_gate="""
        import pytest
        from checks import check

        @pytest.mark.triguard
        def test_gate(subtests):
            with subtests.test("before"):
                pass
            check()
        """
    )
    result = run("--triguard-json=report.json")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["1 check: 1 passed"])
