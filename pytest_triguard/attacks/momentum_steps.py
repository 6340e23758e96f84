"""Attacks that accumulate gradients, to carry over to other classifiers: the family of MIM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks import transforms as known
from pytest_triguard.attacks.gradient_steps import GradientSteps
from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import MEAN, Reduction
from pytest_triguard.engine.geometry import ascent, per_row
from pytest_triguard.engine.iteration import Stop
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.momentum import accumulated
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.transforms.base import (
    CopyTransform,
    Transform,
    copies_of,
    shaped,
    transformed_gradient,
)
from pytest_triguard.validation import number


@dataclass(frozen=True, kw_only=True)
class MomentumSteps(GradientSteps):
    """Steps along `g = momentum * g + G / <|G|>`, where `G` is an estimated gradient.

    `<|G|>` is the mean of the absolute values of a sample's gradient. In the L-inf ball a step
    follows the sign of `g`, in the L2 ball its direction. Examples are made to fool other
    classifiers too, so the search goes on after its first success unless told otherwise. Random
    draws are made for each sample, whoever its neighbours are.

    Args:
        momentum: Decay of what was accumulated; 0 for the bare gradient.
        transforms: Names or objects from `attacks.transforms` that take part in the estimate,
            beside those the method is made of.
    """

    eps: float | Tensor = 16 / 255
    stop: Stop = "never"
    momentum: float = 1.0
    transforms: Sequence[str | Transform] = ()

    looks_ahead: ClassVar[bool] = False
    """Whether the gradient is taken where the momentum alone would lead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number("momentum", self.momentum, low=0)
        object.__setattr__(self, "transforms", known.read(self.transforms, self.name, self.own))

    @property
    def own(self) -> tuple[Transform, ...]:
        """The transforms that the method is made of; none by default."""
        return ()

    @property
    def applied(self) -> tuple[Transform, ...]:
        """All transforms that take part in an estimate."""
        return self.own + self.added

    @property
    def added(self) -> tuple[Transform, ...]:
        """The transforms that the user added."""
        return tuple(each for each in self.transforms if isinstance(each, Transform))

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        return super().parameters() | {"transforms": [each.parameters() for each in self.added]}

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        through = ", ".join(each.name for each in self.added)
        beside = f", with {through}" if through else ""
        return f"{super().describe()}, momentum {self.momentum:g}{beside}, {self.most_passes()}"

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""
        return steps * copies_of(self.applied)

    def default_step(self, eps: Tensor) -> Tensor:
        """Return the step of each sample where the user named none: eps / steps."""
        return eps / self.steps

    def begin(self, model: Model, rows: Rows) -> None:
        """Start without momentum."""
        if self.momentum:
            rows["momentum"] = torch.zeros_like(rows["clean"])

    def direction(self, rows: Rows, gradient: Tensor) -> Tensor:
        """Return the direction of the accumulated gradient."""
        if self.momentum:
            gradient = accumulated(rows["momentum"], gradient, self.momentum)
            rows["momentum"] = gradient
        return ascent(gradient, self.norm)

    # --- the estimate ---------------------------------------------------------------------------

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the estimated gradient, and the logits at the points if they came with it."""
        copied = any(isinstance(each, CopyTransform) for each in self.applied)
        if copied or self.looks_ahead:
            return self.gradient(model, rows), None
        gradient, logits = super().estimate(model, rows)
        return shaped(gradient, self.applied), logits

    def gradient(self, model: Model, rows: Rows) -> Tensor:
        """Return the estimated gradient, `(n, C, H, W)`, before momentum and normalisation."""
        return self.averaged(model, rows, self.evaluated(model, rows), self.applied)

    def evaluated(self, model: Model, rows: Rows) -> Tensor:
        """Return the points around which the gradient is estimated, `(n, C, H, W)`."""
        points = rows["points"]
        if not self.looks_ahead or not self.momentum:
            return points
        length = self.momentum * self.step_length(rows["eps"])
        if self.norm == "l2":  # elements of the momentum are about 1, whatever their number
            length = length / math.sqrt(points[0].numel())
        return torch.addcmul(points, rows["momentum"], per_row(length, points))

    def averaged(
        self,
        model: Model,
        rows: Rows,
        points: Tensor,
        transforms: Sequence[Transform],
        *,
        objective: Objective | None = None,
        context: tuple[Tensor, ...] = (),
        reduction: Reduction = MEAN,
    ) -> Tensor:
        """Return the gradient at some points, averaged over transformed copies.

        Args:
            model: The network.
            rows: The samples.
            points: `(n, C, H, W)`.
            transforms: What is applied.
            objective: What is ascended, from logits and the places of rows; None for the loss.
            context: What transforms need beside the radius of the ball.
            reduction: How copies are folded.
        """
        return transformed_gradient(
            model,
            points,
            torch.arange(len(rows), device=model.device),
            self.keys(rows, "transforms"),
            self.objective(rows) if objective is None else objective,
            transforms,
            context=(rows["eps"], *context),
            reduction=reduction,
        )

    def objective(self, rows: Rows) -> Objective:
        """Return the loss, from logits and the places of their rows in `rows`."""
        goal = {name: rows[name] for name in ("labels", "targets") if name in rows}

        def ascended(logits: Tensor, places: Tensor) -> Tensor:
            return self.ascended(logits, {name: each[places] for name, each in goal.items()})

        return ascended

    def keys(self, rows: Rows, purpose: str) -> Tensor:
        """Return keys for the random draws of this step, `(n,)`.

        They do not depend on the method, so that one method with the transforms of another is
        the other.
        """
        return draws.row_keys(
            rows["keys"],
            seed=self.drawn_seed,
            method=purpose,
            restart=rows["restart"],
            step=rows["step"],
        )
