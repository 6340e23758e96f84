"""Where a search begins: points drawn from the ball around each sample."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pytest_triguard.attacks.base import Attack
from pytest_triguard.engine import draws
from pytest_triguard.engine.geometry import Norm, box, project
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.rows import Rows

Offset = Callable[[Tensor, Tensor, Tensor, Norm], Tensor]
"""Draws offsets, from keys, samples, radii and norm; two are in `engine.geometry`."""


def start_keys(attack: Attack, rows: Rows) -> Tensor:
    """Return the keys of what is drawn for the current start of each row, `(n,)`."""
    return draws.row_keys(
        rows["keys"],
        seed=attack.drawn_seed,
        method=f"{attack.name}/start",
        restart=rows["restart"],
    )


def drawn_start(attack: Attack, model: Model, rows: Rows, offset: Offset) -> Tensor:
    """Return random points of the balls inside the valid range, `(n, C, H, W)`."""
    clean, eps, norm = rows["clean"], rows["eps"], attack.norm
    points = clean + offset(start_keys(attack, rows), clean, eps, norm)
    bounds = model.bounds(clean.dtype)
    if norm == "l2":
        return project(points, clean, eps, norm, bounds)
    low, high = rows.get("box_low"), rows.get("box_high")
    if low is None or high is None:
        low, high = box(clean, eps, bounds)
    return points.clamp_(low, high)
