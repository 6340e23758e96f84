"""A network trained on attacked digits, and a twin that only seems to withstand attacks."""

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 0.1
EPOCHS = 5


def network() -> nn.Sequential:
    """Return the untrained network: digits (N, 1, 28, 28) in, ten logits out."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Steps(nn.Module):
    """Rounds each pixel to one of nine greys: almost nothing changes, and no gradient is left."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.round(8 * images) / 8


def train(images: Tensor, labels: Tensor, *, attacked: bool) -> nn.Sequential:
    """Return a network trained on digits, in a way that can be repeated bit by bit.

    With `attacked` it sees the worst of each digit in place of the digit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(images)).split(100):
                seen = worst(model, images[batch], labels[batch]) if attacked else images[batch]
                loss = functional.cross_entropy(model(seen), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def worst(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the digits moved up the loss in one step from a random start, by up to EPS a pixel."""
    start = images + torch.empty_like(images).uniform_(-EPS, EPS)
    start = start.clamp(0, 1).requires_grad_()
    loss = functional.cross_entropy(model(start), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, start)
    moved = start.detach() + 1.25 * EPS * gradient.sign()
    return (images + (moved - images).clamp(-EPS, EPS)).clamp(0, 1)
