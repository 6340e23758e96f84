"""What is done with rows on their way back: carried, merged, paid for, added up."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.relaxations import Affine, Relaxation, Slid, dot, magnitudes
from pytest_triguard.verification.tunable import Tunable
from pytest_triguard.verification.windows import Windowed, merged, whole


def merge(
    pending: dict[Hashable, Tensor | Windowed],
    merges: dict[Hashable, int],
    constants: list[Tensor],
    key: Hashable,
    part: Tensor | Windowed,
    value: Interval,
) -> None:
    """Add rows on a value to those that wait there; what is left out is paid for."""
    if key in pending:
        merges[key] = merges.get(key, 0) + 1
        part, lost = merged(pending[key], part)
        if lost is not None:  # twice, which pays for rounding here
            constants.append(-absolute_dot(lost, 2 * value.magnitude.detach()))
    pending[key] = part


def back(
    relaxation: Relaxation,
    rows: Tensor | Windowed,
    choice: Tensor | None,
    *,
    owned: bool = False,
) -> tuple[Sequence[tuple[Interval, Tensor | Windowed]], Tensor | None]:
    """Carry rows back, in windows where the operator slides and they are clearly smaller.

    Args:
        relaxation: The operator.
        rows: Coefficients on its result.
        choice: Shares for a tunable relaxation, or None for its own.
        owned: Whether nothing else reads the rows, so that they may be overwritten.
    """
    if isinstance(rows, Windowed) and rows.grid.pays:
        slide = getattr(relaxation, "slide", None)
        slid: Slid | None = None
        if isinstance(relaxation, Tunable):
            slid = relaxation.slide(rows, choice)
        elif slide is not None:
            slid = slide(rows)
        if slid is not None:
            return slid
    if isinstance(relaxation, Tunable):
        full = whole(rows)
        plain = choice is None and relaxation.rectifies and not torch.is_grad_enabled()
        if owned and plain and full.is_contiguous():
            return relaxation.overwrite(full)
        return relaxation.back(full, choice)
    return relaxation.back(whole(rows))


def fresh(relaxation: Relaxation) -> bool:
    """Return whether rows that were carried back share no memory with those before."""
    return isinstance(relaxation, Affine) and relaxation.fresh


def absolute_dot(rows: Tensor | Windowed, error: Tensor) -> Tensor:
    """Return the magnitudes of rows times `(N or 1, *shape)`, as `(N, S)`."""
    if isinstance(rows, Windowed):
        return replace(rows, rows=magnitudes(rows.rows, 3)).dot(error)
    return dot(magnitudes(rows, 2), error.unsqueeze(1))


def summed(parts: list[Tensor]) -> Tensor:
    """Return the sum of parts of a bound, rounded down."""
    stacked = torch.stack(parts)
    size = stacked.detach().abs().sum(0)
    return stacked.sum(0) - size * (4 * len(parts) * rounding.roundoff(size.dtype))


def added(error: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the sum of two errors per unit of a coefficient, None for nothing."""
    if error is None or other is None:
        return other if error is None else error
    return error + other
