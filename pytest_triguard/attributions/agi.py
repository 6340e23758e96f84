"""Gradients along trajectories towards other classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks.bim import BIM
from pytest_triguard.attacks.gradient_steps import Steps
from pytest_triguard.attributions.base import Attribution, known_logits, known_targets, with_logits
from pytest_triguard.attributions.lines import MODES
from pytest_triguard.attributions.trajectories import LOSS_OF
from pytest_triguard.engine import draws
from pytest_triguard.engine.gradients import input_gradients
from pytest_triguard.engine.iteration import search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.engine.path_integral import Integrand, summed
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import number, one_of, whole


@dataclass(frozen=True, kw_only=True)
class AGI(Attribution):
    """Steps up the output of other classes times the gradients of the explained one, summed.

    For each of some other classes, a trajectory goes by signs of gradients from the sample towards
    that class, until it is predicted. To first order, the map sums to what the output loses on all
    of them together. With two classes and probabilities the two gradients are opposite, so the map
    is never negative and carries no sign; with more classes it is signed.

    Args:
        output: What is explained, of the explained class and of the others; see `Attribution`.
        step_size: Length of a step in input units.
        steps: Most steps towards a class.
        classes: Number of other classes, drawn for each sample, or all where there are fewer.
        mode: `"canonical"` steps from the iterate; `"reference"` always steps from the sample and
            multiplies with the displacement from it, as the published code does, so that iterates
            hop between corners of one ball. With one step both are one.

    References:
        Pan et al. 2021, "Explaining Deep Neural Network Models with Adversarial Gradient
        Integration", IJCAI 2021, algorithm 1.
    """

    name: ClassVar[str] = "agi"
    kind: ClassVar[str] = "integration"
    facts: ClassVar[Facts] = Facts(
        cost=f"at most {PASSES}",
        sign="signed; never negative of two classes",
        axioms=("sums, to first order, to what the output loses on all ways",),
    )

    output: str = "probability"
    step_size: float = 0.05
    steps: int = 50
    classes: int = 20
    mode: str = "canonical"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("step_size", self.step_size, low=0)
        whole("steps", self.steps, low=1)
        whole("classes", self.classes, low=1)
        one_of("mode", self.mode, MODES)

    @property
    def passes_per_sample(self) -> int:
        """Two for each step towards each class, at most."""
        return 2 * self.steps * self.classes

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        method = _Contest(self._stepping, self.objective, from_sample=self.mode == "reference")
        contests = self._contests(model, batch)
        return summed(search(model, contests, method, integrand=method.integrand), batch)

    @property
    def _stepping(self) -> BIM:
        return BIM(
            eps=self.steps * self.step_size,
            step_size=self.step_size,
            steps=self.steps,
            loss=LOSS_OF[self.output],
            stop="success",
        )

    def _contests(self, model: Model, batch: Batch) -> Iterator[Batch]:
        """Yield the samples with one after the other of their chosen classes as the target."""
        explained = known_targets(batch)
        for chosen in self._chosen(model, batch, explained).unbind(1):
            yield replace(batch, labels=explained, targets=chosen)

    def _chosen(self, model: Model, batch: Batch, explained: Tensor) -> Tensor:
        """Return the other classes of each sample in rising order, `(n, m)` int64."""
        count = model.num_classes or known_logits(with_logits(model, batch)).shape[1]
        keys = draws.row_keys(batch.keys, seed=self.drawn_seed, method=f"{self.name}/classes")
        places = draws.uniform(keys, (count,), dtype=torch.float32)
        places = places.scatter(1, explained.unsqueeze(1), 2.0)  # behind all others
        drawn = places.argsort(dim=1, stable=True)[:, : min(self.classes, count - 1)]
        chosen: Tensor = drawn.sort(1).values
        return chosen


@dataclass(frozen=True)
class _Contest(Steps):
    """Steps towards the target; the gradient of the label comes along as further channels."""

    objective: Objective
    from_sample: bool

    def passes(self, steps: int) -> int:
        return 2 * steps

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        gradients, logits = input_gradients(
            model, rows["points"], (rows["targets"], rows["labels"]), self.objective
        )
        return torch.cat(gradients, 1), logits

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        towards, _ = gradient.chunk(2, 1)
        origin = rows["clean"] if self.from_sample else rows["points"]
        direction = towards.sign()
        points = origin.add(direction, alpha=self.attack.step_size or 0.0)
        return points.clamp(*model.bounds(points.dtype)), direction

    @property
    def integrand(self) -> Integrand:
        """What a step takes from the output of the label, to first order."""

        def taken(rows: Rows, before: Tensor, gradient: Tensor) -> Tensor:
            origin = rows["clean"] if self.from_sample else before
            return (origin - rows["points"]) * gradient.chunk(2, 1)[1]

        return taken
