"""Piecewise-linear networks beyond the zoo's, and their exact gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard import Classifier
from tests.verification import zoo
from tests.verification.zoo import CLASSES, MEAN, STD, network


class Arithmetic(nn.Module):
    """Constants on either side, broadcast in either direction, values used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (1, 3), padding="same", bias=False)
        self.register_buffer("scale", torch.randn(3, 1, 1))
        self.register_buffer("wide", torch.randn(1, 1, 4, 5))
        self.head = nn.Linear(3, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv(2 * inputs - inputs / 3)
        hidden = 0.3 - functional.leaky_relu(hidden, 0.1) * self.scale
        hidden = hidden + hidden.relu() - (self.wide + hidden.clamp(-0.2, 0.4))
        hidden = hidden + hidden.mean((2, 3), keepdim=True)
        hidden = hidden + hidden.abs() - hidden.clamp_min(0.1) + hidden.clamp_max(-0.1)
        pooled = hidden.amax((2, 3)) - (-hidden).amax(dim=2).mean(2)
        return self.head(pooled)


class Stretched(nn.Module):
    """A leaky ReLU that is steeper below zero, and constants that stretch a value."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("many", torch.randn(4, 1, 1))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.leaky_relu((inputs - 0.5) * self.many + self.many, 1.7)
        return self.head(functional.hardtanh(hidden, -0.8, 0.9).amax(3).mean(2))


class Partly(nn.Module):
    """Passes nothing back through half of what it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return self.one(flat).relu() + self.two(flat).detach()


def _pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), *layers, nn.LazyLinear(CLASSES))


def _activated() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.ReLU6(),
        nn.Linear(8, 8),
        nn.Hardtanh(-0.4, 0.6),
        nn.Linear(8, 8),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.5),
        nn.BatchNorm1d(8),
        nn.Linear(8, CLASSES),
    )


OWN = {
    "arithmetic": (Arithmetic, (2, 4, 5)),
    "stretched": (Stretched, (1, 3, 4)),
    "partly": (Partly, (1, 2, 3)),
    "activated": (_activated, (1, 2, 3)),
    "overlapping": (lambda: _pooled(nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Flatten()), (1, 6, 5)),
    "dilated": (lambda: _pooled(nn.MaxPool2d((2, 1), (2, 1), (1, 0), 2), nn.Flatten()), (1, 8, 5)),
    "ceiled": (lambda: _pooled(nn.MaxPool2d(2, 3, 1, ceil_mode=True), nn.Flatten()), (1, 8, 7)),
    "one": (
        lambda: _pooled(nn.MaxPool2d(1, 2), nn.ReLU(), nn.AvgPool2d(2, 1), nn.Flatten()),
        (1, 6, 7),
    ),
    "adaptive": (lambda: _pooled(nn.ReLU(), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten()), (1, 6, 7)),
}
LINEAR_PIECES = ("linear", "mlp", "pools", "residual", "functional", "convolutional head")
names = pytest.mark.parametrize("name", [*LINEAR_PIECES, *OWN])


def problem(name: str, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Return a classifier with a normalisation, and images."""
    if name in LINEAR_PIECES:
        module, shape = network(name, seed, dtype), zoo.ZOO[name].shape
    else:
        build, shape = OWN[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build().eval()
            module(torch.rand(2, *shape))
            module.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return Classifier(module, mean=MEAN, std=STD), inputs


def exact_gradients(subject: Classifier, points: Tensor, target: int) -> Tensor:
    """Return the gradient of a logit in float64, whatever the dtype of the classifier."""
    module = copy.deepcopy(subject.module).eval().double()
    normalization = subject.normalization or ((0.0,), (1.0,))
    mean, std = (torch.tensor(each, dtype=points.dtype).double() for each in normalization)
    points = points.double().requires_grad_()
    (found,) = torch.autograd.grad(module((points - mean) / std)[:, target].sum(), points)
    return found
