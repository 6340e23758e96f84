"""How measurements go together across samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from torch import Tensor

from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.measurement import Measurement
from pytest_triguard.validation import describe, share

_FEWEST = 4
"""Below this many samples there is no interval: its width has `n - 3` under the root."""


@dataclass(frozen=True)
class Coefficient:
    """A correlation and its confidence interval.

    Attributes:
        value: In [-1, 1], NaN where a column does not vary.
        interval: Two ends, NaN where there are fewer than 4 samples or no correlation.
    """

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Correlation:
    """How two measurements go together.

    Attributes:
        first: Name of one measurement.
        second: Name of the other.
        n: Samples for which both are defined.
        pearson: Correlation of the values.
        spearman: Correlation of their ranks, ties averaged.
    """

    first: str
    second: str
    n: int
    pearson: Coefficient
    spearman: Coefficient


def correlations(table: Mapping[str, Any], *, confidence: float = 0.95) -> list[Correlation]:
    """Return the correlations of every pair of measurements over the samples they share.

    Intervals are Fisher's: `tanh(artanh r ± z s)` with `s = 1 / sqrt(n - 3)` for Pearson's
    coefficient, and `s = sqrt((1 + r^2 / 2) / (n - 3))` for Spearman's (Bonett and Wright 2000,
    "Sample Size Requirements for Estimating Pearson, Kendall and Spearman Correlations",
    equation 3). Pearson's assumes that both are jointly normal.

    Args:
        table: Names to measurements of the same samples in the same order: what assertions return,
            or `(N,)` numbers, NaN where undefined.
        confidence: Two-sided confidence of the intervals, in (0, 1).

    Returns:
        One correlation per pair, in the order of the table.

    Raises:
        InputTypeError: If the table is no mapping, or a column holds no numbers.
        InputError: If there are fewer than two columns, or they are of different samples.
    """
    share("confidence", confidence)
    if not isinstance(table, Mapping):
        raise InputTypeError(
            f"table must be a mapping of names to measurements, but {describe(table)} came"
        )
    columns = {name: _column(name, values) for name, values in table.items()}
    if len(columns) < 2:
        raise InputError(f"table must hold at least two measurements, but {len(columns)} came")
    _require_same_samples(table, columns)
    return [
        _correlation(first, second, columns[first], columns[second], confidence)
        for first, second in combinations(columns, 2)
    ]


def _column(name: str, values: Any) -> npt.NDArray[np.float64]:
    if isinstance(values, Measurement):
        values = values.values
    elif isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputTypeError(
            f"the column {name!r} must be a measurement or (N,) numbers, but "
            f"{describe(values)} came"
        ) from None
    if column.ndim != 1:
        raise InputError(f"the column {name!r} must have shape (N,), but {column.shape} came")
    return column


def _require_same_samples(
    table: Mapping[str, Any], columns: Mapping[str, npt.NDArray[np.float64]]
) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"table must hold measurements of the same samples, but came {lengths}")
    ids = {each.ids for each in table.values() if isinstance(each, Measurement)}
    if len(ids) > 1:
        raise InputError("table must hold measurements of the same samples, but their ids differ")


def _correlation(
    first: str,
    second: str,
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    confidence: float,
) -> Correlation:
    defined = np.isfinite(a) & np.isfinite(b)
    a, b = a[defined], b[defined]
    n = len(a)
    varied = n > 1 and bool(np.ptp(a) > 0) and bool(np.ptp(b) > 0)
    pearson = float(stats.pearsonr(a, b).statistic) if varied else math.nan
    spearman = float(stats.spearmanr(a, b).statistic) if varied else math.nan
    return Correlation(
        first,
        second,
        n,
        Coefficient(pearson, _interval(pearson, n, 1.0, confidence)),
        Coefficient(spearman, _interval(spearman, n, 1 + spearman**2 / 2, confidence)),
    )


def _interval(value: float, n: int, spread: float, confidence: float) -> tuple[float, float]:
    """Return Fisher's interval; `spread` over `n - 3` is the variance of `artanh` of the value."""
    if n < _FEWEST or math.isnan(value):
        return math.nan, math.nan
    if abs(value) >= 1:
        return value, value
    half = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(spread / (n - 3))
    middle = math.atanh(value)
    return math.tanh(middle - half), math.tanh(middle + half)
