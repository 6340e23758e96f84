"""What users see, whole: the output of small gates at 80 and 120 columns.

It is compared with the files in `golden/`. After a wanted change write them anew, and read the
diff before you commit it:

    UPDATE_GOLDEN=1 python -m pytest tests/plugin/test_golden.py
"""

import os
import re
from pathlib import Path

import pytest
import scipy.stats  # noqa: F401 - a run within this process would load parts of numpy anew

import pytest_triguard.assertions  # noqa: F401  else each run would have verdicts of its own

GOLDEN = Path(__file__).parent / "golden"
CONFTEST = """
import os
import pytest
import torch
from pytest_triguard import Classifier

@pytest.fixture(scope="session")
def triguard_classifier():
    module = torch.nn.Flatten()
    if "DOGS" in os.environ:  # a model that sees more dogs than there are
        module = torch.nn.Sequential(module, torch.nn.Linear(3, 3))
        module[1].weight.data, module[1].bias.data = torch.eye(3), torch.tensor([0, 0.05, 0])
    return Classifier(module, classes=("cat", "dog", "bird"))

@pytest.fixture(scope="session")
def triguard_data():
    labels = torch.arange(40) % 3
    images = torch.full((40, 3), 0.4)
    images[torch.arange(40), labels] += torch.linspace(-0.1, 0.5, 40)
    return images.view(40, 1, 1, 3), labels
"""
BEGIN = """
import pytest
from pytest_triguard import assert_accuracy, assert_robust, assert_trigger_recall, backdoors

"""
CASES = {
    "pass": """
def test_accuracy(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.8)

@pytest.mark.parametrize("eps", [0.01, 0.05])
def test_robust_accuracy(triguard_classifier, triguard_data, eps):
    assert_robust(triguard_classifier, *triguard_data, eps=eps, at_least=0.6)
""",
    "fail": """
def test_accuracy(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.8)

class TestRobustness:
    def test_small_ball(self, triguard_classifier, triguard_data):
        assert_robust(triguard_classifier, *triguard_data, eps=0.05, at_least=0.9, name="eps 0.05")
""",
    "inconclusive": """
@pytest.mark.triguard(confidence=0.95)
def test_accuracy(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.8)
""",
    "regression": """
def test_accuracy(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.7, max_regression=0.02)

def test_robust_accuracy(triguard_classifier, triguard_data):
    assert_robust(triguard_classifier, *triguard_data, eps=0.05, at_least=0.5, max_regression="50%")

def test_new(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.7)
""",
    "comparison": """
import torch
from pytest_triguard import Classifier, assert_faithful

class Biased(torch.nn.Flatten):  # a model that sees more dogs than there are
    def __init__(self, by):
        super().__init__()
        self.by = torch.tensor([0.0, by, 0.0])

    def forward(self, images):
        return super().forward(images) + self.by

@pytest.mark.triguard(compare="model")
@pytest.mark.parametrize("model", [0.3, 0.02, 0.0], ids=["biased", "leaning", "even"])
def test_accuracy(model, triguard_data):
    assert_accuracy(Classifier(Biased(model)), *triguard_data, at_least=0.5)

@pytest.mark.parametrize("model", [2.0, 0.0], ids=["biased", "even"])
class TestModels:
    @pytest.mark.triguard(compare="attribution")
    @pytest.mark.parametrize("attribution", ["gradient_x_input", "saliency"])
    def test_insertion(self, model, triguard_data, attribution):
        found = Classifier(Biased(model))
        assert_faithful(found, *triguard_data, attribution=attribution, insertion_at_least=0.3)

    @pytest.mark.triguard(compare=("model", "attack"))
    @pytest.mark.parametrize("attack", ["fgsm"])
    def test_robust_accuracy(self, model, triguard_data, attack):
        found = Classifier(Biased(model))
        assert_robust(found, *triguard_data, attack=attack, eps=0.01, at_least=0.2)
""",
}
"""Test file by name of the case."""


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("case", CASES)
def test_output(project, run, monkeypatch, case, width):
    monkeypatch.setenv("COLUMNS", str(width))
    project.makeconftest(CONFTEST)
    project.makepyfile(test_gate=BEGIN + CASES[case])
    if case == "regression":
        known = ("--triguard-baseline=known", "--triguard-chunk=64", "-p", "no:xdist")
        assert run(*known, "--triguard-update", "--deselect=test_gate.py::test_new").ret == 0
        monkeypatch.setenv("DOGS", "many")
        monkeypatch.setenv("PYTEST_ADDOPTS", "--triguard-baseline=known")
    arguments = ("--tb=short", "--triguard-chunk=64", "--triguard-artifacts=kept", "-p", "no:xdist")
    found = settled(run(*arguments).outlines, project.path)
    file = GOLDEN / f"{case}-{width}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(found, encoding="utf-8", newline="\n")
    assert found == file.read_text(encoding="utf-8")
    table = found.partition("triguard threshold report")[2]
    assert max(map(len, table.splitlines())) <= width


def settled(lines, folder):
    """Return the output from the first test on, without what differs from run to run."""
    begin = next(place for place, line in enumerate(lines) if line.startswith("test_gate.py"))
    text = "\n".join(lines[begin:]) + "\n"
    text = text.replace(f"{folder}{os.sep}", "").replace("python -m pytest", "pytest")
    return re.sub(r" in \d+\.\d+s =*", lambda found: " in 0.12s ".ljust(len(found[0]), "="), text)
