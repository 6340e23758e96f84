"""Train the network and write its weights: `python train.py --data-root=DIR`, about two minutes."""

import argparse
import logging
import os

import torch
from fashion import VARIABLE, DataError, dataset
from network import MEAN, STD, WEIGHTS, network
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

EPS = 0.03
"""Radius, in pixels in [0, 1], of the balls that the loss looks at."""
EPOCHS, BATCH, RATE = 6, 200, 4e-3


def train(images: Tensor, labels: Tensor, *, epochs: int = EPOCHS) -> nn.Sequential:
    """Return a network trained on images `(N, 1, 28, 28)` in [0, 1], the same each time.

    An ordinary network leaves a verifier next to nothing to prove. Here the loss grows into that
    of the worst logits that intervals of radius EPS around the pixels allow.
    """
    torch.manual_seed(0)
    model = network()
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            progress = schedule.last_epoch / steps
            share = min(1.0, max(0.0, 2 * progress - 0.2))
            x, y = images[batch], labels[batch]
            plain = functional.cross_entropy(model((x - MEAN) / STD), y)
            robust = functional.cross_entropy(worst_logits(model, x, y, share * EPS), y)
            optimizer.zero_grad()
            torch.lerp(plain, robust, share / 2).backward()
            optimizer.step()
            schedule.step()
        logging.info("epoch %d of %d: loss %.3f on intervals", epoch + 1, epochs, robust.item())
    return model


def worst_logits(model: nn.Sequential, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return the smallest logit of the label and the largest of every other class in the ball."""
    low = ((images - eps).clamp(0, 1) - MEAN) / STD
    high = ((images + eps).clamp(0, 1) - MEAN) / STD
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            sizes = {"weight": layer.weight.abs(), "bias": torch.zeros_like(layer.bias)}
            center = layer((high + low) / 2)
            radius = functional_call(layer, sizes, (high - low) / 2)
            low, high = center - radius, center + radius
        else:
            low, high = layer(low), layer(high)
    return torch.where(functional.one_hot(labels, low.shape[1]).bool(), low, high)


def main() -> None:
    """Train on the 60,000 training images of the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Train the network and write its weights.")
    parser.add_argument("--data-root", metavar="DIR", default=os.environ.get(VARIABLE))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        data = dataset(parser.parse_args().data_root, train=True)
    except DataError as error:
        parser.error(str(error))
    model = train(data.data.unsqueeze(1) / 255, data.targets)
    torch.save(model.state_dict(), WEIGHTS)


if __name__ == "__main__":
    main()
