"""Steps times gradients, summed along the path of a search while it is taken.

Nothing of the path is kept but the sum, so that memory does not grow with the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch

Integrand = Callable[[Rows, Tensor, Tensor], Tensor]
"""From rows at the points they stepped to, the points before and the gradients there, all
`(n, C, H, W)`, to what the step adds."""


def step_times_gradient(rows: Rows, before: Tensor, gradient: Tensor) -> Tensor:
    """Return each step times the gradient at its start, `(n, C, H, W)`."""
    return (rows["points"] - before) * gradient


def step_times_momentum(rows: Rows, before: Tensor, gradient: Tensor) -> Tensor:
    """Return each step times the gradients accumulated for it, or the gradient without momentum."""
    accumulated = rows.get("momentum")
    return step_times_gradient(rows, before, gradient if accumulated is None else accumulated)


def add_term(rows: Rows, term: Tensor, *, all_live: bool) -> None:
    """Add a term to the integral of the rows that live.

    Args:
        rows: Rows after a step.
        term: `(n, C, H, W)`.
        all_live: Whether all rows are known to live.
    """
    if not all_live:
        term = torch.where(per_row(rows["live"], term), term, 0.0)
    rows["integral"] = rows["integral"] + term


def summed(outcomes: Iterable[Outcome], batch: Batch) -> Tensor:
    """Return the integrals of searches from some samples, `(n, C, H, W)`, added sample by sample.

    Args:
        outcomes: Outcomes of searches with an integrand, in any order.
        batch: The samples.
    """
    places = {position: place for place, position in enumerate(batch.positions)}
    total = torch.zeros_like(batch.inputs)
    for outcome in outcomes:
        if outcome.integral is None:
            raise TypeError("the searches have an integrand")
        index = torch.tensor([places[each] for each in outcome.positions], dtype=torch.int64)
        total.index_add_(0, index.to(total.device, non_blocking=True), outcome.integral)
    return total
