"""A network ready to run, without a classifier around it."""

from __future__ import annotations

import torch
from torch import nn

from pytest_triguard.engine.chunking import ChunkSize
from pytest_triguard.engine.model import Model


def ready(
    module: nn.Module,
    chunk: int | None = None,
    *,
    dtype: torch.dtype | None = torch.float64,
    bounds: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,)),
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Model:
    """Return a frozen module on the CPU as engines see it."""
    return Model(
        module.eval().requires_grad_(False),
        device=torch.device("cpu"),
        dtype=dtype,
        bounds=bounds,
        normalization=normalization,
        chunk=ChunkSize(chunk),
    )
