"""Checks on an accelerator: the results of the CPU, and few numbers read by the host."""

import numpy as np
import pytest
import torch

from pytest_triguard import TriGuardFailure
from tests.assertions import TABLE, every_assertion, gate_problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator

CHUNK = 4
UNSIFTED = [
    case for case in TABLE if case.title in ("accuracy", "entropy", "drift", "trigger success")
]
"""Checks that pass over every block alike, whatever comes of it."""


@every_assertion
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_accelerator_gives_the_results_of_the_cpu(case, dtype):
    subject, inputs, labels = gate_problem(20, dtype)
    with with_settings(chunk=CHUNK):
        expected = case(subject, inputs, labels)
    float64 = dtype == torch.float64
    with simulated_accelerator(float64=float64), with_settings(device="sim", chunk=CHUNK):
        found = case(subject, inputs, labels)
    tolerance = 1e-9 if float64 else 1e-4
    values, wanted = np.asarray(found.values), np.asarray(expected.values)
    if case.title == "verified" and not float64:
        # What bounds in float32 leave open need not be what those in float64 leave open.
        decided = ~(np.isnan(values) | np.isnan(wanted))
        assert decided.mean() > 0.8
        values, wanted = values[decided], wanted[decided]
    else:
        assert found.counts == expected.counts
    np.testing.assert_allclose(values, wanted, rtol=tolerance, atol=tolerance)
    assert found.n == expected.n
    assert found.record.device.startswith("sim")


@every_assertion
def test_the_default_device_may_be_an_accelerator(case):
    subject, inputs, labels = gate_problem(20)
    expected = case(subject, inputs, labels)
    with simulated_accelerator():
        subject.module.to("sim")
        torch.set_default_device("sim")
        try:
            found = case(subject, inputs.to("sim"), labels.to("sim"))
        finally:
            torch.set_default_device(None)
    assert found.counts == expected.counts


@every_assertion
def test_a_failure_on_an_accelerator_names_and_saves_what_the_cpu_does(case, tmp_path):
    subject, inputs, labels = gate_problem(20)
    records = []
    for device in ("cpu", "sim"):
        with (
            simulated_accelerator(),
            with_settings(device=device, chunk=CHUNK, artifacts=tmp_path / device),
            pytest.raises(TriGuardFailure) as caught,
        ):
            case(subject, inputs, labels, threshold=case.failing)
        records.append(caught.value.record)
    on_cpu, on_sim = records
    assert [each["id"] for each in on_sim.worst] == [each["id"] for each in on_cpu.worst]
    assert len(on_sim.artifacts) == len(on_cpu.artifacts)
    saved = zip(on_sim.artifacts, on_cpu.artifacts, strict=True)
    for ours, theirs in ((ours, theirs) for ours, theirs in saved if ours.endswith(".npz")):
        with np.load(ours) as found, np.load(theirs) as expected:
            np.testing.assert_allclose(found["broken"], expected["broken"], atol=1e-9)


def reads(case, count):
    """Return how often the host reads during a check of so many samples."""
    subject, inputs, labels = gate_problem(count)
    with simulated_accelerator() as sim, with_settings(device="sim", chunk=CHUNK):
        sim.reset()
        case(subject, inputs, labels)
        return len(sim.host_reads)


@pytest.mark.parametrize("case", UNSIFTED, ids=lambda case: case.title)
def test_more_samples_need_no_more_reads(case):
    assert reads(case, 2 * CHUNK) == reads(case, 8 * CHUNK)


@pytest.mark.parametrize(
    ("title", "per_block"),
    [("robust", 3), ("attack success", 3), ("transfer success", 4), ("trigger recall", 3)],
)
def test_reads_grow_with_the_blocks_that_are_sifted_and_not_with_the_samples(title, per_block):
    """Trigger recall sifts twice; an attack of three steps is looked at once per block.

    Transfer judges each block once more, by the other classifier.
    """
    (case,) = [each for each in TABLE if each.title == title]
    assert reads(case, 8 * CHUNK) - reads(case, 2 * CHUNK) <= per_block * 6
