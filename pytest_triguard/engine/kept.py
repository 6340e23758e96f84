"""Maps that one check of a classifier leaves to the next, up to a limit.

Checks of one method on the same samples need the same maps, and maps are what such checks cost.
What is kept belongs to a key, which tells all that a map depends on beside the sample, and to the
mark of the sample.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_triguard.engine.samples import Batch

LIMIT = 2**27
"""Bytes that a classifier keeps."""


def marks(batch: Batch) -> list[bytes]:
    """Return what tells each sample from others: a hash of its values, its key and its place."""
    rows = batch.inputs.detach().cpu().contiguous()
    kind = f"{rows.dtype} {tuple(rows.shape[1:])}"
    values = rows.flatten(1).view(torch.uint8).numpy()
    found = []
    for row, key, place in zip(values, batch.keys.tolist(), batch.positions, strict=True):
        digest = hashlib.blake2b(f"{kind} {key} {place} ".encode(), digest_size=16)
        digest.update(row.data)
        found.append(digest.digest())
    return found


@dataclass(frozen=True)
class Explained:
    """Maps of some samples, and what they were made for.

    Attributes:
        maps: `(n, C, H, W)`.
        logits: `(n, K)` of the samples.
        targets: `(n,)` int64, the classes that were explained.
    """

    maps: Tensor
    logits: Tensor
    targets: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of them."""
        return self.maps, self.logits, self.targets


@dataclass(frozen=True)
class Witness:
    """A sample whose gradient tells whether a network still goes backward as it did.

    Attributes:
        inputs: `(1, C, H, W)`.
        targets: `(1,)` int64.
        gradient: `(1, C, H, W)`.
    """

    inputs: Tensor
    targets: Tensor
    gradient: Tensor


@dataclass
class _Shelf:
    """What is kept under one key."""

    witness: Witness
    rows: dict[bytes, tuple[Tensor, ...]] = field(default_factory=dict)
    size: int = 0


class KeptMaps:
    """Maps by key and mark; where room runs out, the keys not added to for longest give way.

    Args:
        limit: Bytes that are kept at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._shelves: dict[Hashable, _Shelf] = {}
        self._lock = threading.RLock()

    def witness(self, key: Hashable) -> Witness | None:
        """Return the witness of a key, or None where nothing is kept under it."""
        with self._lock:
            shelf = self._shelves.get(key)
            return None if shelf is None else shelf.witness

    def find(self, key: Hashable, marks: Sequence[bytes]) -> Explained | None:
        """Return what is kept of some samples, or None where one of them is missing."""
        with self._lock:
            shelf = self._shelves.get(key)
            if shelf is None or not all(mark in shelf.rows for mark in marks):
                return None
            rows = [shelf.rows[mark] for mark in marks]
        return Explained(*(torch.stack(parts) for parts in zip(*rows, strict=True)))

    def keep(
        self, key: Hashable, marks: Sequence[bytes], made: Explained, witness: Witness
    ) -> None:
        """Keep what was made for some samples, if there is room for all of them."""
        row_size = sum(each[0].numel() * each.element_size() for each in made.parts)
        with self._lock:
            shelf = self._shelves.pop(key, None) or _Shelf(witness)
            self._shelves[key] = shelf  # the last one added to
            size = row_size * sum(mark not in shelf.rows for mark in marks)
            if not self._has_room(key, size):
                return
            shelf.size += size
            # Copies, so that nothing is held beside them, and nobody writes to them.
            copies = (each.clone(memory_format=torch.contiguous_format) for each in made.parts)
            shelf.rows |= zip(marks, zip(*copies, strict=True), strict=True)

    def _has_room(self, key: Hashable, size: int) -> bool:
        """Return whether there is room, once other keys have given way."""
        while sum(each.size for each in self._shelves.values()) + size > self._limit:
            oldest = next(iter(self._shelves))
            if oldest == key:
                return False
            del self._shelves[oldest]
        return True

    def forget(self, key: Hashable) -> None:
        """Keep nothing under a key any more."""
        with self._lock:
            self._shelves.pop(key, None)
