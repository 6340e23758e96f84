"""Checks inside tests of hypothesis: the worst is kept, all are counted, the least is reported."""

import json

import pytest

pytest.importorskip("hypothesis")

PROFILE = """
import pytest
from checks import check
from hypothesis import example, given, settings, strategies as st
from pathlib import Path

pytestmark = pytest.mark.triguard
calls = Path(__file__).with_name("calls.txt")
quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)
"""

PASSING = f"""{PROFILE}
@quick
@given(percent=st.integers(0, 9))
@example(percent=9)
def test_holds(percent):
    check("gate", value=1 - percent / 100)
"""

FAILING = f"""{PROFILE}
@quick
@given(percent=st.integers(0, 60))
def test_breaks(percent):
    with calls.open("a") as file:
        file.write(".")
    check("gate", value=1 - percent / 100)

@quick
@given(percent=st.integers(0, 60))
def test_breaks_unnamed(percent):
    if percent % 2:
        check(value=1 - percent / 100)
    else:
        check(value=1 - percent / 100)
"""


def test_the_worst_record_is_kept_with_the_number_of_evaluations(finish, mode):
    done = finish(PASSING, *mode)
    assert done.code == 0, done.output
    (found,) = done.report["checks"]
    assert (found["name"], found["value"], found["verdict"]) == ("gate", 0.91, "passed")
    assert 10 <= found["evaluations"] <= 31


def test_every_evaluation_is_counted_those_of_shrinking_too(project, run):
    project.makepyfile(test_gate=FAILING)
    result = run("--triguard-json=report.json", "-k", "test_breaks and not unnamed")
    result.assert_outcomes(failed=1)
    (found,) = json.loads((project.path / "report.json").read_text())["checks"]
    assert found["evaluations"] == len((project.path / "calls.txt").read_text()) > 5


def test_the_message_is_that_of_the_minimal_example(finish, mode):
    done = finish(FAILING, *mode)
    assert done.code == 1
    assert "Flaky" not in done.output
    assert "accuracy 0.89 is not >= 0.9" in done.output, "the threshold is just missed"
    assert "percent=11" in done.output
    for case in done.junit.iter("testcase"):
        assert "accuracy 0.89 is not >= 0.9" in case.find("failure").get("message")
    by_test = {each["nodeid"].partition("::")[2]: each for each in done.report["checks"]}
    found = by_test["test_breaks"]
    assert found["verdict"] == "failed"
    assert found["value"] < 0.89, "the record is that of the worst example"
    assert found["evaluations"] > 5
    assert done.properties("test_breaks")["triguard.gate.value"] == str(found["value"])


def test_a_failure_is_replayed_from_the_database_of_hypothesis(project, run):
    project.makepyfile(test_gate=FAILING.replace(", derandomize=True, database=None", ""))
    for _ in range(2):
        result = run("-k", "test_breaks and not unnamed", "--triguard-json=report.json")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*TriGuardFailure: accuracy 0.89 is not >= 0.9"])
        result.stdout.no_fnmatch_line("*Flaky*")
    first, *_ = json.loads((project.path / "report.json").read_text())["checks"]
    assert first["evaluations"] < 30, "the second run begins with what the first one found"


def test_two_checks_in_one_property_test_keep_a_record_each(project, run):
    project.makepyfile(
        test_gate=f"""{PROFILE}
@quick
@given(percent=st.integers(0, 60))
def test_two(percent):
    check("left", value=1 - percent / 1000)
    if percent > 30:
        check("right", value=0.5)
"""
    )
    result = run("--triguard-json=report.json")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*Flaky*")
    checks = json.loads((project.path / "report.json").read_text())["checks"]
    assert [(each["name"], each["verdict"]) for each in checks] == [
        ("left", "passed"),
        ("right", "failed"),
    ]
    assert 0 < checks[1]["evaluations"] < checks[0]["evaluations"]


def test_a_marked_property_test_without_a_check_fails(project, run):
    project.makepyfile(
        test_gate=f"""{PROFILE}
@quick
@given(percent=st.integers(0, 60))
def test_forgot(percent):
    assert percent < 100
"""
    )
    run().assert_outcomes(failed=1)


MODEL = '''
import pytest
import torch
from torch import nn

from pytest_triguard import Classifier


@pytest.fixture(scope="session")
def triguard_classifier():
    """Tells bright images from dark ones."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16) / 16)
        network[1].bias.copy_(torch.tensor([0.5, -0.5]))
    return Classifier(network)


@pytest.fixture(scope="session")
def triguard_data():
    """Half of them dark, half of them bright."""
    return torch.tensor([0.2, 0.3, 0.7, 0.8]).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), torch.tensor(
        [0, 0, 1, 1]
    )
'''

ROBUST = """
import pytest
from hypothesis import given, settings, strategies as st
from pytest_triguard import assert_accuracy
from pytest_triguard.strategies import perturbations

pytestmark = pytest.mark.triguard
quick = settings(deadline=None, derandomize=True, database=None)

@pytest.mark.parametrize("eps", [0.1, 0.3])
@quick
@given(data=st.data())
def test_small_changes_change_nothing(triguard_classifier, triguard_data, eps, data):
    images, labels = triguard_data
    perturbed = data.draw(perturbations(images, eps))
    assert_accuracy(triguard_classifier, perturbed, labels, at_least=1.0, name="unmoved")
"""


def test_a_metamorphic_test_as_a_user_writes_it(project, run):
    """The nearest images are 0.2 from the boundary, so eps 0.1 holds and eps 0.3 does not."""
    project.makeconftest(MODEL)
    project.makepyfile(test_gate=ROBUST)
    result = run("--triguard-json=report.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*Flaky*")
    result.stdout.no_fnmatch_line("*function-scoped fixture*")
    result.stdout.fnmatch_lines(["*Stroke(*", "*FAILED *0.3*"])
    checks = json.loads((project.path / "report.json").read_text())["checks"]
    found = {each["nodeid"].partition("[")[2]: each for each in checks}
    assert {key: each["verdict"] for key, each in found.items()} == {
        "0.1]": "passed",
        "0.3]": "failed",
    }
    assert all(each["name"] == "unmoved" for each in checks)
    assert found["0.1]"]["evaluations"] >= 100
    assert found["0.3]"]["value"] < 1
