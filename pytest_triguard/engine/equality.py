"""Whether two tensors hold the same values, here or on paper."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


def same_values(first: Tensor, second: Tensor) -> bool:
    """Return whether shape, dtype and every element agree; NaN agrees with NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def fingerprint(values: Tensor) -> str:
    """Return a tensor as one line that tells it from others: shape, dtype, hash of the values."""
    content = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return f"{tuple(values.shape)} {values.dtype} {digest}"


def hyperparameters(method: Any) -> dict[str, Any]:
    """Return the fields of a method as its records have them: tensors by their fingerprints."""
    values = {each.name: getattr(method, each.name) for each in fields(method)}
    return {
        name: fingerprint(value) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
