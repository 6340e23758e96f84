"""Held against the truth: small networks, solved exactly as mixed-integer programs."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, verification
from tests.verification.mixed_integer import TOLERANCE, Program, Residual
from tests.verification.soundness import without_attacks

CLASSES = 3
METHODS = ["alpha_crown", "auto", "branch_and_bound", "crown", "crown_ibp", "ibp"]
COMPLETE = verification.Budget(domains=20000, steps=8)


def mlp():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, CLASSES),
    )


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=(1, 2), padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 2, (2, 1), dilation=(2, 1), bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def pooled():
    return nn.Sequential(
        nn.Conv2d(1, 2, 2),
        nn.MaxPool2d(2, stride=1, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(4),
        nn.ReLU(),
        nn.LazyLinear(CLASSES),
    )


def overlapping():
    return nn.Sequential(
        nn.Conv2d(1, 2, (1, 2)),
        nn.ReLU(),
        nn.MaxPool2d((3, 1), stride=(1, 2), padding=(1, 0)),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def repeated():
    """All kernels are nearly multiples of one another, here or a window further."""
    first = nn.Conv2d(1, 3, (1, 3), padding=(0, 1))
    with torch.no_grad():
        one = first.weight[0, 0, 0, 0] - 1
        first.weight.mul_(0.01)
        for place, (channel, factor) in enumerate(((0, 1.0), (1, 1.5), (2, 0.7))):
            first.weight[channel, 0, 0, 2 if place == 1 else 0] += factor * one
            first.bias[channel] = factor * first.bias[0]
    return nn.Sequential(
        first,
        nn.ReLU(),
        nn.MaxPool2d((1, 2)),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def residual():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.ReLU(),
        Residual(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        nn.ReLU(),
        Residual(nn.Linear(4, 4), nn.ReLU()),
        nn.Linear(4, CLASSES),
    )


def bare():
    """The first operator is one that is split, on the inputs themselves."""
    return nn.Sequential(
        nn.ReLU(),
        nn.MaxPool2d((1, 2), stride=1),
        nn.Flatten(),
        nn.Linear(3, 4),
        nn.ReLU(),
        nn.Linear(4, CLASSES),
    )


NETWORKS = {
    "bare": (bare, (1, 1, 4)),
    "mlp": (mlp, (1, 2, 2)),
    "convolutional": (convolutional, (2, 2, 2)),
    "pooled": (pooled, (1, 3, 3)),
    "overlapping": (overlapping, (1, 2, 3)),
    "repeated": (repeated, (1, 1, 4)),
    "residual": (residual, (1, 1, 4)),
}
names = pytest.mark.parametrize("name", NETWORKS)


def instance(name, seed, count=2):
    """Return a random classifier, samples, and what it predicts for them."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = build()
        inputs = torch.rand(count, *shape, dtype=torch.float64)
        module(inputs.float())
        for each in module.modules():
            if isinstance(each, nn.Linear | nn.Conv2d):
                each.weight.mul_(2)
        module = module.double().eval()
        logits = module(torch.rand(64, *shape, dtype=torch.float64))
        module[-1].bias.sub_(logits.mean(0))
    subject = Classifier(module)
    return subject, inputs, subject(inputs).argmax(1)


def differences(label, target=None):
    one = torch.eye(CLASSES)
    others = [each for each in range(CLASSES) if each != label] if target is None else [target]
    return [one[label] - one[other] for other in others]


def check(result, place, optimum, *, complete):
    """The bound is below the truth; a complete search decides as the truth does."""
    assert result.margin[place] <= optimum + 1e-12
    if result.status[place] == "proven":
        assert optimum > 0
    if result.status[place] == "falsified":
        assert optimum < TOLERANCE
    if complete and abs(optimum) > TOLERANCE:
        assert result.status[place] == ("proven" if optimum > 0 else "falsified")


@cache
def optima(name, seed, eps, norm="linf"):
    """Return the least margin of each sample over a ball."""
    subject, inputs, labels = instance(name, seed)
    found = []
    for clean, label in zip(inputs, labels.tolist(), strict=True):
        program = Program(subject.module, (clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1))
        if norm == "l1":
            program.near(clean, eps)
        found.append(min(program.least(row) for row in differences(label)))
    return found


