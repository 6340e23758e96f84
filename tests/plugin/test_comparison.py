"""Checks of a parametrised test in one table: under every mode, and in every report."""

from __future__ import annotations

import pytest

import pytest_triguard.ranking  # noqa: F401 - a run within this process would load numpy anew
from pytest_triguard.reporting.ranked import sentence

GATE = """
import pytest
from checks import check

VALUES = {"best": "Y" * 40 + "N" * 10, "good": "Y" * 12 + "N" * 38, "bad": "N" * 50}

def measure(method, **more):
    outcomes = VALUES[method]
    value = outcomes.count("Y") / 50
    kept = {"outcomes": outcomes}
    check(value=value, threshold=0.1, n=50, per_sample=kept, data="d", **more)

@pytest.mark.triguard(compare="method")
@pytest.mark.parametrize("method", ["bad", "best", "good"])
def test_gate(method):
    measure(method)

@pytest.mark.triguard(compare="method")
@pytest.mark.parametrize(("size", "colour"), [(1, 2), (3, 4)], ids=["a-b", "c"])
@pytest.mark.parametrize("method", [pytest.param("best", id="the-best"), "good"])
def test_others(method, size, colour):
    measure(method)

@pytest.mark.parametrize("method", ["best", "good"])
def test_unmarked(method):
    measure(method)
"""


@pytest.fixture(scope="module")
def finished(finish, mode):
    return finish(GATE, *mode)


def test_json_has_one_table_for_each_choice_of_the_other_parameters(finished):
    found = finished.report["comparisons"]
    test = "test_gate.py::test_"
    tables = [(each["test"], each["fixed"], each["best"]) for each in found]
    assert tables == [
        (f"{test}gate", "", "best"),
        (f"{test}others", "a-b", "the-best"),
        (f"{test}others", "c", "the-best"),
    ]
    rows = found[0]["rows"]
    assert [row["label"] for row in rows] == ["best", "good", "bad"]
    assert [row["verdict"] for row in rows] == ["passed", "passed", "failed"]
    assert rows[1]["difference"] == pytest.approx(-0.56)
    low, high = rows[1]["difference_interval"]
    assert low < -0.56 < high < 0
    nodeids = {each["nodeid"] for each in finished.report["checks"]}
    assert all(row["nodeid"] in nodeids for each in found for row in each["rows"])
    compared = [each["compared"] for each in finished.report["checks"]]
    assert compared.count(None) == 2
    assert not any("per_sample" in each for each in finished.report["checks"])


def test_the_terminal_shows_the_tables(finished):
    lines = finished.output.partition("triguard comparison")[2].splitlines()
    assert "test_gate.py::test_gate by method" in lines
    assert "test_gate.py::test_others[a-b] by method" in lines
    table = lines[lines.index("test_gate.py::test_gate by method") + 2 :]
    assert table[0].split() == [
        "method",
        *["value", "95%", "interval", "difference", "95%", "jointly", "place"],
    ]
    assert [(line.split()[0], line.split()[-1]) for line in table[1:4]] == [
        ("best", "best"),
        ("good", "worse"),
        ("bad", "worse"),
    ]
    assert table[4] == "    best: best (95 % confidence for all differences together)"
    assert "test_unmarked" not in "\n".join(lines).partition("short test summary")[0]


def test_junit_has_the_tables_as_properties_of_the_suite(finished):
    suite = finished.junit if finished.junit.tag == "testsuite" else finished.junit[0]
    found = {each.get("name"): each.get("value") for each in suite.find("properties")}
    about = "triguard.compared.test_gate.py::test_gate by method.assert_accuracy"
    assert found[about] == "best: best (95 % confidence for all differences together)"
    assert found[f"{about}.good.place"] == "worse"
    assert float(found[f"{about}.good.difference"]) == pytest.approx(-0.56)
    assert float(found[f"{about}.good.difference_high"]) < 0
    assert f"{about}.best.difference" not in found


def test_quiet_runs_show_no_table(project, run):
    project.makepyfile(test_gate=GATE)
    assert "triguard comparison" not in run("-q", "-p", "no:xdist").stdout.str()


def test_a_single_test_has_no_rivals(project, run):
    project.makepyfile(test_gate=GATE)
    assert "comparison" not in run("-k", "test_gate and good", "-p", "no:xdist").stdout.str()


def test_a_baseline_holds_only_checks_whose_thresholds_are_met(project, run):
    project.makepyfile(test_gate=GATE)
    run("-p", "no:xdist", "--triguard-baseline=known", "--triguard-update", "-k", "test_gate")
    written = (project.path / "known" / "test_gate.py.json").read_text(encoding="utf-8")
    assert "test_gate[best]" in written
    assert "test_gate[bad]" not in written


def test_a_parameter_that_is_none_of_the_test_ends_the_run(project, run):
    project.makepyfile(test_gate=GATE.replace('compare="method"', 'compare="methods"'))
    result = run("-p", "no:xdist")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: test_gate.py::test_gate[[]bad]: the marker triguard: compare: the test has no "
            "parameter 'methods'; did you mean 'method'? (it has: method)"
        ]
    )


def test_a_tie_names_all_it_is_between():
    class Ranking:
        confidence, best, tied = 0.9, None, ["a", "b", "c"]

    told = "tie: a, b and c cannot be told apart (90 % confidence for all differences together)"
    assert sentence(Ranking) == told
