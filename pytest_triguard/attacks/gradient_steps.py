"""Attacks that step along an estimated gradient and project back: the family of PGD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_triguard.attacks.base import Attack
from pytest_triguard.attacks.goals import LOSSES, ascended
from pytest_triguard.attacks.searching import Answers
from pytest_triguard.attacks.starts import drawn_start
from pytest_triguard.engine.geometry import (
    ascent,
    box,
    random_offset,
    stepped,
    stepped_in_box,
)
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.iteration import STOPS, Stop, search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.path_integral import Integrand
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError
from pytest_triguard.validation import flag, number, one_of, whole


@dataclass(frozen=True, kw_only=True)
class GradientSteps(Attack):
    """Steps of steepest ascent on a loss, each projected into the ball and the valid range.

    Args:
        step_size: Length of a step in input units, or None for the method's own rule.
        steps: Number of steps per start.
        restarts: Number of starts.
        random_start: Whether a start is drawn uniformly from the ball or is the sample itself.
        loss: What is ascended: `"cross_entropy"`, `"probability"`, `"logit"`, `"contrast"`,
            `"margin"` or `"dlr"`, each away from the label or towards the target.
        stop: `"success"` lets a sample leave at its first success, `"never"` takes all steps.
        trajectory: Whether iterates, gradients and directions are kept.
    """

    step_size: float | None = None
    steps: int = 10
    restarts: int = 1
    random_start: bool = False
    loss: str = "cross_entropy"
    stop: Stop = "success"
    trajectory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            number("step_size", self.step_size, low=0)
        whole("steps", self.steps, low=1)
        whole("restarts", self.restarts, low=1)
        flag("random_start", self.random_start)
        one_of("loss", self.loss, LOSSES)
        one_of("stop", self.stop, STOPS)
        if self.restarts > 1 and not self.random_start:
            raise InputError(
                f"restarts={self.restarts} needs random_start=True: without it every start is alike"
            )
        if flag("trajectory", self.trajectory) and self.restarts > 1:
            raise InputError(f"trajectory=True needs one start, but restarts={self.restarts} came")

    @property
    def passes_per_sample(self) -> int:
        """Most gradient passes a sample can take."""
        return self.passes(self.steps) * self.restarts

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""
        return steps

    def default_step(self, eps: Tensor) -> Tensor:
        """Return the step of each sample where the user named none: 2.5 eps / steps."""
        return eps * (2.5 / self.steps)

    def step_length(self, eps: Tensor) -> Tensor:
        """Return the length of a step of each sample, `(n,)`."""
        size = self.step_size
        return self.default_step(eps) if size is None else torch.full_like(eps, size)

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        if self.step_size is not None:
            size = f"{self.step_size:g}"
        else:
            size = f"{float(self.default_step(torch.ones(()))):g} eps"
        start = "random start" if self.random_start else "start at the sample"
        starts = start if self.restarts == 1 else f"{self.restarts} {start}s"
        leaves = "until the first success" if self.stop == "success" else "all taken"
        return (
            f"{self.name}: {starts}, {self.steps} steps of {size} up the {self.loss}, {leaves}, "
            f"seed {self.drawn_seed}"
        )

    def stream(
        self, model: Model, batches: Iterable[Batch], *, integrand: Integrand | None = None
    ) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish.

        Args:
            model: The network.
            batches: Labelled samples.
            integrand: What each step adds to the integral of an outcome, or None for no integral.
        """
        return search(model, batches, Steps(self), integrand=integrand)

    def begin(self, model: Model, rows: Rows) -> None:
        """Set what the method carries along with each row, whose points are at their start."""

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the estimated gradient, and the logits at the points if they came with it."""
        return input_gradient(
            model, rows["points"], rows["labels"], lambda logits, _: self.ascended(logits, rows)
        )

    def ascended(self, logits: Tensor, rows: Rows | Mapping[str, Tensor]) -> Tensor:
        """Return the loss that is ascended, `(n,)`."""
        return ascended(self.loss, logits, rows)

    def direction(self, rows: Rows, gradient: Tensor) -> Tensor:
        """Return the direction to step, and update what the method carries."""
        return ascent(gradient, self.norm)


@dataclass(frozen=True)
class Steps(Answers[GradientSteps]):
    """The search behind an attack of this family; see `engine.iteration.Search`.

    Args:
        attack: The attack.
    """

    @property
    def record(self) -> bool:
        """Whether the trajectory is kept."""
        return self.attack.trajectory

    @property
    def best(self) -> bool:
        """Whether the best point of a start is what it found: no, its last one is."""
        return False

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""
        return self.attack.passes(steps)

    def begin(self, model: Model, rows: Rows) -> None:
        """Set `points` for a start."""
        clean, attack = rows["clean"], self.attack
        if attack.norm == "linf":
            bounds = model.bounds(clean.dtype)
            rows["box_low"], rows["box_high"] = box(clean, rows["eps"], bounds)
        drawn = attack.random_start
        rows["points"] = drawn_start(attack, model, rows, random_offset) if drawn else clean
        attack.begin(model, rows)

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of the loss, and the logits."""
        return self.attack.estimate(model, rows)

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next points and the direction stepped."""
        attack, clean, eps = self.attack, rows["clean"], rows["eps"]
        direction, length = attack.direction(rows, gradient), attack.step_length(eps)
        points = rows["points"]
        if attack.norm == "linf":
            ends = rows["box_low"], rows["box_high"]
            return stepped_in_box(points, direction, length, ends), direction
        bounds = model.bounds(clean.dtype)
        return stepped(points, direction, length, clean, eps, attack.norm, bounds), direction

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return what is ascended, `(n,)`."""
        return self.attack.ascended(logits, rows)
