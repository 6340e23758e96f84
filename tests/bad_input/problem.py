"""A network and samples that nothing is wrong with."""

from __future__ import annotations

import torch
from torch import nn

from tests.networks import images

COUNT = 8
X = images((1, 4, 4), COUNT)
Y = torch.arange(COUNT) % 3


def network() -> nn.Module:
    """Return a linear network of three classes for images of 4 x 4 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
