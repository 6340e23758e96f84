"""The best point of a search so far, kept row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.precision import single_or_finer
from pytest_triguard.engine.rows import Rows


def forget(rows: Rows, kept: str) -> None:
    """Begin to keep the best point under a name: the sample, until something is better."""
    clean = rows["clean"]
    rows[f"{kept}_points"] = clean.clone()  # rows are overwritten in place
    rows[f"{kept}_loss"] = no_loss(rows)
    rows[f"{kept}_won"] = torch.zeros(len(rows), dtype=torch.bool, device=clean.device)
    rows["better"] = torch.zeros_like(rows[f"{kept}_won"])


def no_loss(rows: Rows) -> Tensor:
    """Return minus infinity for each row, `(n,)`, in the dtype in which losses are kept.

    Logits may be finer than the inputs, as half-precision networks often end in float32.
    """
    clean = rows["clean"]
    return clean.new_full((len(rows),), -torch.inf, dtype=single_or_finer(clean.dtype))


def keep(rows: Rows, kept: str, won: Tensor, loss: Tensor) -> None:
    """Keep the points that won, or else those of highest loss, and note where they are better.

    Args:
        rows: Rows at their `points`.
        kept: Name they are kept under.
        won: `(n,)` bool, whether the points reach the goal.
        loss: `(n,)` their loss.
    """
    names = tuple(f"{kept}_{name}" for name in ("points", "won", "loss"))
    best_points, best_won, best_loss = (rows[name] for name in names)
    loss = loss.to(best_loss.dtype)
    better = (won & ~best_won) | ((won == best_won) & (loss > best_loss))
    points = rows["points"]
    new = (
        torch.where(per_row(better, points), points, best_points),
        won | best_won,
        torch.where(better, loss, best_loss),
    )
    rows.tensors |= zip(names, new, strict=True)
    rows["better"] = better
