"""Samples on their way in: predicted as they are, and parted by what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import ModelError


@torch.no_grad()
def clean_logits(model: Model, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """Yield blocks of samples on the device, and their logits `(n, K)`."""
    for block in Feed(batches, model.device).blocks(model.chunk.rows):
        yield block, model.chunk.map(model.logits, block.inputs)


def labelled(batch: Batch) -> Tensor:
    """Return the labels of a batch that is known to have them."""
    if batch.labels is None:
        raise TypeError("the samples of this check have labels")
    return batch.labels


def sift(
    model: Model, batches: Iterable[Batch], keep: Callable[[Batch, Tensor], Tensor]
) -> Iterator[tuple[Batch, Batch]]:
    """Part samples by their clean logits, block by block, with one read from the device each.

    Args:
        model: The network.
        batches: The samples.
        keep: From a block and its logits to `(n,)` bool.

    Yields:
        The samples to keep and the others; either may be empty.

    Raises:
        ModelError: If logits are not finite.
    """
    for block, logits in clean_logits(model, batches):
        finite = torch.isfinite(logits).all(1)
        kept, whole = torch.stack([keep(block, logits), finite]).tolist()
        require_finite(list(block.ids), np.array(whole), "logits")
        parted = (
            [place for place, flag in enumerate(kept) if flag],
            [place for place, flag in enumerate(kept) if not flag],
        )
        yield block.pick(parted[0]), block.pick(parted[1])


def require_finite(ids: list[Any], finite: npt.NDArray[Any], what: str) -> None:
    """Refuse logits or maps that hold NaN or infinity.

    Args:
        ids: Sample ids.
        finite: `(N,)`, false or 0 where a sample has something that is not finite.
        what: What it is that ought to be finite.

    Raises:
        ModelError: If there are any; it names the first sample.
    """
    bad = np.flatnonzero(np.asarray(finite) == 0)
    if len(bad):
        raise ModelError(
            f"the module must give finite {what}, but those of sample {ids[bad[0]]} are not "
            f"({len(bad)} of {len(ids)} samples)"
        )
