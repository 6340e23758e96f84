"""The model of this repository: a small network, its committed weights, and a quantized twin."""

import copy
from pathlib import Path

import torch
from torch import nn

MEAN, STD = 0.2860, 0.3530
"""Of the pixels of the training images; the network takes normalised inputs."""
WEIGHTS = Path(__file__).parent / "weights.pt"


def network() -> nn.Sequential:
    """Return the untrained network: images (N, 1, 28, 28) in, ten logits out."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def shipped() -> nn.Sequential:
    """Return the trained network, from the weights that are committed beside this file."""
    model = network()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model.eval()


def quantized(model: nn.Sequential, *, bits: int) -> nn.Sequential:
    """Return a copy whose weights have `2**bits - 1` levels each, spaced evenly around zero."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in twin.parameters():
            step = weight.abs().max() / (2 ** (bits - 1) - 1)
            weight.copy_((weight / step).round() * step)
    return twin
