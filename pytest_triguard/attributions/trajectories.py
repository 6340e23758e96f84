"""Gradients along the trajectory of an attack on the class that is explained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attacks.gradient_steps import GradientSteps
from pytest_triguard.attributions.base import Attribution, known_targets
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.path_integral import Integrand, step_times_gradient, summed
from pytest_triguard.engine.samples import Batch

LOSS_OF = {
    "logit": "logit",
    "probability": "probability",
    "log_probability": "cross_entropy",
    "contrast": "contrast",
}
"""The loss that an attack on an output ascends: the output of the label, with the sign changed."""


@dataclass(frozen=True, kw_only=True)
class AlongTrajectory(Attribution):
    """The steps of an attack times the gradients at their starts, summed over the trajectory.

    What is summed is how much each element lowers the output of the explained class on the way.
    To first order in the steps, the map sums to the output at the sample minus the output where
    the trajectory ends, if the gradients are those of the output itself. Steps that follow the
    sign of the gradient at their start make every term positive: such maps carry no sign, and are
    to be compared with the absolute values of others.
    """

    kind: ClassVar[str] = "integration"

    @property
    @abstractmethod
    def exploration(self) -> GradientSteps:
        """The attack whose trajectory is integrated."""

    @property
    def integrand(self) -> Integrand:
        """What a step adds."""
        return step_times_gradient

    @property
    def passes_per_sample(self) -> int:
        """Those of the attack, at most."""
        return self.exploration.passes_per_sample

    def goal(self, batch: Batch) -> Batch:
        """Return the samples as the attack takes them: it lowers the class that is explained."""
        return replace(batch, labels=known_targets(batch), targets=None)

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        return summed(self.explored(model, batch), batch)

    def explored(self, model: Model, batch: Batch) -> Iterator[Outcome]:
        """Return the outcomes of the attack, with their integrals."""
        goal = [self.goal(batch)]
        return self.exploration.stream(model, goal, integrand=self.integrand)
