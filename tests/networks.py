"""Tiny networks with seeded weights, and images for them, shared by the tests.

Weights and images are made in float64 and rounded to the dtype that is asked for, so that the
same test in float32 is the same test up to rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.classifier import Classifier

CLASSES = 4
SHAPES = {
    "linear": (2, 3, 4),
    "conv": (3, 8, 6),
    "residual": (1, 7, 5),
    "smooth": (3, 6, 7),
    "bias_free": (1, 6, 8),
}
"""Input shape by network: grey and colour, none of them square."""

TRANSFORMER = {"transformer": (3, 8, 6)}
"""Likewise of a network with attention, which only some tests are about."""


class Residual(nn.Module):
    """A block with a way around it, and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        hidden = hidden + self.block(hidden)
        return self.head(functional.relu(hidden).amax((2, 3)))


class Quadratic(nn.Module):
    """Logit k is `x' Q_k x / 2` of the flattened input, with symmetric `Q_k`."""

    def __init__(self, forms: Tensor) -> None:
        super().__init__()
        self.register_buffer("forms", forms)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        slopes = torch.einsum("ni,kij->nkj", flat, self.forms)
        return (slopes * flat.unsqueeze(1)).sum(2) / 2


class Block(nn.Module):
    """Attention and a perceptron, each behind a normalisation and with a way round it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, 2, batch_first=True)
        self.between = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, 12), nn.GELU(), nn.Linear(12, size))

    def forward(self, tokens: Tensor) -> Tensor:
        normal = self.before(tokens)
        tokens = tokens + self.attention(normal, normal, normal, need_weights=False)[0]
        return tokens + self.mlp(self.between(tokens))


class Transformer(nn.Module):
    """A vision transformer of two layers with a class token, in the way of torchvision's."""

    def __init__(self, size: int = 8, tokens: int = 13) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size, 2, stride=2)
        self.first = nn.Parameter(torch.randn(1, 1, size))
        self.places = nn.Parameter(torch.randn(1, tokens, size) / 4)
        self.blocks = nn.Sequential(Block(size), Block(size))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.patches(inputs).flatten(2).mT
        tokens = torch.cat([self.first.expand(len(inputs), -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def _linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPES["linear"]), CLASSES))


def _conv() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )
    norm = network[1]
    norm.running_mean.uniform_(-0.3, 0.3)
    norm.running_var.uniform_(0.5, 1.5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.3, 0.3)
    return network


def _smooth() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Softplus(beta=3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, CLASSES),
    )


def _bias_free() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES, bias=False),
    )


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "linear": _linear,
    "conv": _conv,
    "residual": Residual,
    "smooth": _smooth,
    "bias_free": _bias_free,
    "transformer": Transformer,
}


def shape_of(name: str) -> tuple[int, ...]:
    """Return the input shape of a network."""
    return (SHAPES | TRANSFORMER)[name]


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a network in training mode, as a user might hand it over."""
    return copy.deepcopy(_built(name)).to(dtype)


@cache
def _built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        module = _BUILDERS[name]().double()
        _balance(module, images(shape_of(name), 64))
    return module


def _balance(module: nn.Module, inputs: Tensor) -> None:
    """Scale and shift the last layer, so that every class is predicted and small steps count."""
    head = [each for each in module.modules() if isinstance(each, nn.Linear)][-1]
    logits = module.eval()(inputs)
    head.weight.div_((logits - logits.mean(0)).std() / 2)
    if head.bias is not None:
        head.bias.sub_(module(inputs).mean(0))
    module.train()


def classifier(name: str, dtype: torch.dtype = torch.float64) -> Classifier:
    """Return a classifier of that network, in training mode, with inputs in [0, 1]."""
    return Classifier(network(name, dtype))


def images(
    shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float64, seed: int = 1
) -> Tensor:
    """Return random images; a fifth of the pixels are at an end of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    return (values * 1.25 - 0.125).clamp(0, 1).to(dtype)


def problem(
    name: str, count: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Classifier, Tensor, Tensor]:
    """Return a classifier, images, and labels: the predictions, but for every fourth.

    There the label is the class before, so that the class after the label is what is predicted.
    """
    subject = classifier(name, dtype)
    inputs = images(shape_of(name), count, dtype)
    labels = subject(inputs).argmax(1)
    labels[::4] = (labels[::4] - 1) % CLASSES
    return subject, inputs, labels


def bare(subject: Classifier) -> nn.Module:
    """Return a frozen copy of the module in evaluation mode, to compute expected values with."""
    return copy.deepcopy(subject.module).eval().requires_grad_(False)


class Failing(nn.Module):
    """Passes inputs on, until its patience ends."""

    def __init__(self, inner: nn.Module, calls: int) -> None:
        super().__init__()
        self.inner = inner
        self.calls = calls

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("the roof is on fire")
        return self.inner(inputs)


def used_module(name: str = "conv") -> nn.Module:
    """Return a module in the midst of a training: mixed flags, some gradients."""
    module = classifier(name).module
    list(module.children())[1].eval()
    list(module.parameters())[4].requires_grad_(False)
    module(images(shape_of(name), 2)).sum().backward()
    return module


class Recorder(nn.Module):
    """Keeps what the network is shown."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.detach().clone())
        return self.inner(inputs)