@pytest.mark.parametrize(
    ("seed", "method"), [*((0, method) for method in METHODS), (1, "auto"), (1, "branch_and_bound")]
)
@names
def test_verdicts_agree_with_the_exact_optimum(name, seed, method):
    subject, inputs, labels = instance(name, seed)
    for eps in (0.1, 0.4):
        result = verification.verify(
            subject, inputs, labels, eps=eps, method=method, budget=COMPLETE
        )
        for place, optimum in enumerate(optima(name, seed, eps)):
            check(result, place, optimum, complete=method in ("auto", "branch_and_bound"))


@pytest.mark.parametrize("method", ["branch_and_bound", "crown"])
@names
def test_rows_and_targets_agree_with_the_exact_optimum(name, method):
    """Rows that no difference of two classes is, and boxes that are no balls."""
    subject, inputs, labels = instance(name, 5)
    generator = torch.Generator().manual_seed(5)
    logits = subject(inputs)
    rows = torch.randn(2, CLASSES, generator=generator, dtype=torch.float64)
    rows = torch.cat([rows * (rows @ logits[0]).sign().unsqueeze(1), torch.zeros(1, CLASSES)])
    rows[2, labels[0]] = 1.0
    reach = torch.rand(2, *inputs.shape, generator=generator, dtype=torch.float64) * 0.4
    lower, upper = (inputs - reach[0]).clamp(0, 1), (inputs + reach[1]).clamp(0, 1)
    targets = (labels + 1) % CLASSES
    arguments = {"eps": None, "lower": lower, "upper": upper, "method": method, "budget": COMPLETE}
    by_rows = verification.verify(subject, inputs, specification=rows, **arguments)
    by_target = verification.verify(subject, inputs, labels, specification=targets, **arguments)
    for place in range(len(inputs)):
        program = Program(subject.module, lower[place], upper[place])
        optimum = min(program.least(row) for row in rows)
        check(by_rows, place, optimum, complete=method == "branch_and_bound")
        (row,) = differences(int(labels[place]), int(targets[place]))
        check(by_target, place, program.least(row), complete=method == "branch_and_bound")


@pytest.mark.parametrize("name", ["mlp", "repeated", "residual"])
def test_a_label_among_the_top_two_is_proven_below_the_exact_optima(name):
    """One class must stay below the label everywhere; that is none where both may pass it."""
    subject, inputs, _ = instance(name, 3)
    labels = subject(inputs).argsort(1)[:, 1]
    optima = []
    for clean, label in zip(inputs, labels.tolist(), strict=True):
        program = Program(subject.module, (clean - 0.15).clamp(0, 1), (clean + 0.15).clamp(0, 1))
        optima.append(max(program.least(row) for row in differences(label)))
    for method in METHODS:
        with without_attacks():
            result = verification.verify(
                subject,
                inputs,
                labels,
                eps=0.15,
                method=method,
                specification=verification.TopK(2),
                budget=verification.Budget(domains=200, steps=4),
            )
        for place, optimum in enumerate(optima):
            assert result.margin[place] <= optimum + 1e-12
            assert result.status[place] != "proven" or optimum > 0


@pytest.mark.parametrize("method", METHODS)
@names
def test_margins_over_l1_balls_are_below_the_exact_optimum(name, method):
    subject, inputs, labels = instance(name, 0)
    budget = verification.Budget(domains=40, steps=4)
    result = verification.verify(
        subject, inputs, labels, eps=0.4, norm="l1", method=method, budget=budget
    )
    for place, optimum in enumerate(optima(name, 0, 0.4, "l1")):
        check(result, place, optimum + TOLERANCE, complete=False)  # it may be just outside


@names
def test_the_program_finds_the_optimum_that_sampling_approaches(name):
    """The truth is itself checked: no sample is below it, and at a point it is the network."""
    subject, inputs, labels = instance(name, 1)
    (row, *_) = differences(int(labels[0]))
    points = torch.rand(5000, *inputs.shape[1:], dtype=torch.float64)
    points = torch.cat([points, points.round()])
    with torch.no_grad():
        sampled = (subject.module(points) @ row.double()).min().item()
        own = (subject.module(inputs[:1]) @ row.double()).item()
    zero, one = torch.zeros_like(inputs[0]), torch.ones_like(inputs[0])
    optimum = Program(subject.module, zero, one).least(row)
    assert optimum <= sampled + TOLERANCE
    assert sampled - optimum < 1.5
    assert Program(subject.module, inputs[0], inputs[0]).least(row) == pytest.approx(own, abs=1e-5)
