"""Trajectories, restarts, and samples that leave."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pytest_triguard import attacks
from tests.attacks.table import EPS, plain_cases, starting_cases, stepwise_cases
from tests.networks import SHAPES, bare, classifier, problem
from tests.sessions import with_settings


@plain_cases
def test_a_trajectory_tells_every_step(case):
    subject, inputs, labels = problem("conv", 6)
    targets, eps = case.targets(labels), EPS[case.norm]
    attack = case.attack(trajectory=True)
    with with_settings(chunk=4):  # one chunk is full, one is not
        found = attack(subject, inputs, labels, targets=targets)
    path, steps = found.trajectory, getattr(attack, "steps", 1)
    size = eps * case.row.length(steps)
    network = bare(subject)
    assert path.points.shape == (6, steps + 1, *inputs.shape[1:])
    assert path.gradients.shape == path.directions.shape == (6, steps, *inputs.shape[1:])
    for row, taken in enumerate(path.lengths.tolist()):
        points = path.points[row]
        assert torch.equal(points[taken], found.adversarial[row])
        start = points[:taken].clone().requires_grad_()
        sign, goal = (1, labels) if targets is None else (-1, targets)
        loss = sign * functional.cross_entropy(
            network(start), goal[row].expand(taken), reduction="sum"
        )
        (gradients,) = torch.autograd.grad(loss, start) if taken else (start,)
        assert torch.allclose(path.gradients[row, :taken], gradients, rtol=0, atol=1e-9)
        moved = start + size * path.directions[row, :taken] - inputs[row]
        if case.norm == "linf":
            assert torch.equal(path.directions[row, :taken], path.gradients[row, :taken].sign())
            moved = moved.clamp(-eps, eps)
        else:
            lengths = path.directions[row, :taken].flatten(1).norm(dim=1)
            assert torch.allclose(lengths, torch.ones_like(lengths), rtol=0, atol=1e-9)
            moved = torch.renorm(moved, 2, 0, eps)
        expected = (inputs[row] + moved).clamp(0, 1)
        assert torch.allclose(points[1 : taken + 1], expected, rtol=0, atol=1e-7)


@stepwise_cases
def test_a_sample_that_fell_took_fewer_steps_and_passes(case):
    subject, inputs, labels = problem("smooth", 12)
    attack = case.attack(trajectory=True)
    found = attack(subject, inputs, labels, targets=case.targets(labels))
    lengths = found.trajectory.lengths
    early = lengths < attack.steps
    assert early.any()
    assert found.success[early].all()
    taken = (lengths + 1).clamp_max(attack.steps).tolist()
    assert found.passes.tolist() == [case.row.passes(each) for each in taken]
    goal = case.reached
    network = bare(subject)
    for row, taken in enumerate(lengths.tolist()):
        before = network(found.trajectory.points[row, :taken]).argmax(1)
        assert not goal(before, labels[row].expand(taken)).any()


@stepwise_cases
def test_stopping_at_success_finds_all_that_going_on_finds(case):
    subject, inputs, labels = problem("conv", 16)
    targets = case.targets(labels)
    stopping = case.attack()(subject, inputs, labels, targets=targets)
    going_on = case.attack(stop="never")(subject, inputs, labels, targets=targets)
    assert (stopping.success | ~going_on.success).all()
    unbroken = ~stopping.success
    assert torch.allclose(
        stopping.adversarial[unbroken], going_on.adversarial[unbroken], rtol=0, atol=1e-9
    )
    assert going_on.passes.tolist() == [case.row.passes(case.attack().steps)] * 16


@pytest.mark.parametrize("stop", ["success", "never"])
@starting_cases
def test_more_restarts_never_find_less(case, stop):
    subject, inputs, labels = problem("conv", 8)
    targets = case.targets(labels)
    before = torch.zeros(8, dtype=torch.bool)
    for restarts in (1, 3):
        attack = case.attack(restarts=restarts, steps=2, stop=stop)
        with with_settings(chunk=5):
            found = attack(subject, inputs, labels, targets=targets)
        predictions = bare(subject)(found.adversarial).argmax(1)
        assert torch.equal(found.success, case.reached(predictions, labels))
        assert (found.success | ~before).all()
        before = found.success


@starting_cases
def test_restarts_keep_the_start_of_highest_loss(case):
    subject, inputs, labels = problem("conv", 6)
    targets = case.targets(labels)
    network = bare(subject)

    def loss(points):
        if targets is None:
            return functional.cross_entropy(network(points), labels, reduction="none")
        return -functional.cross_entropy(network(points), targets, reduction="none")

    options = {"steps": 1, "step_size": 0.0, "stop": "never", "eps": 1e-3}
    several = case.attack(restarts=3, **options)(subject, inputs, labels, targets=targets)
    single = case.attack(**options)(subject, inputs, labels, targets=targets)
    unbroken = ~several.success
    assert unbroken.any()
    assert (loss(several.adversarial) >= loss(single.adversarial) - 1e-12)[unbroken].all()
    assert (loss(several.adversarial) > loss(single.adversarial) + 1e-9)[unbroken].any()


@starting_cases
def test_random_starts_fill_the_ball(case):
    subject, inputs = classifier("linear"), torch.full((400, *SHAPES["linear"]), 0.5).double()
    labels = torch.zeros(400, dtype=torch.int64)
    attack = case.attack(eps=0.4, steps=1, step_size=0.0, stop="never")
    start = attack(subject, inputs, labels, targets=case.targets(labels)).adversarial - 0.5
    assert start.mean().abs() < 0.02
    if case.norm == "linf":
        quarters = torch.histc(start, 4, min=-0.4, max=0.4) / start.numel()
        assert torch.allclose(quarters, torch.full((4,), 0.25).double(), rtol=0, atol=0.02)
    else:
        # Uniform in a ball of d dimensions: the d-th power of the radius is uniform.
        radius = (start.flatten(1).norm(dim=1) / 0.4) ** start[0].numel()
        quarters = torch.histc(radius, 4, min=0, max=1) / len(radius)
        assert torch.allclose(quarters, torch.full((4,), 0.25).double(), rtol=0, atol=0.07)


def test_two_attacks_never_start_alike():
    subject, inputs, labels = problem("linear", 4)
    options = {"eps": 0.3, "steps": 1, "step_size": 0.0, "random_start": True, "stop": "never"}
    pgd, bim = (
        attacks.get(name, **options)(subject, inputs, labels).adversarial for name in ("pgd", "bim")
    )
    assert (pgd != bim).flatten(1).any(1).all()
