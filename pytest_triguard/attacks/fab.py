"""Fast adaptive boundary attack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from pytest_triguard.attacks.base import Attack
from pytest_triguard.attacks.goals import reached
from pytest_triguard.attacks.nearest import Nearest
from pytest_triguard.attacks.starts import start_keys
from pytest_triguard.engine.geometry import length, per_row, surface_offset
from pytest_triguard.engine.hyperplanes import offset_to_hyperplane
from pytest_triguard.engine.iteration import STOPS, Stop, search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import logit
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import number, one_of, whole

_SHORTEST = 1e-8
"""Least length of an offset to a boundary, where two are weighed."""


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Search for the nearest adversarial example along linearised boundaries.

    Each step goes to the nearest boundary of the network's linear approximation, with a pull
    towards the boundary point nearest to the sample, and comes back a little once it is across.
    A step takes one backward pass for each class. The first start is the sample itself, the
    others are drawn half as far as eps.

    Args:
        steps: Number of steps per start.
        restarts: Number of starts.
        alpha_max: Largest weight of the boundary point nearest to the sample.
        eta: Length of a step as a multiple of the way to the boundary.
        beta: Share of its distance that a point keeps when it comes back.
        stop: `"success"` lets a sample leave at its first adversarial example inside the ball,
            `"never"` takes all steps and finds the nearest one.

    References:
        Croce and Hein 2020, "Minimally Distorted Adversarial Examples with a Fast Adaptive
        Boundary Attack", arXiv:1907.02044, algorithm 1.
    """

    name: ClassVar[str] = "fab"
    facts: ClassVar[Facts] = Facts(
        cost=f"at most {PASSES}, each with a backward pass a class", checked="torchattacks"
    )

    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    stop: Stop = "success"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, low=1)
        whole("restarts", self.restarts, low=1)
        number("alpha_max", self.alpha_max, low=0, high=1)
        number("eta", self.eta, low=1)
        number("beta", self.beta, low=0, high=1)
        one_of("stop", self.stop, STOPS)

    @property
    def takes_targets(self) -> bool:
        """No: the goal is any class but the label."""
        return False

    @property
    def passes_per_sample(self) -> int:
        """Most steps a sample can take."""
        return self.steps * self.restarts

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        starts = "one start" if self.restarts == 1 else f"{self.restarts} starts"
        leaves = "until the first success" if self.stop == "success" else "all taken"
        return (
            f"{self.name}: {starts}, {self.steps} steps to linearised boundaries, {leaves}, "
            f"seed {self.drawn_seed}"
        )

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        return search(model, batches, ToBoundary(self, model))


AnyFAB = TypeVar("AnyFAB", bound=FAB)


class ToBoundary(Nearest[AnyFAB]):
    """The search behind an attack of this family."""

    def begin(self, model: Model, rows: Rows) -> None:
        """Start at the sample, or at random half as far as eps."""
        clean, attack = rows["clean"], self.attack
        super().begin(model, rows)
        rows["base"] = clean.clone()
        rows["value"] = torch.zeros_like(rows["eps"])
        if attack.restarts == 1:
            return
        low, high = model.bounds(clean.dtype)
        radius = rows["eps"] / 2
        drawn = clean + surface_offset(start_keys(attack, rows), clean, radius, attack.norm)
        again = per_row(rows["restart"] % attack.restarts > 0, clean)
        rows["points"] = torch.where(again, drawn.clamp(low, high), clean)

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the normal of the nearest boundary where points come back to, and their logits."""
        points, clean = rows["points"], rows["clean"]
        with torch.no_grad():
            logits = model.logits(points)
        across = per_row(reached(logits, rows), points)
        base = torch.where(across, clean + self.attack.beta * (points - clean), points)
        value, normal = self.boundary(model, base, rows)
        rows["base"].copy_(base)
        rows["value"].copy_(value)
        return normal, logits

    def boundary(self, model: Model, base: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return another class's lead over the label, `(n,)`, and its gradient.

        The class is the one whose linearised boundary is nearest.
        """
        labels, lead, normal = rows["labels"], None, None
        with torch.inference_mode(False), torch.enable_grad():
            base = base.detach().requires_grad_()
            logits = model.logits(base)
            own = logit(logits, labels)
            for each in range(logits.shape[1]):
                leads = logits[:, each] - own
                gradient = slope(model, leads, base)
                away = leads.detach().abs() / dual(gradient, self.attack.norm)
                away = torch.where(labels == each, torch.inf, away)
                if lead is None or normal is None:
                    nearest, lead, normal = away, leads.detach(), gradient
                    continue
                closer = away < nearest
                nearest = torch.where(nearest.isnan(), nearest, torch.minimum(away, nearest))
                lead = torch.where(closer, leads.detach(), lead)
                normal = torch.where(per_row(closer, normal), gradient, normal)
        if lead is None or normal is None:
            raise TypeError("a classifier has classes")
        return lead, torch.where(per_row(nearest.isnan(), normal), torch.nan, normal)

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next points and the way there."""
        base, clean, attack = rows["base"], rows["clean"], self.attack
        bounds = model.bounds(clean.dtype)
        at_clean = rows["value"] + ((clean - base) * gradient).sum((1, 2, 3))
        first = offset_to_hyperplane(base, gradient, -rows["value"], attack.norm, bounds)
        second = offset_to_hyperplane(clean, gradient, -at_clean, attack.norm, bounds)
        near, far = (length(each, attack.norm).clamp_min(_SHORTEST) for each in (first, second))
        pull = per_row((near / (near + far)).clamp_max(attack.alpha_max), clean)
        points = (base + attack.eta * first) * (1 - pull) + (clean + attack.eta * second) * pull
        return points.clamp_min_(bounds[0]).clamp_max_(bounds[1]), points - base


def slope(model: Model, leads: Tensor, base: Tensor) -> Tensor:
    """Return the gradient of each lead, `(n, C, H, W)`; the graph is kept for another one."""
    (gradient,) = torch.autograd.grad(leads.sum(), base, retain_graph=True)
    model.passes.backward += len(base)
    return gradient


def dual(gradient: Tensor, norm: str) -> Tensor:
    """Return the change of a linear function along a step of length 1, `(n,)`; never 0."""
    gradient = gradient.flatten(1)
    size = gradient.abs().sum(1) if norm == "linf" else gradient.norm(dim=1)
    return size.clamp_min(torch.finfo(gradient.dtype).tiny)
