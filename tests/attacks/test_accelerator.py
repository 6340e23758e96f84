"""Attacks on an accelerator: the results of the CPU, and next to nothing read by the host."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_triguard import attacks
from pytest_triguard.attacks import Cascade
from pytest_triguard.engine.iteration import LOOK_EVERY
from pytest_triguard.running import running
from tests.attacks.table import (
    STEPS,
    TABLE,
    one_case,
    plain_rows,
    same,
    some_cases,
    starting_cases,
    untargeted_steps,
)
from tests.networks import CLASSES, problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator


@some_cases
def test_an_accelerator_gives_the_results_of_the_cpu(case):
    subject, inputs, labels = problem("conv", 5)
    targets = case.targets(labels)
    longer = {"steps": LOOK_EVERY + 2} if case.row.whole and case.row.plain else {}
    longer |= {} if case.row.searching else {"trajectory": True}
    attack = case.attack(**longer)
    with with_settings(chunk=3):
        expected = attack(subject, inputs, labels, targets=targets)
    with simulated_accelerator(), with_settings(device="sim", chunk=3):
        found = attack(subject, inputs, labels, targets=targets)
    assert same(found, expected, 1e-9)
    if case.row.searching:
        return
    assert torch.equal(found.trajectory.lengths, expected.trajectory.lengths)
    assert torch.allclose(found.trajectory.points, expected.trajectory.points, rtol=0, atol=1e-9)


@starting_cases
def test_restarts_on_an_accelerator_give_the_results_of_the_cpu(case):
    subject, inputs, labels = problem("conv", 5)
    targets = case.targets(labels)
    attack = case.attack(restarts=2, steps=LOOK_EVERY + 1)
    with with_settings(chunk=3):
        expected = attack(subject, inputs, labels, targets=targets)
    with simulated_accelerator(), with_settings(device="sim", chunk=3):
        assert same(attack(subject, inputs, labels, targets=targets), expected, 1e-9)


def crossings(attack, chunk, samples=4):
    """Return what crosses the border to the host in the loop of an attack, and its outcomes."""
    subject, inputs, labels = problem("linear", samples)
    with (
        simulated_accelerator() as sim,
        with_settings(device="sim", chunk=chunk),
        running(subject, inputs, labels) as run,
    ):
        sim.reset()
        outcomes = list(attack.stream(run.model, run.samples))
        assert sum(len(each.positions) for each in outcomes) == samples
        return len(sim.host_reads), list(sim.uploads), list(sim.cpu_factories)


SPANS = [(LOOK_EVERY + 1, 3), (1, 1), (LOOK_EVERY, 4), (LOOK_EVERY + 1, 1)]


@pytest.mark.parametrize(
    ("row", "steps", "chunk"),
    [
        (row, *span)
        for row in TABLE
        if not row.searching
        for span in SPANS[: None if row.plain else 1]
    ],
    ids=str,
)
def test_the_host_reads_once_per_look_and_once_at_the_end(row, steps, chunk):
    longer = {"steps": steps} if row.whole else {}
    steps = steps if row.whole else 1
    attack = attacks.get(row.name, eps=0.04, **row.few | row.whole | longer)
    reads, _, _ = crossings(attack, chunk)
    # The last points of a chunk are judged while the next one is stepped, and read with its look.
    assert reads == math.ceil(4 / chunk) * math.ceil(steps / LOOK_EVERY) + 1


@pytest.mark.parametrize("row", [r for r in TABLE if r.searching and not r.long], ids=str)
def test_a_search_of_its_own_rules_reads_no_more(row):
    attack, chunk = attacks.get(row.name, **{"eps": 0.04} | row.few | row.whole), 2
    reads, _, _ = crossings(attack, chunk, samples=3)
    starts = attack.restarts * min(getattr(attack, "classes", 1), CLASSES - 1)
    steps = attack.queries if row.name == "square" else attack.steps
    # What came of a start is read with the next look, or by itself where none follows.
    assert reads <= starts * (math.ceil(3 / chunk) * math.ceil(steps / LOOK_EVERY) + 1)


def test_a_cascade_reads_what_its_attacks_do_and_the_clean_samples():
    chain = [attacks.get(name, steps=LOOK_EVERY + 1, eps=0.001) for name in ("pgd", "apgd_ce")]
    alone = sum(crossings(each, 3)[0] for each in chain)
    assert crossings(Cascade(attacks=chain), 3)[0] <= alone + math.ceil(4 / 3)


@pytest.mark.parametrize("name", ["apgd_ce", "apgd_t", "fab", "square", "cw"])
def test_searches_make_no_tensor_on_the_cpu_and_send_none(name):
    row = next(each for each in TABLE if each.name == name)
    amount = "queries" if name == "square" else "steps"
    few = row.few | row.whole
    short, long = (crossings(attacks.get(name, **few | {amount: many}), 4) for many in (2, 4))
    # A table of the steps is made once and is as long as they are.
    assert [len(each) for each in long[1:]] == [len(each) for each in short[1:]]


@pytest.mark.parametrize("case", [c for c in STEPS if c.row.plain and not c.targeted], ids=str)
def test_stopping_at_success_costs_no_more_reads(case):
    chunk = 1 if case.norm == "linf" else 3
    reads, _, _ = crossings(case.attack(steps=LOOK_EVERY + 1), chunk)
    assert reads <= math.ceil(4 / chunk) * 2 + 2


@untargeted_steps
def test_steps_make_no_tensor_on_the_cpu_and_send_none(case):
    short, long = (crossings(case.attack(whole=True, steps=steps), 3) for steps in (1, 4))
    assert long[1:] == short[1:]


@plain_rows
def test_an_eps_per_sample_on_an_accelerator_costs_no_reads(row):
    eps = torch.tensor([0.01, 0.02, 0.03, 0.04])
    with simulated_accelerator():
        attack = attacks.get(row.name, **row.few | row.whole, eps=eps.to("sim"))
    on_host = attacks.get(row.name, **row.few | row.whole, eps=eps)
    assert crossings(attack, 1) == crossings(on_host, 1)


@some_cases
def test_an_accelerator_without_float64_is_enough_for_float32(case):
    subject, inputs, labels = problem("conv", 4, torch.float32)
    targets = case.targets(labels)
    expected = case.attack()(subject, inputs, labels, targets=targets)
    with simulated_accelerator(float64=False), with_settings(device="sim"):
        found = case.attack()(subject, inputs, labels, targets=targets)
    assert same(found, expected, 1e-5)


@one_case
def test_results_come_back_to_the_device_of_the_inputs(case):
    subject, inputs, labels = problem("conv", 4)
    targets = case.targets(labels)
    with simulated_accelerator():
        found = case.attack()(subject, inputs.to("sim"), labels, targets=targets)
        assert found.adversarial.device.type == found.success.device.type == "sim"
        expected = case.attack()(subject, inputs, labels, targets=targets)
        assert torch.equal(found.adversarial.cpu(), expected.adversarial)
