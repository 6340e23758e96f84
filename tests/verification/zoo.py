"""Small networks with random weights, one per family of operators, for the verifier's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard import Classifier

CLASSES = 3
MEAN, STD = 0.4, 0.3


class Residual(nn.Module):
    """Adds in place, and activates in place, as torchvision's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.stem(inputs)))
        ahead = self.conv(hidden)
        ahead += hidden
        return self.head(self.relu(ahead).mean((2, 3)))


class Gated(nn.Module):
    """Products and quotients, of values and with constants on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.gate = nn.Conv2d(2, 3, 3)
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.register_buffer("shift", torch.randn(3, 1, 1))
        self.head = nn.Linear(3, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = (inputs * 2 - 1) / 0.7
        hidden = self.conv(inputs) * torch.sigmoid(self.gate(inputs))
        hidden = -hidden * self.scale + (self.shift - hidden / 3.0)
        hidden = 1.5 - (hidden - hidden.tanh()) * 0.5
        return self.head(hidden.amax((2, 3)))


class Functional(nn.Module):
    """No module is called but as a holder of weights; sizes are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (3, 2))
        self.norm = nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(CLASSES, 8) / 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.conv2d(
            inputs, self.conv.weight, self.conv.bias, stride=(2, 1), padding=(0, 1), dilation=1
        )
        norm = self.norm
        hidden = functional.batch_norm(
            hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training
        )
        hidden = functional.relu(hidden, inplace=True)
        hidden = functional.max_pool2d(hidden, hidden.shape[2:])
        hidden = torch.cat([hidden, hidden.clamp(min=0.1) - 1], dim=1)
        hidden = functional.dropout(hidden, 0.5, self.training)
        return functional.linear(hidden.view(hidden.size(0), -1), self.weight)


class Shapes(nn.Module):
    """Moves elements in every way there is a rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(15)
        self.last = nn.Linear(30, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.permute(0, 2, 3, 1).squeeze(3)
        hidden = self.first(rows).relu().transpose(1, 2).contiguous()
        hidden = self.norm(torch.flatten(hidden, 1))
        hidden = torch.cat((hidden, hidden.unsqueeze(1).reshape(-1, 15).neg()), 1)
        return self.last(torch.tanh(hidden))


class Smooth(nn.Module):
    """Activations side by side, as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, (2, 3), stride=2)
        self.activations = nn.ModuleList(
            [
                nn.Hardswish(),
                nn.Hardsigmoid(),
                nn.SiLU(),
                nn.GELU("tanh"),
                nn.Softplus(2.0, 3.0),
                nn.SELU(),
            ]
        )
        self.last = nn.Linear(24, 4)
        self.gelu = nn.GELU()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv(inputs)
        hidden = torch.cat([each(hidden) for each in self.activations], 1)
        return self.head(self.gelu(self.last(hidden.flatten(1))))


class Elementary(nn.Module):
    """Functions of one number, called as functions, methods and operators."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.flatten(1))
        spread = torch.sqrt(hidden**2 + 0.5) + hidden.pow(2) - torch.abs(hidden)
        hidden = torch.reciprocal(hidden.exp() + 1) + hidden.clamp_min(-0.3).erf()
        hidden = hidden + functional.elu(spread, 1.5) + functional.logsigmoid(spread)
        return self.last(functional.mish(hidden) + torch.clamp(spread, 0.2, 1.5))


class Attention(nn.Module):
    """A small vision transformer: class token, positions, one block with layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, stride=2)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, 4))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, 4))
        self.norms = nn.ModuleList([nn.LayerNorm(4, eps=0.1), nn.LayerNorm(4, eps=0.1)])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self.patches(inputs).flatten(2).permute(0, 2, 1)
        token = self.token.expand(inputs.shape[0], -1, -1)
        rows = torch.cat([token, rows], 1) + self.positions
        hidden = self.norms[0](rows)
        rows = rows + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        rows = rows + self.mlp(self.norms[1](rows))
        return self.head(rows[:, 0])


class Resized(nn.Module):
    """Normalised in groups, made larger in two ways, and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 2)
        self.norm = nn.GroupNorm(2, 4, eps=0.5)
        self.larger = nn.ConvTranspose2d(4, 2, 2, stride=2, output_padding=1)
        self.twice = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.first(inputs))
        one = functional.silu(self.larger(hidden)).sum((2, 3)) / 10
        two = functional.pad(self.twice(hidden), (1, 0, 0, 2), value=0.5).mean((2, 3))
        return self.head(torch.cat([one, two], 1))


class Parted(nn.Module):
    """Takes a value apart, divides one part by another, and gives chances."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        one, two = self.first(inputs.flatten(1)).chunk(2, dim=1)
        one = torch.stack([one, one.roll(1, 1) * 0.5], dim=2)[..., 0]
        return self.last(one / (two.sigmoid() + 1) - functional.softmax(two, dim=1))


