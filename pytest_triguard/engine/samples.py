"""Samples on their way through a check: the batches that come in, the rows that go through."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Checked samples in the order of the data, on the device they came on.

    Attributes:
        positions: Place of each sample in the data, counted from 0.
        ids: Sample ids: the place, or the user's own.
        keys: `(n,)` int64, what random draws are keyed with, on the host.
        inputs: `(n, C, H, W)` floating, finite, inside the bounds.
        labels: `(n,)` int64, or None where the data has none.
        targets: `(n,)` int64, or None where nothing is targeted.
        logits: `(n, K)` of the inputs, or None where they were not predicted yet.
    """

    positions: tuple[int, ...]
    ids: tuple[Hashable, ...]
    keys: Tensor
    inputs: Tensor
    labels: Tensor | None = None
    targets: Tensor | None = None
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def rows(self, part: slice) -> Batch:
        """Return some of the samples, without a copy."""
        return self._mapped(lambda each: each[part], self.positions[part], self.ids[part])

    def pick(self, keep: list[int]) -> Batch:
        """Return the samples at some places, copied."""
        index = torch.tensor(keep, dtype=torch.int64)
        return self._mapped(
            lambda each: each.index_select(0, index.to(each.device)),
            tuple(self.positions[each] for each in keep),
            tuple(self.ids[each] for each in keep),
        )

    def to(self, device: torch.device) -> Batch:
        """Return the samples with their tensors on a device."""
        return self._mapped(
            lambda each: each.to(device, non_blocking=True), self.positions, self.ids
        )

    def _mapped(
        self,
        change: Callable[[Tensor], Tensor],
        positions: tuple[int, ...],
        ids: tuple[Hashable, ...],
    ) -> Batch:
        optional = (
            None if each is None else change(each)
            for each in (self.labels, self.targets, self.logits)
        )
        return Batch(positions, ids, change(self.keys), change(self.inputs), *optional)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without its subclass, which would spread to all that is computed from it.

    A subclass that computes by itself, as that of a device may, stays.
    """
    kind = type(tensor)
    if kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():  # which would make one of the subclass again
        return tensor.as_subclass(Tensor)


class Feed:
    """Hands out samples in any number, from batches of whatever size the data has.

    Args:
        batches: The data, read only as far as needed.
        device: Where the samples are wanted; they are moved as they are handed out.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self._batches: Iterator[Batch] = iter(batches)
        self._device = device
        self._left: Batch | None = None

    def take(self, count: int) -> list[Batch]:
        """Return up to `count` samples in as few pieces as the data allows; none at the end."""
        pieces: list[Batch] = []
        while count > 0:
            if self._left is None or not len(self._left):
                self._left = next(self._batches, None)
                if self._left is None:
                    break
            piece = self._left.rows(slice(0, count))
            self._left = self._left.rows(slice(count, None))
            if len(piece):
                pieces.append(piece.to(self._device))
            count -= len(piece)
        return pieces

    def blocks(self, size: int) -> Iterator[Batch]:
        """Hand out everything in blocks of `size`; the last may be smaller."""
        while pieces := self.take(size):
            yield join(pieces)


def join(pieces: list[Batch]) -> Batch:
    """Return the samples of several pieces as one batch."""
    if len(pieces) == 1:
        return pieces[0]
    return Batch(
        tuple(position for piece in pieces for position in piece.positions),
        tuple(each for piece in pieces for each in piece.ids),
        torch.cat([piece.keys for piece in pieces]),
        torch.cat([piece.inputs for piece in pieces]),
        _join([piece.labels for piece in pieces]),
        _join([piece.targets for piece in pieces]),
        _join([piece.logits for piece in pieces]),
    )


def _join(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
