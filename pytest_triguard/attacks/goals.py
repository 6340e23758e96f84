"""What an attack ascends, and when it has reached its goal."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pytest_triguard.engine.objectives import (
    contrast,
    cross_entropy,
    dlr,
    logit,
    margin,
    probability,
    targeted_dlr,
)
from pytest_triguard.engine.rows import Rows
from pytest_triguard.errors import InputError

_KEPT = {"probability": probability, "logit": logit, "contrast": contrast, "margin": margin}
"""What falls away from the label and rises towards the target, by the name of the loss."""

LOSSES = ("cross_entropy", *_KEPT, "dlr")


def ascended(name: str, logits: Tensor, rows: Rows | Mapping[str, Tensor]) -> Tensor:
    """Return the loss of that name, `(n,)`: away from the label, or towards the target.

    Args:
        name: One of `LOSSES`.
        logits: `(n, K)`.
        rows: What carries `labels`, `(n,)`, and `targets` where there are any.

    Raises:
        InputError: If there are too few classes for it.
    """
    labels, targets = rows["labels"], rows.get("targets")
    if name == "cross_entropy":
        return cross_entropy(logits, labels) if targets is None else -cross_entropy(logits, targets)
    if name != "dlr":
        kept = _KEPT[name]
        return -kept(logits, labels) if targets is None else kept(logits, targets)
    needed = 3 if targets is None else 4
    if logits.shape[1] < needed:
        raise InputError(
            f"loss='dlr' needs at least {needed} classes, but the classifier has "
            f"{logits.shape[1]}; use loss='margin'"
        )
    return dlr(logits, labels) if targets is None else targeted_dlr(logits, labels, targets)


def reached(logits: Tensor, rows: Rows) -> Tensor:
    """Return whether the prediction is the target, or any class but the label, `(n,)` bool."""
    prediction = logits.argmax(1)
    return prediction == rows["targets"] if "targets" in rows else prediction != rows["labels"]
