"""Targets an attack chooses itself: the classes of largest logit at the sample."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pytest_triguard.attacks.searching import Searching, Stepping
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.rows import Rows

TARGETS = 9
"""Most targets per sample in AutoAttack."""


class Choosing(Stepping, Protocol):
    """An attack that chooses its targets."""

    @property
    def classes(self) -> int:
        """Number of targets, where there are as many classes beside the label."""


AnyChoosing = TypeVar("AnyChoosing", bound=Choosing)


class Ranked(Searching[AnyChoosing]):
    """Gives each start of a search its target, `aim`; stands before the search that ascends."""

    @property
    def restarts(self) -> int:
        """Number of starts of all targets."""
        return rounds(self.attack.classes, self.model) * self.attack.restarts

    def begin(self, model: Model, rows: Rows) -> None:
        """Set `points` for a start, and the class it goes to."""
        super().begin(model, rows)
        aim(model, rows, self.attack.classes, each=self.attack.restarts)


def rounds(wanted: int, model: Model) -> int:
    """Return how many targets a sample has: as many as are wanted, if there are so many."""
    return wanted if model.num_classes is None else min(wanted, model.num_classes - 1)


def aim(model: Model, rows: Rows, wanted: int, *, each: int) -> None:
    """Set the target `aim`, `(n,)`, of the start that rows are at.

    Args:
        model: The network.
        rows: Rows at the beginning of a start.
        wanted: Number of targets.
        each: Starts per target, one after the other.
    """
    if "ranked" not in rows:
        rows["ranked"] = _ranked(model, rows, wanted)
    round_ = (rows["restart"] // each).unsqueeze(1)
    rows["aim"] = rows["ranked"].gather(1, round_).squeeze(1)


@torch.no_grad()
def _ranked(model: Model, rows: Rows, wanted: int) -> Tensor:
    """Return the classes but the label by falling logit, `(n, targets)` int64."""
    logits = model.chunk.map(model.logits, rows["clean"])
    others = logits.scatter(1, rows["labels"].unsqueeze(1), -torch.inf)
    return others.topk(rounds(wanted, model), dim=1).indices
