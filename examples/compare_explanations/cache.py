"""Trained weights on disk, so that training happens once and not in every test run."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

HERE = Path(__file__).parent
FOLDER = HERE / ".cache"


def trained(name: str, train: Callable[[], nn.Module], empty: nn.Module) -> nn.Module:
    """Return a trained network, from the cache if the code that trains it is the same.

    Of several processes that ask at once, one trains and the others wait for it.
    """
    code = b"".join(
        path.read_bytes() for path in sorted(HERE.glob("*.py")) if "test" not in path.name
    )
    key = hashlib.sha256(code + torch.__version__.encode()).hexdigest()[:16]
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}-{key}.pt"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            save(train(), path)
    empty.load_state_dict(torch.load(path, weights_only=True))
    return empty


def save(model: nn.Module, path: Path) -> None:
    """Write weights as a whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        torch.save(model.state_dict(), file)
    os.replace(temporary, path)
