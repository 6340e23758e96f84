"""The example is a model repository as a user would have it: one network passes, one is caught."""

import json
import shutil
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "explanations_under_attack"
QUIET = (
    "-p",
    "no:randomly",
    "-p",
    "no:rerunfailures",
    "-p",
    "no:timeout",
    "-p",
    "no:cacheprovider",
)

pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")


@pytest.fixture
def example(pytester, monkeypatch):
    """A copy of the example; its trained networks are kept where the example keeps them."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(EXAMPLE, pytester.path, dirs_exist_ok=True)
    shutil.rmtree(pytester.path / ".cache", ignore_errors=True)
    (EXAMPLE / ".cache").mkdir(exist_ok=True)
    (pytester.path / ".cache").symlink_to(EXAMPLE / ".cache", target_is_directory=True)
    return pytester


def test_one_network_passes_and_one_is_caught(example):
    result = example.runpytest_subprocess(*QUIET, "--triguard-json=report.json")
    result.assert_outcomes(passed=6)
    checks = json.loads((example.path / "report.json").read_text())["checks"]
    attacked = [each for each in checks if each["assertion"] == "assert_explanation_robust"]
    verdicts = {
        nodeid: [each["verdict"] for each in attacked if nodeid in each["nodeid"]]
        for nodeid in ("test_explanations_hold", "test_the_gate_catches_the_ordinary_network")
    }
    assert list(verdicts.values()) == [["passed"] * 2, ["failed"] * 2]
    for each in attacked:
        assert each["undefined"] <= 2
        assert each["parameters"]["eps"] == 0.1
