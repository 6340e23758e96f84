"""A rerun replaces what the attempt before it left."""

import json
from xml.etree import ElementTree

import pytest

pytest.importorskip("pytest_rerunfailures")

GATE = """
import pytest
from checks import check

attempts = []

@pytest.fixture(scope="session")
def shared():
    check("shared")

@pytest.fixture
def own():
    check("own", value=0.91 if not attempts else 0.99)

def test_flaky(shared, own):
    attempts.append(1)
    if len(attempts) == 1:
        check("first only")
    check("gate", value=0.5 if len(attempts) == 1 else 0.95)
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_the_last_attempt_counts(project, workers):
    if workers:
        pytest.importorskip("xdist")
    project.makepyfile(test_gate=GATE)
    result = project.runpytest_subprocess(
        *("-p", "no:randomly", "-p", "no:timeout", "--reruns=2", "-rA", *workers),
        *("--triguard-json=report.json", "--junitxml=junit.xml"),
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["3 checks: 3 passed", "*1 passed*1 rerun*"])
    checks = json.loads((project.path / "report.json").read_text())["checks"]
    found = {each["name"]: (each["value"], each["evaluations"]) for each in checks}
    assert found == {"shared": (0.964, 1), "own": (0.99, 1), "gate": (0.95, 1)}
    assert list(found) == ["shared", "own", "gate"]
    *_, last = ElementTree.parse(project.path / "junit.xml").getroot().iter("testcase")
    stated = {each.get("name"): each.get("value") for each in last.iter("property")}
    assert stated["triguard.gate.value"] == "0.95"
    assert not [name for name in stated if "first only" in name]
