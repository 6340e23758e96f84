"""Auto-PGD: projected gradient ascent with momentum that chooses its own step size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from pytest_triguard.attacks.base import Attack
from pytest_triguard.attacks.goals import ascended
from pytest_triguard.attacks.searching import Searching
from pytest_triguard.attacks.starts import drawn_start
from pytest_triguard.engine.best import no_loss
from pytest_triguard.engine.geometry import ascent, per_row, project, stepped, surface_offset
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.iteration import STOPS, Stop, search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError
from pytest_triguard.validation import flag, number, one_of, whole

_MOMENTUM = 0.75
"""Share of the step in the next iterate; the rest is the previous move."""

_FIRST, _SHORTER, _SHORTEST = 22, 3, 6
"""Checkpoints in per cent of the steps: the first, by how much intervals shrink, the shortest."""


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """What the attacks that stand on Auto-PGD share.

    It starts on the surface of the ball with a step of 2 eps. At checkpoints a step that no
    longer pays is halved, and the search goes on from the best point yet, which is also what is
    returned.

    Args:
        steps: Number of steps per start.
        restarts: Number of starts.
        rho: Share of steps between two checkpoints that must raise the loss to keep the step.
        copies: Passes each gradient is averaged over, for networks that draw at random.
        stop: `"success"` lets a sample leave at its first success, `"never"` takes all steps.
        trajectory: Whether iterates, gradients and directions are kept.
    """

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    copies: int = 1
    stop: Stop = "success"
    trajectory: bool = False

    loss: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, low=1)
        whole("restarts", self.restarts, low=1)
        number("rho", self.rho, low=0, high=1)
        whole("copies", self.copies, low=1)
        one_of("stop", self.stop, STOPS)
        if flag("trajectory", self.trajectory) and self.restarts > 1:
            raise InputError(f"trajectory=True needs one start, but restarts={self.restarts} came")

    @property
    def averages(self) -> bool:
        """Whether it averages over passes, and so is made for networks that draw at random."""
        return self.copies > 1

    @property
    def passes_per_sample(self) -> int:
        """Most gradient passes a sample can take."""
        return self.steps * self.restarts * self.copies

    def classes_needed(self, *, targeted: bool) -> int:
        """Return the fewest classes the loss is defined for."""
        return 2 if self.loss == "cross_entropy" else 4 if targeted else 3

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        starts = "a random start" if self.restarts == 1 else f"{self.restarts} random starts"
        leaves = "until the first success" if self.stop == "success" else "all taken"
        return (
            f"{self.name}: {starts}, {self.steps} steps up the {self.loss}, {leaves}, "
            f"seed {self.drawn_seed}"
        )

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        return search(model, batches, Climb(self, model))


AnyAPGD = TypeVar("AnyAPGD", bound=APGD)


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which the step size is looked at (Croce and Hein 2020, section 3.1)."""
    marks: list[int] = []
    share, interval = _FIRST, _FIRST
    while share <= 100:
        marks.append(-(-share * steps // 100))
        interval = max(interval - _SHORTER, _SHORTEST)
        share += interval
    return sorted(set(marks))


class Climb(Searching[AnyAPGD]):
    """The search behind an attack of this family; each row is at its own step."""

    @cached_property
    def since(self) -> Tensor:
        """Steps since the checkpoint before, `(steps + 1,)`; 0 at steps that are no checkpoint."""
        since = torch.zeros(self.steps + 1)
        before = 0
        for mark in checkpoints(self.steps):
            since[mark] = mark - before
            before = mark
        return since.to(self.model.device)

    @property
    def record(self) -> bool:
        """Whether the trajectory is kept."""
        return self.attack.trajectory

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""
        return steps * self.attack.copies

    def begin(self, model: Model, rows: Rows) -> None:
        """Start on the surface of the ball."""
        clean, eps = rows["clean"], rows["eps"]
        points = drawn_start(self.attack, model, rows, surface_offset)
        rows["points"], rows["previous"] = points, points.clone()
        rows["best_gradient"] = torch.zeros_like(clean)
        rows["length"] = 2 * eps
        rows["loss"], rows["checked_best"] = no_loss(rows), no_loss(rows)
        rows["before"] = -no_loss(rows)  # the first point is no progress
        rows["rises"] = torch.zeros_like(eps)
        rows["halved"] = torch.zeros_like(rows["live"])

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the gradient, averaged over the copies, and the logits of the first."""
        gradient, logits = self._gradient(model, rows)
        for _ in range(self.attack.copies - 1):
            gradient += self._gradient(model, rows)[0]
        rows["loss"].copy_(self.loss(logits, rows))
        return gradient.div_(self.attack.copies), logits

    def _gradient(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor]:
        return input_gradient(
            model, rows["points"], rows["labels"], lambda logits, _: self.loss(logits, rows)
        )

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next points and the direction stepped."""
        attack, clean, eps = self.attack, rows["clean"], rows["eps"]
        bounds = model.bounds(clean.dtype)
        better = per_row(rows["better"], gradient)
        rows["best_gradient"] = torch.where(better, gradient, rows["best_gradient"])
        points, gradient = self._checked(rows, gradient)
        direction = ascent(gradient, attack.norm)
        ahead = stepped(points, direction, rows["length"], clean, eps, attack.norm, bounds)
        share = per_row(torch.where(rows["step"] == 0, 1.0, _MOMENTUM), clean).to(clean.dtype)
        moved = points + share * (ahead - points) + (1 - share) * (points - rows["previous"])
        rows["previous"] = points
        return project(moved, clean, eps, attack.norm, bounds), direction

    def _checked(self, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the step where it does not pay; return where to go on from, and its gradient."""
        best, points, length = rows["best_loss"], rows["points"], rows["length"]
        rises = rows["rises"] + (rows["loss"] > rows["before"])
        checked = torch.where(rows["step"] == 0, best, rows["checked_best"])
        since = self.since[rows["step"]].to(length.dtype)
        due = since > 0
        stuck = ~rows["halved"] & (best <= checked)
        halve = due & ((rises < self.attack.rho * since) | stuck)
        rows["length"] = torch.where(halve, length / 2, length)
        rows["halved"] = torch.where(due, halve, rows["halved"])
        rows["checked_best"] = torch.where(due, best, checked)
        rows["rises"] = torch.where(due, 0.0, rises)
        rows["before"] = rows["loss"].clone()
        back = per_row(halve, points)
        return (
            torch.where(back, rows["best_points"], points),
            torch.where(back, rows["best_gradient"], gradient),
        )

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return what the search ascends, `(n,)`."""
        return ascended(self.attack.loss, logits, rows)
