"""Float32 at least: what half precision cannot hold, sums and losses among it, is held so."""

from __future__ import annotations

import torch
from torch import Tensor


def single_or_finer(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for a dtype of lower precision, else the dtype."""
    return torch.promote_types(dtype, torch.float32)


def at_least_single(values: Tensor) -> Tensor:
    """Return values in float32 if their own precision is lower, else as they are."""
    return values.to(single_or_finer(values.dtype))
