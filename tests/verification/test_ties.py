"""Maxima that are nearly multiples of others: what cancels costs nothing; no bound is broken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, verification
from pytest_triguard.verification import substitution
from pytest_triguard.verification.windows import Grid
from tests.verification.zoo import points_inside

METHODS = ["crown", "crown_ibp"]


def network(*, rectified=True, noise=0.01, seed=0, stride=1):
    """Channels 0 to 3 see one pixel each, moved by 0 or 2; 4 and 5 see something of their own."""
    torch.manual_seed(seed)
    first = nn.Conv2d(1, 6, 3, padding=1, stride=stride)
    with torch.no_grad():
        first.weight[:4].zero_()
        for channel, (row, column, factor) in enumerate(
            ((2, 2, 1.0), (0, 0, 0.6), (2, 0, 1.4), (2, 2, 0.9))
        ):
            first.weight[channel, 0, row, column] = factor
            first.bias[channel] = -0.4 * factor
        first.weight[:4] += noise * torch.randn(4, 1, 3, 3)
    between = [nn.ReLU()] if rectified else []
    second = nn.Conv2d(6, 4, 3, padding=1)
    return nn.Sequential(
        first,
        *between,
        nn.MaxPool2d(2),
        second,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def boxes(module, eps, size=8):
    """Return boxes around images of black and white, in part."""
    torch.manual_seed(1)
    clean = torch.rand(2, 1, size, size, dtype=torch.float64)
    clean[:, :, : size // 2] = clean[:, :, : size // 2].round()
    module(clean[:1].float())
    return Classifier(module.double().eval()), (clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1)


def test_channels_that_repeat_cancel():
    """Each logit is a maximum minus a multiple that is the same maximum, from another channel."""
    first = nn.Conv2d(1, 3, 3, padding=1)
    last = nn.Conv2d(3, 2, 2)
    with torch.no_grad():
        for each in (first.weight, last.weight, last.bias):
            each.zero_()
        first.weight[0, 0, 2, 2], first.weight[1, 0, 0, 0], first.weight[2, 0, 2, 2] = 1, 2, 3
        first.bias.copy_(torch.tensor([-0.25, -0.5, -0.75]))
        last.weight[0, 0, 0, 0], last.weight[0, 1, 1, 1] = -2, 1
        last.weight[1, 0, 1, 1], last.weight[1, 2, 1, 1] = 3, -1
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    module = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), last, head)
    subject, lower, upper = boxes(module, 0.2, size=6)
    low, high = verification.bounds(subject, lower, upper, method="crown_ibp")
    assert float((high - low).max()) < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("eps", [0.03, 0.3])
def test_sampled_outputs_are_inside_the_bounds(method, rectified, eps):
    for seed, stride in ((0, 1), (1, 2)):
        module = network(rectified=rectified, seed=seed, stride=stride, noise=0.05)
        subject, lower, upper = boxes(module, eps)
        low, high = verification.bounds(subject, lower, upper, method=method)
        for place in range(len(lower)):
            points = points_inside(lower[place], upper[place], 200, seed)
            logits = subject.module(points)
            assert bool(((logits >= low[place]) & (logits <= high[place])).all())


def test_ties_are_used_and_tighten(monkeypatch):
    subject, *box = boxes(network(), 0.1)
    tied = verification.bounds(subject, *box, method="crown")
    monkeypatch.setattr(substitution.Substitution, "_origin", lambda walk, value: None)
    alone = verification.bounds(subject, *box, method="crown")
    assert bool((tied[1] - tied[0] < alone[1] - alone[0]).all())


@pytest.mark.parametrize("rectified", [True, False])
def test_windows_give_the_bounds_of_whole_images(rectified, monkeypatch):
    subject, *box = boxes(network(rectified=rectified), 0.1)
    windowed = verification.bounds(subject, *box, method="crown")
    monkeypatch.setattr(Grid, "pays", property(lambda grid: False))
    whole = verification.bounds(subject, *box, method="crown")
    for one, two in zip(windowed, whole, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-9)


def test_a_sample_does_not_depend_on_those_beside_it():
    subject, lower, upper = boxes(network(), 0.1)
    both = verification.bounds(subject, lower, upper, method="crown")
    for place in range(2):
        part = slice(place, place + 1)
        one = verification.bounds(subject, lower[part], upper[part], method="crown")
        for each, other in zip(both, one, strict=True):
            assert torch.allclose(each[part], other, rtol=0, atol=1e-9)
