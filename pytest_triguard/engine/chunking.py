"""How many rows go through the network at once.

The fastest chunk is found by timing a few sizes on the real network and device, not by filling
memory: on a CPU the largest chunk that fits is often the slowest. When memory runs out the chunk
is halved, once and for all, and the user is told.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pytest_triguard.engine.devices import is_host, synchronize
from pytest_triguard.errors import TriGuardWarning

UNTIMED = 64
"""Chunk where there is too little work for timing to pay, unless rows are large."""

_SMALLEST = 16
_ELEMENTS_ON_HOST = 2**22
"""Elements of the inputs of such a chunk at most: with more, what a pass touches fits no cache."""
_LARGEST_ON_HOST, _LARGEST_ON_ACCELERATOR = 256, 4096  # what steps touch fits a cache
_WORTH_IT = 0.03
"""Gain in speed for which a larger chunk is taken."""
_TURNS = (2, 6)
"""Fewest and most turns in which two sizes are timed: short passes need more, and cost less."""

_TRIAL = 0.01
"""Largest size that is timed, as a share of a job: all timing together stays within 7 % of it."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """What timing has found so far.

    Attributes:
        best: The fastest size.
        tried: The largest size that need not be tried again.
    """

    best: int
    tried: int


Timings = dict[tuple[tuple[int, ...], torch.dtype], Timing]
"""What was found by shape and dtype of a row."""


class ChunkSize:
    """Rows per pass: pinned by the user, found by timing, or halved because memory ran out.

    Args:
        pinned: The user's choice, or None to find the fastest.
        timings: What was found before, shared by all checks of one classifier and device.

    Attributes:
        used: The chunk in use, or None as long as nothing was chunked.
    """

    def __init__(self, pinned: int | None = None, timings: Timings | None = None) -> None:
        self.used = pinned
        self._pinned = pinned is not None
        self._timings: Timings = {} if timings is None else timings
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
            work: Rows the job will pass in all. The more they are, the larger the sizes for which
                timing pays; where it does not pay at all, the chunk is `UNTIMED`.
        """
        if self._pinned:
            return
        key = (tuple(example.shape[1:]), example.dtype)
        known = self._timings.get(key)
        largest = _LARGEST_ON_HOST if is_host(example.device) else _LARGEST_ON_ACCELERATOR
        trial = int(_TRIAL * work)
        affordable = min(largest, trial)
        usual = _usual(example)
        if known is None and affordable < 2 * usual:
            self.used = usual
            return
        if known is None or 2 * known.tried <= affordable:
            start = usual if known is None else known.best
            found = _fastest(run, example, start, affordable, trial)
            if known is None and found.best == start:
                found = _smaller(run, example, found, trial)
            known = self._timings[key] = found
        self.used = known.best

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
        for key, known in self._timings.items():
            self._timings[key] = Timing(min(known.best, halved), _LARGEST_ON_ACCELERATOR)

    def attempt(self, run: Callable[[slice], Result], rows: int) -> list[Result]:
        """Run a pass over rows 0 to `rows`, in halves when memory runs out.

        Args:
            run: Computes the result of a slice of the rows.
            rows: Number of rows.

        Returns:
            The results in order: one, unless memory ran out.
        """
        parts: list[Result] = []
        start, size = 0, min(rows, self.rows)
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


def _usual(example: Tensor) -> int:
    """Return the chunk that is taken without timing, and the first that is timed."""
    if not is_host(example.device):
        return UNTIMED
    most = max(1, _ELEMENTS_ON_HOST // max(1, example[:1].numel()))
    return min(UNTIMED, 1 << (most.bit_length() - 1))


def _smaller(run: Callable[[Tensor], object], example: Tensor, found: Timing, trial: int) -> Timing:
    """Halve the size as long as that brings something, or as memory runs out."""
    best = found.best
    while best // 2 >= _SMALLEST:
        half = best // 2
        try:
            gain = _gain(run, example, best, half, _turns(trial, best))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            if gain < _WORTH_IT:
                break
        best = half
    return Timing(best, found.tried)


def _turns(trial: int, rows: int) -> int:
    """Return in how many turns passes of so many rows are timed."""
    fewest, most = _TURNS
    return min(max(fewest, trial // (2 * rows)), most)


def _fastest(
    run: Callable[[Tensor], object], example: Tensor, start: int, largest: int, trial: int
) -> Timing:
    """Double the size until two sizes in a row bring nothing, or the largest is reached.

    Args:
        run: One pass over some rows.
        example: Rows on the device.
        start: Size to begin with.
        largest: Largest size to try.
        trial: Rows that may be spent on timing a size.
    """
    best = size = start
    misses = 0
    run(example[:1])
    while misses < 2 and 2 * size <= largest:
        size *= 2
        try:
            gains = _gain(run, example, best, size, _turns(trial, size)) >= _WORTH_IT
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            misses = 2
        else:
            best, misses = (size, 0) if gains else (best, misses + 1)
    return Timing(best, size if misses < 2 else _LARGEST_ON_ACCELERATOR)


def _gain(
    run: Callable[[Tensor], object], example: Tensor, known: int, other: int, turns: int
) -> float:
    """Return how much faster rows go in chunks of another size, as a share of their time.

    Both are timed in turns, so that a busy machine slows both alike.
    """
    most = max(known, other)
    rows = example.repeat(-(-most // len(example)), 1, 1, 1)[:most]
    times = [(_timed(run, rows[:known]), _timed(run, rows[:other])) for _ in range(turns)]
    return 1 - (min(each[1] for each in times) / other) / (min(each[0] for each in times) / known)


def _timed(run: Callable[[Tensor], object], rows: Tensor) -> float:
    start = now(rows.device)
    run(rows)
    return now(rows.device) - start


def now(device: torch.device) -> float:
    """Return the seconds that passes are timed with, once the device has done what it was told.

    One thread on a host is timed by what it had of the processor: others may have had the rest.
    """
    synchronize(device)
    alone = is_host(device) and torch.get_num_threads() == 1
    return time.thread_time() if alone else time.perf_counter()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on an accelerator or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
