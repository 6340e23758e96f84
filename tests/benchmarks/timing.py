"""Ratios of two jobs, timed in turns, so that a busy machine slows both alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

Job = Callable[[], object]
CONFIDENCE = 0.90


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of some ratios, and its interval by Student's t on their logarithms."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        logs = [math.log(each) for each in ratios]
        mean = statistics.fmean(logs)
        if len(logs) < 2:
            return cls(math.exp(mean), 0.0, math.inf)
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1) * error
        return cls(math.exp(mean), math.exp(mean - half), math.exp(mean + half))

    @classmethod
    def median(cls, values: Sequence[float]) -> Ratio:
        """Return the median of ratios or differences, and its interval by order statistics."""
        values = sorted(values)
        below = int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(values), 0.5))
        low = max(below - 1, 0)
        return cls(statistics.median(values), values[low], values[len(values) - 1 - low])

    def scaled(self, factor: float) -> Ratio:
        return Ratio(self.mean * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Comparison:
    """What `pairs` found: seconds by the clock of both jobs, and the ratios first / second.

    The processor's time leaves out the moments in which another process ran.
    """

    first: float
    second: float
    clock: Ratio
    processor: Ratio


def pairs(
    first: Job,
    second: Job,
    count: int,
    *,
    summary: Callable[[Sequence[float]], Ratio] = Ratio.of,
) -> Comparison:
    """Time two jobs in turns, A B A B ..., after one short turn of neither: callers warm up."""
    turns = [(timed(first), timed(second)) for _ in range(count)]
    return Comparison(
        first=statistics.median(a[0] for a, _ in turns),
        second=statistics.median(b[0] for _, b in turns),
        clock=summary([a[0] / b[0] for a, b in turns]),
        processor=summary([a[1] / b[1] for a, b in turns]),
    )


def timed(job: Job) -> tuple[float, float]:
    """Return the seconds a job took, by the clock and by the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - clock, time.process_time() - processor
