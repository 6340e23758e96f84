"""Attributions on an accelerator: the maps of the CPU, and nothing read by the host."""

from __future__ import annotations

import pytest
import torch

from pytest_triguard import attributions
from pytest_triguard.engine import estimators
from pytest_triguard.running import running
from tests.attributions.table import TABLE, close, every_row
from tests.networks import SHAPES, images, problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator

BASELINES = ("zero", "blur", "noise", "uniform", "midpoint", images(SHAPES["smooth"], 5, seed=3))


@every_row
def test_an_accelerator_gives_the_maps_of_the_cpu(row):
    subject, inputs, targets = row.problem(5)
    with with_settings(chunk=3):
        expected = row.method()(subject, inputs, targets)
        of_predictions = row.method()(subject, inputs)
    with simulated_accelerator(), with_settings(device="sim", chunk=3):
        assert close(row.method()(subject, inputs, targets), expected)
        assert close(row.method()(subject, inputs), of_predictions)


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b if isinstance(b, str) else "tensor")
def test_baselines_on_an_accelerator_are_those_of_the_cpu(baseline):
    subject, inputs, targets = problem("smooth", 5)
    method = attributions.get("integrated_gradients", baseline=baseline, points=2)
    expected = method(subject, inputs, targets), method.completeness_error(subject, inputs, targets)
    with simulated_accelerator(), with_settings(device="sim", chunk=3):
        assert close(method(subject, inputs, targets), expected[0])
        error = method.completeness_error(subject, inputs, targets)
        assert torch.allclose(error, expected[1], rtol=1e-6)


def crossings(method, chunk, network="linear"):
    """Return what crosses the border to the host in the loop of a method."""
    subject, inputs, _ = problem(network, 4)
    with (
        simulated_accelerator() as sim,
        with_settings(device="sim", chunk=chunk),
        running(subject, inputs) as run,
    ):
        sim.reset()
        maps = [each for _, each in method.stream(run.model, run.samples)]
        assert sum(map(len, maps)) == 4
        return list(sim.host_reads), list(sim.uploads), list(sim.cpu_factories)


@pytest.mark.parametrize("chunk", [1, 64])
@every_row
def test_the_host_reads_nothing_but_who_is_done(row, chunk):
    reads = crossings(row.method(), chunk, row.smallest)[0]
    assert len(reads) <= row.looks


@pytest.mark.parametrize("baseline", ["zero", "blur", "noise", "uniform", "midpoint"])
def test_the_host_reads_nothing_for_a_baseline(baseline):
    method = attributions.get("integrated_gradients", baseline=baseline, points=2)
    assert crossings(method, 3)[0] == []


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.many and not row.looks], ids=lambda row: row.name
)
def test_copies_make_no_tensor_on_the_cpu_and_send_none(row, monkeypatch):
    monkeypatch.setattr(estimators, "_MADE", 1)  # as if the images were large
    short, long = (crossings(row.method(**{row.many: many}), 3) for many in (1, 4))
    assert [call.op for call in long[1]] == [call.op for call in short[1]]
    assert [call.op for call in long[2]] == [call.op for call in short[2]]


@every_row
def test_an_accelerator_without_float64_is_enough_for_float32(row):
    subject, inputs, targets = row.problem(4, torch.float32)
    expected = row.method()(subject, inputs, targets)
    with simulated_accelerator(float64=False), with_settings(device="sim"):
        assert close(row.method()(subject, inputs, targets), expected, 1e-5)


@every_row
def test_maps_come_back_to_the_device_of_the_inputs(row):
    subject, inputs, targets = row.problem(4)
    with simulated_accelerator():
        found = row.method()(subject, inputs.to("sim"), targets)
        assert found.device.type == "sim"
        assert torch.equal(found.cpu(), row.method()(subject, inputs, targets))
