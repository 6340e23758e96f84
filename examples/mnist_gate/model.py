"""The model of this repository: a small network whose robustness can be proven."""

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 0.1
EPOCHS = 20


def network() -> nn.Sequential:
    """Return the untrained network: digits (N, 1, 28, 28) in, ten logits out."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def train(images: Tensor, labels: Tensor, *, provable: bool, epochs: int = EPOCHS) -> nn.Sequential:
    """Return a network trained on digits, in a way that can be repeated bit by bit.

    An ordinary network leaves a verifier next to nothing to prove. With `provable`, the loss
    grows into that of the worst logits an interval of radius EPS around each pixel allows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        batches = -(-len(images) // 100)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=5e-3, total_steps=epochs * batches
        )
        for epoch in range(epochs):
            ramp = min(1.0, epoch / (0.6 * epochs)) if provable else 0.0
            for batch in torch.randperm(len(images)).split(100):
                loss = functional.cross_entropy(model(images[batch]), labels[batch])
                if ramp:
                    worst = worst_logits(model, images[batch], labels[batch], ramp * EPS)
                    robust = functional.cross_entropy(worst, labels[batch])
                    loss = (1 - ramp / 2) * loss + ramp / 2 * robust
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def worst_logits(model: nn.Sequential, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return the smallest logit of the label and the largest of every other class in the box."""
    low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            center, radius = (high + low) / 2, (high - low) / 2
            center, radius = layer(center), magnitude(layer, radius)
            low, high = center - radius, center + radius
        else:
            low, high = layer(low), layer(high)
    is_label = functional.one_hot(labels, low.shape[1]).bool()
    return torch.where(is_label, low, high)


def magnitude(layer: nn.Conv2d | nn.Linear, radius: Tensor) -> Tensor:
    """Return how far a layer can carry its output when its input moves by up to the radius."""
    if isinstance(layer, nn.Linear):
        return functional.linear(radius, layer.weight.abs())
    return functional.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)
