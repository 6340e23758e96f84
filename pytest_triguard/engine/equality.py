"""Whether two tensors hold the same values."""

from __future__ import annotations

from torch import Tensor


def same_values(first: Tensor, second: Tensor) -> bool:
    """Return whether shape, dtype and every element agree; NaN agrees with NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())