def _pools() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False, ceil_mode=True),
        nn.MaxPool2d((2, 1), stride=1, dilation=(1, 2)),
        nn.AdaptiveAvgPool2d((1, 2)),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def _activations() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.LeakyReLU(0.2),
        nn.Linear(8, 8),
        nn.ReLU6(),
        nn.Linear(8, 8),
        nn.Hardtanh(-0.5, 0.7),
        nn.Linear(8, 8),
        nn.Sigmoid(),
        nn.Dropout(0.5),
        nn.Linear(8, CLASSES),
        nn.Identity(),
    )


def _convolutional_head() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, CLASSES, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, 8),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    )


@dataclass(frozen=True)
class Row:
    """A network: how it is built, and the shape of its inputs, grey or colour, few square."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]


ZOO = {
    "linear": Row(_linear, (1, 3, 4)),
    "mlp": Row(_mlp, (3, 2, 2)),
    "activations": Row(_activations, (1, 2, 8)),
    "smooth activations": Row(Smooth, (3, 3, 5)),
    "elementary functions": Row(Elementary, (1, 2, 3)),
    "pools": Row(_pools, (1, 8, 7)),
    "residual": Row(Residual, (1, 5, 6)),
    "gated": Row(Gated, (2, 5, 4)),
    "functional": Row(Functional, (3, 6, 4)),
    "shapes": Row(Shapes, (1, 3, 4)),
    "attention": Row(Attention, (1, 4, 4)),
    "resized": Row(Resized, (3, 3, 4)),
    "parted": Row(Parted, (1, 2, 3)),
    "convolutional head": Row(_convolutional_head, (3, 6, 8)),
}


def network(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a network in training mode, with random weights and random statistics."""
    return copy.deepcopy(_built(name, seed)).to(dtype)


@lru_cache(maxsize=64)
def _built(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = ZOO[name].build()
        for each in module.modules():
            if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d):
                each.running_mean.uniform_(-0.5, 0.5)
                each.running_var.uniform_(0.1, 2)
                each.weight.uniform_(-1.5, 1.5)
                each.bias.uniform_(-0.5, 0.5)
        _balance(module.double(), images(name, 64, seed))
    return module


def _balance(module: nn.Module, inputs: Tensor) -> None:
    """Scale and shift the last layer, so that every class is predicted."""
    logits = module.eval()((inputs - MEAN) / STD)
    last = [each for each in module.modules() if isinstance(each, nn.Linear | nn.Conv2d)][-1]
    if len(last.weight) == CLASSES:
        last.weight.div_(logits.std(0).mean())
        last.bias.sub_(logits.mean(0)).div_(logits.std(0).mean())
    module.train()


def images(name: str, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random images for a network; some pixels are at an end of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, *ZOO[name].shape, generator=generator, dtype=torch.float64)
    return (values * 1.2 - 0.1).clamp(0, 1).to(dtype)


def problem(
    name: str, count: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Classifier, Tensor, Tensor]:
    """Return a classifier with a normalisation, images, and what it predicts for them."""
    subject = Classifier(network(name, seed, dtype), mean=MEAN, std=STD)
    inputs = images(name, count, seed, dtype)
    return subject, inputs, subject(inputs).argmax(1)


def exact_logits(subject: Classifier, points: Tensor) -> Tensor:
    """Return the logits in float64, whatever the dtype of the classifier."""
    module = subject.module
    dtype, training = subject.dtype, module.training
    mean, std = (
        torch.tensor(each, dtype=dtype).double().view(1, -1, 1, 1)
        for each in (subject.normalization or ((0.0,), (1.0,)))
    )
    module.eval().double()
    try:
        with torch.no_grad():
            return module((points.double() - mean) / std)
    finally:
        module.to(dtype).train(training)


def points_inside(lower: Tensor, upper: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return `(count, ...)` points of one box `(...)`: its ends, other corners, and any."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *lower.shape, generator=generator, dtype=lower.dtype)
    share[: count // 2] = share[: count // 2].round()
    share[0], share[1] = 0, 1
    return torch.minimum(torch.maximum(lower + share * (upper - lower), lower), upper)
