"""How many rows go through the network at once.

The fastest chunk is found by timing a few sizes on the real network and device, not by filling
memory: on a CPU the largest chunk that fits is often the slowest. When memory runs out the chunk
is halved, once and for all, and the user is told.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pytest_triguard.engine.devices import is_host, synchronize
from pytest_triguard.errors import TriGuardWarning

UNTIMED = 64
"""Chunk where there is too little work for timing to pay."""

_SMALLEST = 16
_LARGEST_ON_HOST, _LARGEST_ON_ACCELERATOR = 512, 4096
_WORTH_IT = 0.97
_REPEATS = 3

Result = TypeVar("Result")


class ChunkSize:
    """Rows per pass: pinned by the user, found by timing, or halved because memory ran out.

    Args:
        pinned: The user's choice, or None to find the fastest.
        timings: Fastest size by (shape, dtype), shared by all checks of one classifier and device.

    Attributes:
        used: The chunk in use, or None as long as nothing was chunked.
    """

    def __init__(
        self,
        pinned: int | None = None,
        timings: dict[tuple[tuple[int, ...], torch.dtype], int] | None = None,
    ) -> None:
        self.used = pinned
        self._pinned = pinned is not None
        self._timings = {} if timings is None else timings
        self._told = False

    @property
    def rows(self) -> int:
        """The chunk in use, or the one for little work."""
        return self.used or UNTIMED

    def tune(self, run: Callable[[Tensor], object], example: Tensor, *, work: int) -> None:
        """Choose the chunk for a job.

        Args:
            run: One pass over some rows, as the job will do it.
            example: `(n, C, H, W)` rows on the device; repeated as needed.
            work: Rows the job will pass in all. Less than some thousand are not worth timing.
        """
        if self._pinned:
            return
        key = (tuple(example.shape[1:]), example.dtype)
        if key in self._timings:
            self.used = self._timings[key]
        elif work < 64 * UNTIMED:
            self.used = UNTIMED
        else:
            self.used = self._timings[key] = self._fastest(run, example)

    def _fastest(self, run: Callable[[Tensor], object], example: Tensor) -> int:
        largest = _LARGEST_ON_HOST if is_host(example.device) else _LARGEST_ON_ACCELERATOR
        best_size, best_time, size = _SMALLEST, float("inf"), _SMALLEST
        run(example[:1])
        while size <= largest:
            rows = example.repeat(-(-size // len(example)), 1, 1, 1)[:size]
            try:
                seconds = min(_timed(run, rows) for _ in range(_REPEATS)) / size
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                break
            if seconds > best_time:
                break
            if seconds < _WORTH_IT * best_time:
                best_size, best_time = size, seconds
            size *= 2
        return best_size

    def shrink(self, failed_rows: int) -> None:
        """Halve the chunk after `failed_rows` rows did not fit, and say so once."""
        halved = max(1, min(self.rows, failed_rows) // 2)
        if not self._told:
            warnings.warn(
                f"memory ran out with {failed_rows} rows in a pass; going on with {halved}. "
                f"--triguard-chunk={halved} avoids the retry",
                TriGuardWarning,
                stacklevel=2,
            )
        self._told = True
        self.used = halved
        for key, size in self._timings.items():
            self._timings[key] = min(size, halved)

    def attempt(self, run: Callable[[slice], Result], rows: int) -> list[Result]:
        """Run a pass over rows 0 to `rows`, in halves when memory runs out.

        Args:
            run: Computes the result of a slice of the rows.
            rows: Number of rows.

        Returns:
            The results in order: one, unless memory ran out.
        """
        parts: list[Result] = []
        start, size = 0, rows
        while start < rows:
            try:
                parts.append(run(slice(start, min(start + size, rows))))
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
                self.shrink(size)
                size = max(1, size // 2)
            else:
                start += size
        return parts

    def map(self, run: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Apply `run` to chunks of rows and join the results along the first dimension."""
        parts: list[Tensor] = []
        start = 0
        while start < len(rows):
            block = rows[start : start + self.rows]
            parts += self.attempt(_on(run, block), len(block))
            start += len(block)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _on(run: Callable[[Tensor], Tensor], block: Tensor) -> Callable[[slice], Tensor]:
    return lambda part: run(block[part])


def _timed(run: Callable[[Tensor], object], rows: Tensor) -> float:
    synchronize(rows.device)
    start = time.perf_counter()
    run(rows)
    synchronize(rows.device)
    return time.perf_counter() - start


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on an accelerator or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
