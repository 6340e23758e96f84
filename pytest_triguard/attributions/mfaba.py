"""Gradients along the way to the decision boundary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attacks.bim import BIM
from pytest_triguard.attacks.gradient_steps import Steps
from pytest_triguard.attributions.base import Attribution, known_logits, known_targets, with_logits
from pytest_triguard.engine.geometry import NORMS, Norm
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.iteration import search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.engine.path_integral import step_times_gradient, summed
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import number, one_of, whole

_EPS, _STEP_SIZE = 0.3, {"linf": 0.001, "l2": 0.1}


@dataclass(frozen=True, kw_only=True)
class MFABA(Attribution):
    """Steps down the output times the gradients at their starts, until the prediction changes.

    In L-inf a step follows the sign of the gradient, in L2 its direction (the "sharp" variant), so
    every term is positive: the maps are never negative and carry no sign. Without clipping the
    L-inf map is the step size times the sum of the absolute gradients on the way. It comes the
    closer to summing to the fall of the output, the smaller the steps are. A class that is not
    the prediction is explained alike: its output is descended while the prediction lasts.

    Args:
        output: What is explained, descended and differentiated; see `Attribution`.
        norm: `"linf"` or `"l2"`.
        eps: Radius of the ball the way stays in, in input units, or None for 0.3 in L-inf and for
            no ball in L2.
        step_size: Length of a step in input units, or None for 0.001 in L-inf and 0.1 in L2.
        steps: Most steps.

    References:
        Zhu et al. 2024, "MFABA: A More Faithful and Accelerated Boundary-based Attribution Method
        for Deep Neural Networks", AAAI 2024, arXiv:2312.13630, section 3.
    """

    name: ClassVar[str] = "mfaba"
    kind: ClassVar[str] = "integration"
    facts: ClassVar[Facts] = Facts(
        cost=f"at most {PASSES}, one after the other",
        sign="never negative",
        axioms=("sums, to first order, to the fall of the output",),
    )
    blocks_at_once: ClassVar[int] = 4

    output: str = "probability"
    norm: Norm = "linf"
    eps: float | None = None
    step_size: float | None = None
    steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norm", self.norm, NORMS)
        for name in ("eps", "step_size"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), low=0)
        whole("steps", self.steps, low=1)

    @property
    def passes_per_sample(self) -> int:
        """One per step, at most."""
        return self.steps

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        batch = with_logits(model, batch)
        predicted = known_logits(batch).argmax(1)
        goal = replace(batch, labels=known_targets(batch), targets=predicted)
        method = _Descent(self._stepping, self.objective)
        return summed(search(model, [goal], method, integrand=step_times_gradient), batch)

    @property
    def _stepping(self) -> BIM:
        size = _STEP_SIZE[self.norm] if self.step_size is None else self.step_size
        wide = _EPS if self.norm == "linf" else size * self.steps  # which no path leaves
        return BIM(
            eps=wide if self.eps is None else self.eps,
            norm=self.norm,
            step_size=size,
            steps=self.steps,
        )


@dataclass(frozen=True)
class _Descent(Steps):
    """Steps down the output of the label, as long as the target is predicted."""

    objective: Objective

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        return input_gradient(
            model, rows["points"], rows["labels"], lambda *given: -self.objective(*given)
        )

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        return -self.objective(logits, rows["labels"])

    def won(self, logits: Tensor, rows: Rows) -> Tensor:
        return logits.argmax(1) != rows["targets"]
