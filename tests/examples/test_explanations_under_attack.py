"""The example is a model repository as a user would have it: one network passes, one is caught."""

import json

import pytest

EXAMPLE = "explanations_under_attack"

pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")


def test_one_network_passes_and_one_is_caught(example):
    result = example.runpytest_subprocess("--triguard-json=report.json")
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
