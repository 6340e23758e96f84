"""What an assertion returns."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_triguard.record import Record


@dataclass(frozen=True)
class Measurement:
    """One number per sample, and what became of them.

    Attributes:
        values: `(N,)` float64 in the order of the data; NaN where a sample is undefined or does
            not count. For rates 1 is a success and 0 is none.
        value: The number held against the threshold, or None where no sample is defined.
        interval: Its interval, or None where there is none.
        n: Number of samples the value is computed from.
        undefined: Number of samples for which the metric is undefined.
        counts: Counts by name, reasons of undefined values among them.
        parameters: Method and parameters.
        passes: Forward and backward passes, counted in samples.
        ids: Sample ids in the order of the data.
        record: The whole record of the check.
    """

    values: npt.NDArray[np.float64]
    value: float | None
    interval: tuple[float, float] | None
    n: int
    undefined: int
    counts: dict[str, int]
    parameters: dict[str, Any]
    passes: dict[str, int]
    ids: tuple[Hashable, ...]
    record: Record
