"""The network whose explanations are compared: a small convolutional one, as anybody trains it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

EPOCHS = 4


def network() -> nn.Sequential:
    """Return the untrained network: digits (N, 1, 28, 28) in, ten logits out."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def train(images: Tensor, labels: Tensor) -> nn.Sequential:
    """Return a network trained on digits, in a way that can be repeated bit by bit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(images)).split(100):
                loss = functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()
