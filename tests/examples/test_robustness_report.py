"""The example is a model repository as a user would have it: its gate holds, its report is true."""

import json
import re
import sys

import pytest

EXAMPLE = "robustness_report"

pytest.importorskip("mlxtend")


def run(example, *options):
    """Return what the checks of the example found, if all its tests passed."""
    result = example.runpytest_subprocess(*options, "--triguard-json=report.json")
    assert result.ret == pytest.ExitCode.OK
    return json.loads((example.path / "report.json").read_text())["checks"]


def test_hidden_gradients_are_told(example):
    _, seems, caught = run(example, "-k", "not autoattack")
    assert (seems["verdict"], caught["verdict"]) == ("passed", "failed")
    assert set(seems["warnings"]) == {"zero gradients"}
    assert set(caught["warnings"]) == {"zero gradients", "black box beats white box"}
    assert caught["counts"]["falsified by square"] > caught["counts"]["falsified by pgd"]


@pytest.mark.slow
def test_the_gate_holds_and_says_which_attack_broke_what(example):
    (found,) = run(example, "-k", "autoattack")
    counts, names = found["counts"], ["apgd_ce", "apgd_t", "fab_t", "square"]
    broken = sum(counts[f"falsified by {name}"] for name in names)
    assert broken + counts["not falsified by autoattack"] <= found["n"] == 10
    assert all(f"forward passes of {name}" in found["diagnostics"] for name in names)


@pytest.mark.slow
def test_the_report_is_the_one_in_the_readme(example):
    done = example.run(sys.executable, "report.py")
    shown = (example.path / "README.md").read_text().split("```text\n")[1].split("```")[0]
    broke = re.compile(r"^(\w+) +(\d+) +\d+ +\d+ ", re.MULTILINE)
    found, expected = (broke.findall(each) for each in ("\n".join(done.outlines), shown))
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, count), (_, known) in zip(found, expected, strict=True):
        assert abs(int(count) - int(known)) <= 3, "training differs a little between machines"
