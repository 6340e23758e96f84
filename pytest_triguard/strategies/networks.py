"""Small random classifiers, for property tests of what takes a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_triguard.engine import draws
from pytest_triguard.errors import InputTypeError
from pytest_triguard.validation import describe, whole

Shape = tuple[int, int, int]

_CHANNELS = (1, 3)
_LONGEST = 6
_CLASSES = (2, 5)
_WIDEST = 8
_SEEDS = 2**16


@dataclass(frozen=True, eq=False)
class RandomNetwork:
    """A classifier and what it takes.

    Attributes:
        module: The network, in evaluation mode, for inputs in [0, 1].
        shape: `(C, H, W)` of one input.
        classes: Number of classes, the length of the logits.
    """

    module: nn.Module
    shape: Shape
    classes: int

    def inputs(self, count: int) -> Tensor:
        """Return images for the network, `(count, C, H, W)` in [0, 1); the same ones each time.

        Raises:
            InputTypeError: If `count` is no whole number.
            InputError: If it is below 1.
        """
        ids = torch.arange(whole("count", count, low=1))
        dtype = next(self.module.parameters()).dtype
        return draws.uniform(_keys(ids, 0, "random_networks.inputs"), self.shape, dtype=dtype)


def random_networks(
    *,
    shape: Shape | None = None,
    classes: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> st.SearchStrategy[RandomNetwork]:
    """Return a strategy for small classifiers with random weights.

    A network has up to two blocks of a convolution, a batch norm or none, a ReLU and a max or
    average pooling or none; then it is flattened, and up to two hidden layers with ReLU lead to
    the logits. Inputs are grey or colour, from 1 x 1 to 6 x 6 pixels, seldom square.

    The draw decides on the network and its weights: torch's generators are left as they
    are. The logits of a uniformly grey image are equal, so no class is out of reach.
    It shrinks to the smallest network: one linear layer, one grey pixel, two classes.

    Args:
        shape: `(C, H, W)` of the inputs, or None to draw one.
        classes: Number of classes, at least 2, or None to draw 2 to 5.
        dtype: Floating dtype of the weights.

    Returns:
        A strategy for networks; the modules are in evaluation mode, on the host.

    Raises:
        InputTypeError: If an argument has the wrong type.
        InputError: If a value is refused.

    Example:
        >>> from hypothesis import given
        >>> @given(random_networks(classes=3))
        ... def test_there_is_a_logit_per_class(network):
        ...     assert network.module(network.inputs(2)).shape == (2, 3)
        >>> test_there_is_a_logit_per_class()
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputTypeError(f"dtype must be a floating torch.dtype, but {describe(dtype)} came")
    if classes is not None:
        whole("classes", classes, low=2)
    return _networks(None if shape is None else _checked(shape), classes, dtype)


def _checked(shape: Any) -> Shape:
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 3:
        raise InputTypeError(f"shape must be three whole numbers, but {describe(shape)} came")
    channels, height, width = (whole("shape", each, low=1) for each in shape)
    return channels, height, width


@st.composite
def _networks(
    draw: st.DrawFn, shape: Shape | None, classes: int | None, dtype: torch.dtype
) -> RandomNetwork:
    sides = st.integers(1, _LONGEST)
    if shape is None:
        shape = draw(st.sampled_from(_CHANNELS)), draw(sides), draw(sides)
    outputs = draw(st.integers(*_CLASSES)) if classes is None else classes
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        module = nn.Sequential(*_layers(draw, shape, outputs)).double().eval()
        _fill(module, draw(st.integers(0, _SEEDS - 1)))
        module[-1].bias -= module(torch.full((1, *shape), 0.5, dtype=torch.float64))[0]
        return RandomNetwork(module.to(dtype), shape, outputs)


def _layers(draw: st.DrawFn, shape: Shape, outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(0, 2))):
        shape = _add_block(draw, layers, shape)
    layers.append(nn.Flatten())
    size = math.prod(shape)
    for _ in range(draw(st.integers(0, 2))):
        width = draw(st.integers(1, _WIDEST))
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return [*layers, nn.Linear(size, outputs)]


def _add_block(draw: st.DrawFn, layers: list[nn.Module], shape: Shape) -> Shape:
    """Add a convolution and what follows it, and return the shape of the result."""
    channels = draw(st.integers(1, 4))
    padding, stride = draw(st.integers(0, 1)), draw(st.integers(1, 2))
    padded = shape[1] + 2 * padding, shape[2] + 2 * padding
    rows, columns = (draw(st.integers(1, min(3, side))) for side in padded)
    layers.append(nn.Conv2d(shape[0], channels, (rows, columns), stride=stride, padding=padding))
    height, width = (padded[0] - rows) // stride + 1, (padded[1] - columns) // stride + 1
    if draw(st.booleans()):
        layers.append(nn.BatchNorm2d(channels))
    layers.append(nn.ReLU())
    pool = draw(st.sampled_from((None, nn.MaxPool2d, nn.AvgPool2d)))
    if pool is not None and min(height, width) > 1:
        layers.append(pool(2))
        height, width = height // 2, width // 2
    return channels, height, width


def _fill(module: nn.Module, seed: int) -> None:
    """Write weights that keep the size of the activations, and statistics that are not neutral."""
    for place, layer in enumerate(module.children()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            scale = math.sqrt(2 / layer.weight[0].numel())
            layer.weight.copy_(_normal(layer.weight, seed, place, "weight") * scale)
            if layer.bias is not None:
                layer.bias.copy_(_normal(layer.bias, seed, place, "bias") * 0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            for name, mean, spread in (
                *(("weight", 1.0, 0.3), ("bias", 0.0, 0.1)),
                *(("running_mean", 0.0, 0.3), ("running_var", 1.0, 0.15)),
            ):
                values = getattr(layer, name)
                values.copy_(mean + spread * _normal(values, seed, place, name))


def _normal(like: Tensor, seed: int, place: int, name: str) -> Tensor:
    """Return numbers of the shape of a tensor, by the layer and what they are there for."""
    keys = _keys(torch.tensor([place]), seed, f"random_networks.{name}")
    return draws.normal(keys, like.shape, dtype=torch.float64)[0]


def _keys(ids: Tensor, seed: int, method: str) -> Tensor:
    return draws.row_keys(ids, seed=seed, method=method)
