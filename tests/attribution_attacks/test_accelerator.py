"""Attacks on explanations on an accelerator: the results of the CPU, and nothing read."""

from __future__ import annotations

import pytest
import torch

from pytest_triguard.running import running
from tests.attribution_attacks.table import TABLE, every_method, every_row, method, same
from tests.networks import problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator


@every_row
def test_an_accelerator_gives_the_results_of_the_cpu(row):
    subject, inputs, targets = problem("conv", 4)
    attack = row.attack(restarts=2, steps=1)
    with with_settings(chunk=3):
        expected = attack(subject, inputs, targets)
    with simulated_accelerator(), with_settings(device="sim", chunk=3):
        assert same(attack(subject, inputs, targets), expected, 1e-9)


@every_method
def test_an_accelerator_gives_the_results_of_the_cpu_for_every_map(name):
    subject, inputs, targets = problem("smooth", 2)
    attack = method_attack(name, steps=1)
    with with_settings(chunk=2):
        expected = attack(subject, inputs, targets)
    with simulated_accelerator(), with_settings(device="sim", chunk=2):
        assert same(attack(subject, inputs, targets), expected, 1e-9)


def method_attack(name, **changed):
    return TABLE[0].attack(attribution=method(name), **changed)


def crossings(attack, chunk):
    """Return what crosses the border to the host in the loop of an attack."""
    subject, inputs, _ = problem("linear", 4)
    with (
        simulated_accelerator() as sim,
        with_settings(device="sim", chunk=chunk),
        running(subject, inputs) as run,
    ):
        sim.reset()
        found = list(attack.stream(run))
        assert sum(len(each.batch) for each in found) == 4
        return list(sim.host_reads), list(sim.uploads), list(sim.cpu_factories)


@pytest.mark.parametrize("chunk", [3, 64])
@every_row
def test_the_host_reads_nothing_and_steps_send_nothing(row, chunk):
    short, long = (crossings(row.attack(steps=steps), chunk) for steps in (1, 3))
    assert short[0] == long[0] == []
    assert long[1:] == short[1:]


@every_method
def test_the_host_reads_nothing_whatever_the_map(name):
    assert crossings(method_attack(name, steps=1), 2)[0] == []


@every_row
def test_an_accelerator_without_float64_is_enough_for_float32(row):
    subject, inputs, targets = problem("smooth", 4, torch.float32)
    expected = row.attack(steps=1)(subject, inputs, targets)
    with simulated_accelerator(float64=False), with_settings(device="sim"):
        assert same(row.attack(steps=1)(subject, inputs, targets), expected, 1e-5)


@every_row
def test_results_come_back_to_the_device_of_the_inputs(row):
    subject, inputs, targets = problem("conv", 3)
    with simulated_accelerator():
        found = row.attack(steps=1)(subject, inputs.to("sim"), targets)
        assert {each.device.type for each in vars(found).values() if torch.is_tensor(each)} == {
            "sim"
        }
        expected = row.attack(steps=1)(subject, inputs, targets)
        assert torch.equal(found.adversarial.cpu(), expected.adversarial)
