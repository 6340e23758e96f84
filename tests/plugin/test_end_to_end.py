"""A failing gate is a failed test in pytest, JUnit, JSON and terminal, with the same numbers.

The command it names gives the same numbers again.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

QUIET = ("-p", "no:randomly", "-p", "no:rerunfailures", "-p", "no:timeout")
CONFTEST = """
import pytest
import torch
from torch import nn
from pytest_triguard import Classifier

@pytest.fixture(scope="session")
def triguard_classifier():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        network[-1].weight *= 9
        network[-1].bias -= network(torch.rand(60, 1, 6, 6)).mean(0)
    return Classifier(network, classes=("cat", "dog", "bird"))

@pytest.fixture(scope="session")
def triguard_data(triguard_classifier):
    torch.manual_seed(1)
    images = torch.rand(60, 1, 6, 6)
    labels = triguard_classifier(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    return images, labels
"""
GATE = """
import pytest
from pytest_triguard import (assert_accuracy, assert_attack_success_below, assert_drift_below,
    assert_entropy_below, assert_robust, attributions, backdoors)

SMOOTHGRAD = attributions.get("smoothgrad", copies=4)

def test_accuracy(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.99)

@pytest.mark.parametrize("eps", [0.02, 0.04], ids=["a b's", 'x"$HOME`[*]'])
def test_robust(triguard_classifier, triguard_data, eps):
    assert_robust(triguard_classifier, *triguard_data, eps=eps, at_least=0.999, name="robust rate")

class TestExplanations:
    def test_entropy(self, triguard_classifier, triguard_data):
        images, labels = triguard_data
        assert_entropy_below(triguard_classifier, images, 0.1, labels=labels,
            attribution=SMOOTHGRAD, statistic="p80")

    @pytest.mark.triguard(samples=25, confidence=0.9)
    def test_drift(self, triguard_classifier, triguard_data):
        images, labels = triguard_data
        assert_drift_below(triguard_classifier, images, 1e-3, labels=labels)

def test_undecided(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.85, confidence=0.99)

def test_passes(triguard_classifier, triguard_data):
    trigger = backdoors.get("badnets")
    assert_attack_success_below(triguard_classifier, *triguard_data, threshold=1, trigger=trigger)
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.5)
"""
FAILED = [
    "test_accuracy",
    "test_robust[a b's]",
    'test_robust[x"$HOME`[*]]',
    "test_entropy",
    "test_drift",
    "test_undecided",
]


@dataclass(frozen=True)
class Finished:
    """A run and its reports."""

    folder: Path
    code: int
    output: str
    checks: dict
    workers: bool
    junit: ElementTree.Element

    def case(self, test):
        (found,) = [each for each in self.junit.iter("testcase") if each.get("name") == test]
        return found


def run(folder, *arguments):
    """Run a command line of pytest in a folder, in a process of its own, with every report."""
    outside = ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "NO_COLOR", "FORCE_COLOR")
    environment = {key: value for key, value in os.environ.items() if key not in outside}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *QUIET, *arguments, "--junitxml=junit.xml"],
        cwd=folder,
        env=environment | {"COLUMNS": "140"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "junit.xml").exists(), done.stdout + done.stderr
    report = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    return Finished(
        folder,
        done.returncode,
        done.stdout,
        {
            check["nodeid"].rpartition("::")[2]: check
            for check in report["checks"]
            if "test_passes" not in check["nodeid"]
        },
        "-n" in arguments,
        ElementTree.parse(folder / "junit.xml").getroot(),
    )


@pytest.fixture(scope="module", params=["one process", "two workers"])
def finished(request, tmp_path_factory):
    """The gate, run from the folder above a repository whose name has to be quoted."""
    folder = tmp_path_factory.mktemp("work")
    repository = folder / "my model"
    repository.mkdir()
    (repository / "pytest.ini").write_text("[pytest]\n")
    (repository / "conftest.py").write_text(CONFTEST)
    (repository / "test_gate.py").write_text(GATE)
    workers = ()
    if request.param == "two workers":
        pytest.importorskip("xdist")
        workers = ("-n", "2")
    reports = f"--triguard-json={folder / 'report.json'}"
    saved = f"--triguard-artifacts={folder / 'saved'}"
    return run(folder, "my model", *workers, "--triguard-seed=3", reports, saved)


def test_every_failing_gate_is_a_failed_test(finished):
    assert finished.code == 1
    assert list(finished.checks) == FAILED
    for test in FAILED:
        assert finished.case(test).find("failure") is not None
    assert finished.case("test_passes").find("failure") is None
    assert f"{len(FAILED)} failed, 1 passed" in finished.output
    assert "8 checks: 2 passed, 5 failed, 1 inconclusive" in finished.output


@pytest.mark.parametrize("test", FAILED)
def test_every_report_has_the_same_numbers(finished, test):
    check, case = finished.checks[test], finished.case(test)
    stated = {
        each.get("name").rpartition(".")[2]: each.get("value") for each in case.iter("property")
    }
    assert float(stated["value"]) == check["value"]
    assert [float(stated[f"interval_{end}"]) for end in ("low", "high")] == check["interval"]
    assert (stated["verdict"], stated["metric"]) == (check["verdict"], check["metric"])
    assert (float(stated["threshold"]), int(stated["n"])) == (check["threshold"], check["n"])

    failure = case.find("failure")
    message, text = failure.get("message"), failure.text
    low, high = check["interval"]
    assert message.splitlines()[0] == text.partition("TriGuardFailure: ")[2].splitlines()[0]
    assert message.removeprefix("inconclusive: ").startswith(
        f"{check['metric']} {check['value']:.3f} ("
    )
    interval = f"interval [{low:.3f}, {high:.3f}]"
    assert interval in " ".join(text.split()).replace(" E ", " ")
    row = re.escape(f"{check['value']:.3f}  [{low:.3f}, {high:.3f}]")
    assert re.search(rf"{row}.* {check['verdict']}\n", finished.output)
    assert f"reproduce {check['reproduce']}\n" in text


def test_what_was_saved_is_named_and_breaks_the_network(finished):
    (path,) = finished.checks["test_robust[a b's]"]["artifacts"]
    assert finished.case("test_robust[a b's]").find("failure").text.count(path) == 1
    with np.load(path, allow_pickle=False) as saved:
        ids = [each["id"] for each in finished.checks["test_robust[a b's]"]["worst"]]
        assert saved["ids"].tolist() == [str(each) for each in ids]
        assert np.abs(saved["broken"] - saved["clean"]).max() <= 0.02 + 1e-6
    names = os.listdir(finished.folder / "saved")
    assert sorted(re.sub(r"^check-[a-z0-9-]+", "", each) for each in names) == [
        ".npz",
        ".npz",
        ".png",  # of entropy and drift
        ".png",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="commands are quoted for a shell")
@pytest.mark.parametrize("test", ['test_robust[x"$HOME`[*]]', "test_drift"])
def test_the_command_gives_the_same_numbers_again(finished, test):
    """Run through a shell, from the folder pytest was called in; pytest is that of this test."""
    if finished.workers:
        pytest.skip("the commands are the same, which is tested elsewhere")
    check = finished.checks[test]
    program, _, arguments = check["reproduce"].partition("pytest ")
    assert program in ("", "python -m ")
    again = finished.folder / "again.json"
    again.unlink(missing_ok=True)
    words = (sys.executable, "-m", "pytest", *QUIET, f"--triguard-json={again}")
    subprocess.run(
        f"{shlex.join(words)} {arguments}",
        shell=True,
        cwd=finished.folder,
        capture_output=True,
        check=False,
    )
    (found,) = json.loads(again.read_text(encoding="utf-8"))["checks"]
    for name in ("nodeid", "name", "value", "interval", "counts", "worst", "passes", "data"):
        assert found[name] == check[name], name
    assert (found["classifier"], found["seed"], found["chunk"]) == (
        check["classifier"],
        check["seed"],
        check["chunk"],
    )


def test_within_one_process_it_is_a_failed_test_too(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_gate=GATE)
    result = pytester.runpytest_inprocess(*QUIET, "-p", "no:xdist", "-k", "accuracy or passes")
    result.assert_outcomes(failed=1, passed=1, deselected=5)
    result.stdout.fnmatch_lines(
        [
            "E       pytest_triguard.TriGuardFailure: accuracy 0.850 (51/60) is not >= 0.99",
            "E         worst     sample *: label * (*), predicted * (*), logit lead *",
            "*triguard threshold report*",
            "*accuracy*0.850*[[]0.734, 0.929[]]*failed",
            "FAILED test_gate.py::test_accuracy - accuracy 0.850*",
        ]
    )
