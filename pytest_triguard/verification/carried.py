"""What is done with rows on their way back: merged, paid for, added up."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.relaxations import dot
from pytest_triguard.verification.windows import Windowed, merged


def merge(
    pending: dict[Hashable, Tensor | Windowed],
    merges: dict[Hashable, int],
    key: Hashable,
    part: Tensor | Windowed,
) -> None:
    """Add rows on a value to those that wait there."""
    if key in pending:
        merges[key] = merges.get(key, 0) + 1
        part = merged(pending[key], part)
    pending[key] = part


def absolute_dot(rows: Tensor | Windowed, error: Tensor) -> Tensor:
    """Return the magnitudes of rows times `(N or 1, *shape)`, as `(N, S)`."""
    if isinstance(rows, Windowed):
        return replace(rows, rows=rows.rows.abs()).dot(error)
    return dot(rows.abs(), error.unsqueeze(1))


def summed(parts: list[Tensor]) -> Tensor:
    """Return the sum of parts of a bound, rounded down."""
    total, size = parts[0], parts[0].detach().abs()
    for part in parts[1:]:
        total, size = total + part, size + part.detach().abs()
    unit = rounding.roundoff(total.dtype)
    return total - 4 * len(parts) * unit * size


def added(error: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the sum of two errors per unit of a coefficient, None for nothing."""
    if error is None or other is None:
        return other if error is None else error
    return error + other
