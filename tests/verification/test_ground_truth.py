"""Held against the truth: tiny ReLU networks, solved exactly as mixed-integer programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from pytest_triguard import Classifier, verification

INPUTS, HIDDEN, CLASSES = 3, 5, 3
TOLERANCE = 1e-6
"""Of the solver: optima closer to zero decide nothing."""


def classifier(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
        )
    return Classifier(module.double())


def least_margin(module, lower, upper, label):
    """Return the smallest margin over a box, by one program per other class.

    Variables: inputs x, hidden h = max(z, 0) with z = W x + b, and which of them are active.
    """
    first, last = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in (module[1], module[3])
    )
    reach = np.abs(first[0]).sum(1) + np.abs(first[1])
    eye, none = np.eye(HIDDEN), np.zeros((HIDDEN, HIDDEN))
    big = np.diag(reach)
    constraints = [
        LinearConstraint(np.hstack([-first[0], eye, none]), first[1], np.inf),
        LinearConstraint(np.hstack([-first[0], eye, big]), -np.inf, first[1] + reach),
        LinearConstraint(np.hstack([np.zeros((HIDDEN, INPUTS)), eye, -big]), -np.inf, 0),
    ]
    box = Bounds(
        np.concatenate([lower, np.zeros(2 * HIDDEN)]),
        np.concatenate([upper, np.full(HIDDEN, np.inf), np.ones(HIDDEN)]),
    )
    whole = np.concatenate([np.zeros(INPUTS + HIDDEN), np.ones(HIDDEN)])
    optima = []
    for other in range(CLASSES):
        if other == label:
            continue
        cost = np.concatenate([np.zeros(INPUTS), last[0][label] - last[0][other], np.zeros(HIDDEN)])
        solved = milp(cost, constraints=constraints, bounds=box, integrality=whole)
        assert solved.status == 0
        optima.append(solved.fun + last[1][label] - last[1][other])
    return min(optima)


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_agree_with_the_exact_optimum(seed):
    subject = classifier(seed)
    inputs = torch.rand(
        4, 1, 1, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    labels = subject(inputs).argmax(1)
    for eps in (0.02, 0.2):
        result = verification.verify(subject, inputs, labels, eps=eps)
        for place, clean in enumerate(inputs.flatten(1).numpy()):
            lower, upper = np.clip(clean - eps, 0, 1), np.clip(clean + eps, 0, 1)
            optimum = least_margin(subject.module, lower, upper, int(labels[place]))
            assert result.margin[place] <= optimum + TOLERANCE
            if result.status[place] == "proven":
                assert optimum > -TOLERANCE
            if result.status[place] == "falsified":
                assert optimum < TOLERANCE


def test_the_program_finds_the_optimum_that_sampling_approaches():
    """The truth is itself checked: no sample is below it, and some come near."""
    subject = classifier(1)
    points = torch.rand(20000, 1, 1, INPUTS, dtype=torch.float64)
    with torch.no_grad():
        logits = subject.module.eval()(points)
    sampled = (logits[:, [0]] - logits[:, 1:]).min().item()
    optimum = least_margin(subject.module, np.zeros(INPUTS), np.ones(INPUTS), 0)
    assert optimum <= sampled + TOLERANCE
    assert sampled - optimum < 0.05
