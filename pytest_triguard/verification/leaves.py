"""The last parts of a branch and bound, in which the network is affine: linear programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from pytest_triguard.verification.intervals import Interval

Form = tuple[int, Tensor, Tensor]
"""Side of a decision, and what is decided as coefficients on the inputs and a constant."""

_CLEARLY = 4.0
"""How far beyond the threshold multipliers for an empty part are to lift its bound."""


def solve(
    region: Interval,
    objective: tuple[Tensor, Tensor],
    forms: Sequence[Form | None],
    threshold: float,
) -> tuple[Tensor, Tensor | None] | None:
    """Solve for the least value of a part: a linear program over a box.

    The solver's answer is not believed: its dual solution serves as multipliers, with which the
    bound is computed again, and its primal solution as a point at which the module is asked.

    Args:
        region: One sample's region; only its box counts.
        objective: Coefficients `(D,)` on the inputs, and a constant.
        forms: Decisions: side times form is at least 0; None for none.
        threshold: What the bound is to exceed.

    Returns:
        A multiplier for every decision, and the inputs `(D,)` of the least value, or None where
        the part is empty; None if the solver fails, or a number overflowed.
    """
    weights = torch.zeros(len(forms), dtype=torch.float64)
    used = [place for place, form in enumerate(forms) if form is not None]
    kept = [form for form in forms if form is not None]
    slopes, constant = _array(objective[0]), float(objective[1])
    above = np.array([-side * _array(slope) for side, slope, _ in kept]).reshape(-1, len(slopes))
    limit = np.array([side * float(offset) for side, _, offset in kept])
    box = np.stack([_array(region.lower.flatten()), _array(region.upper.flatten())], axis=1)
    if not all(np.isfinite(each).all() for each in (slopes, above, limit)):
        return None
    found = _program(slopes, above, limit, box)
    if found.status == 0:
        weights[used] = torch.from_numpy(-found.ineqlin.marginals).clamp_min(0)
        return weights, torch.from_numpy(found.x)
    if found.status != 2 or not kept:
        return None
    ray = _emptiness(above, limit, box)
    if ray is None:
        return None
    least = constant + float(np.minimum(slopes * box[:, 0], slopes * box[:, 1]).sum())
    needed = _CLEARLY * max(threshold - least, 1.0) / ray[1]
    weights[used] = torch.from_numpy(ray[0] * needed)
    return weights, None


def _emptiness(
    above: np.ndarray, limit: np.ndarray, box: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """Return multipliers of sum 1 that show that no point meets all decisions, and by how much."""
    count = above.shape[1]
    wide = np.hstack([above, -np.ones((len(above), 1))])
    cost = np.zeros(count + 1)
    cost[-1] = 1
    bounds = np.vstack([box, [0, np.inf]])
    found = _program(cost, wide, limit, bounds)
    if found.status != 0 or not found.fun > 0:
        return None
    return np.clip(-found.ineqlin.marginals, 0, None), float(found.fun)


def _program(cost: np.ndarray, above: np.ndarray, limit: np.ndarray, box: np.ndarray) -> Any:
    """Minimise a cost over a box, where `above @ x <= limit`."""
    return linprog(cost, A_ub=above, b_ub=limit, bounds=box.tolist(), method="highs")


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().double().numpy()
    return array
