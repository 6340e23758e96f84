"""Terminal, JUnit and JSON tell the same, without pytest-xdist, with it, and on two workers."""

import pytest

GATE = """
import pytest
from checks import check

@pytest.fixture(scope="session")
def shared():
    check("shared", metric="clean accuracy", value=0.99)

def test_passes(shared):
    check(artifacts=[], seed=3)

def test_fails():
    check(value=0.836, counts={"correct": 418}, artifacts=["a/b.npz", "c.npz"])

def test_two_checks():
    check("first", interval=None, confidence=None)
    check("second", metric="drift", value=0.4, threshold=0.6, relation="<", counts={})

def test_undecided():
    check(value=0.9, verdict="inconclusive", reason="too few samples", undefined=20)

def test_undefined():
    check(value=0.0, threshold=0.0, metric="recall", n=0, undefined=500, interval=None)

def test_idle():
    pass
"""

ORDER = [
    ("test_passes", "shared"),
    ("test_passes", "assert_accuracy"),
    ("test_fails", "assert_accuracy"),
    ("test_two_checks", "first"),
    ("test_two_checks", "second"),
    ("test_undecided", "assert_accuracy"),
    ("test_undefined", "assert_accuracy"),
]


@pytest.fixture(scope="module")
def finished(finish, mode):
    return finish(GATE, *mode, "--triguard-seed=3", "-W", "error", "-rA")


def test_a_failed_gate_is_a_failed_test(finished):
    assert finished.code == 1
    suite = next(finished.junit.iter("testsuite"))
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "1",
        "errors": "0",
        "skipped": "0",
    }
    (failure,) = finished.junit.iter("failure")
    assert failure.get("message") == "accuracy 0.836 is not >= 0.9"
    assert "FAILED test_gate.py::test_fails - accuracy 0.836 is not >= 0.9" in finished.output


def test_the_json_report_has_every_check_once_in_order(finished):
    checks = finished.report["checks"]
    found = [(each["nodeid"].partition("::")[2], each["name"]) for each in checks]
    assert found == ORDER
    assert [each["verdict"] for each in checks] == [
        *("passed", "passed", "failed", "passed", "passed", "inconclusive", "passed")
    ]


def test_the_terminal_shows_the_same_order_and_numbers(finished):
    table = finished.output.partition("triguard threshold report")[2].partition("7 checks:")[0]
    rows = [line.split() for line in table.splitlines() if line.startswith("  test_")]
    assert [row[0].rstrip(":") for row in rows] == [test for test, _ in ORDER]
    assert "0.836  [0.806, 0.856]  >= 0.9     -0.064  418/500  failed" in table
    assert "      too few samples" in table
    assert "7 checks: 5 passed, 1 failed, 1 inconclusive" in finished.output


def test_the_junit_file_has_short_properties(finished):
    assert finished.properties("test_fails") == {
        "triguard.assert_accuracy.metric": "accuracy",
        "triguard.assert_accuracy.value": "0.836",
        "triguard.assert_accuracy.interval_low": repr(0.836 - 0.03),
        "triguard.assert_accuracy.interval_high": repr(0.836 + 0.02),
        "triguard.assert_accuracy.confidence": "0.95",
        "triguard.assert_accuracy.relation": ">=",
        "triguard.assert_accuracy.threshold": "0.9",
        "triguard.assert_accuracy.verdict": "failed",
        "triguard.assert_accuracy.n": "500",
        "triguard.assert_accuracy.undefined": "0",
        "triguard.assert_accuracy.seed": "3",
        "triguard.assert_accuracy.artifact": "a/b.npz, c.npz",
    }


def test_what_there_is_none_of_is_no_property(finished):
    first = {
        name.rpartition(".")[2]
        for name in finished.properties("test_two_checks")
        if ".first." in name
    }
    assert first.isdisjoint({"interval_low", "interval_high", "confidence", "artifact"})
    assert {"value", "metric", "verdict"} <= first


def test_every_check_of_a_test_has_its_properties(finished):
    for test in dict(ORDER):
        names = {name.split(".")[1] for name in finished.properties(test)}
        assert names == {name for each, name in ORDER if each == test}
    assert finished.properties("test_idle") == {}


def test_the_suite_states_what_the_run_was(finished):
    suite = next(finished.junit.iter("testsuite"))
    stated = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
    versions = finished.report["run"]["versions"]
    assert stated == {
        "triguard.device": "cpu",
        "triguard.seed": "3",
        "triguard.version": versions["pytest-triguard"],
        "triguard.torch": versions["torch"],
    }


def test_there_are_no_warnings(finished):
    assert "warning" not in finished.output.lower()


def test_other_properties_are_left_alone(project, run):
    project.makepyfile(
        test_gate="""
        from checks import check

        def test_gate(record_property):
            record_property("mine", 1)
            check()
        """
    )
    run("--junitxml=junit.xml", "-o", "junit_family=xunit1").assert_outcomes(passed=1)
    text = (project.path / "junit.xml").read_text()
    assert 'name="mine" value="1"' in text
    assert 'name="triguard.assert_accuracy.value" value="0.964"' in text


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_crashed_worker_keeps_what_it_had_sent(project, run_apart, attempts):
    pytest.importorskip("xdist")
    project.makepyfile(
        test_gate="""
        import os
        from checks import check

        def test_before(): check()
        def test_crash(): os._exit(1)
        def test_after(): check()
        """
    )
    result = run_apart("-n", str(attempts), "--triguard-json=report.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["2 checks: 2 passed"])
