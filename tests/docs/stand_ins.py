"""What the snippets of the documentation take for granted: a model, data, and their names.

The classes are dark and bright images. Every fifth one is a middling grey, which an attack turns.
"""

from __future__ import annotations

import torch
from torch import nn

from pytest_triguard import Classifier

MEAN, STD = 0.5, 0.25


def load_my_model():
    """Return a network for normalised 8x8 images that tells dark from bright ones."""
    linear = nn.Linear(64, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 64) / 64)
        linear.bias.zero_()
    return nn.Sequential(nn.Flatten(), linear)


labels = torch.arange(100) % 2
brightness = torch.where(labels == 1, 0.9, 0.1)
brightness[::5] = torch.where(labels[::5] == 1, 0.65, 0.35)
images = brightness.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
classifier = Classifier(load_my_model(), mean=MEAN, std=STD)
