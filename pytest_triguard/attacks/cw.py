"""The attack of Carlini and Wagner in L2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks.base import Attack
from pytest_triguard.attacks.goals import ascended, reached
from pytest_triguard.attacks.nearest import Nearest
from pytest_triguard.engine.geometry import Norm, per_row
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.iteration import STOPS, Stop, search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import number, one_of, whole

_DECAY, _DECAY_OF_SQUARES, _ADDED = 0.9, 0.999, 1e-8
"""Adam's (Kingma and Ba 2015)."""

_EDGE = 1 - 1e-6
"""How near to the ends of the range a start may be: there the tangent is vertical."""

_MUCH_LARGER = 10.0
"""Factor of the constant as long as no value of it was large enough."""


@dataclass(frozen=True, kw_only=True)
class CW(Attack):
    """Search for the nearest adversarial example by Adam on squared distance plus margin.

    The weight of the margin is found by bisection, sample by sample. It is an attack in L2.

    Args:
        steps: Number of steps for each weight.
        searches: Number of weights tried.
        step_size: Learning rate of Adam.
        constant: The first weight.
        confidence: Lead of another class at which the margin counts no more.
        stop: `"success"` lets a sample leave at its first adversarial example inside the ball,
            `"never"` takes all steps and finds the nearest one.

    References:
        Carlini and Wagner 2017, "Towards Evaluating the Robustness of Neural Networks",
        arXiv:1608.04644, section VI.A, with the loss f6.
    """

    name: ClassVar[str] = "cw"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES}", checked="Foolbox")

    norm: Norm = "l2"
    steps: int = 1000
    searches: int = 9
    step_size: float = 0.01
    constant: float = 1e-3
    confidence: float = 0.0
    stop: Stop = "success"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "l2":
            raise InputError(f"norm must be 'l2' for the attack 'cw', but {self.norm!r} came")
        whole("steps", self.steps, low=1)
        whole("searches", self.searches, low=1)
        number("step_size", self.step_size, low=0)
        number("constant", self.constant, low=0, low_open=True)
        number("confidence", self.confidence, low=0)
        one_of("stop", self.stop, STOPS)

    @property
    def restarts(self) -> int:
        """Number of starts: one for each weight."""
        return self.searches

    @property
    def passes_per_sample(self) -> int:
        """Most gradient passes a sample can take."""
        return self.steps * self.searches

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        leaves = "until the first success" if self.stop == "success" else "all taken"
        return (
            f"{self.name}: {self.searches} weights of the margin, {self.steps} steps of Adam for "
            f"each, {leaves}"
        )

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        return search(model, batches, _Descent(self, model))


class _Descent(Nearest[CW]):
    """Adam on a variable whose hyperbolic tangent is the point, so that no range is left."""

    def begin(self, model: Model, rows: Rows) -> None:
        self._weigh(rows)
        clean = at_least_single(rows["clean"])
        middle, half = self._range(clean)
        super().begin(model, rows)
        rows["variable"] = ((clean - middle) / half * _EDGE).atanh()
        rows["mean"], rows["square"] = torch.zeros_like(clean), torch.zeros_like(clean)

    def _range(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return middle and half width of the valid range."""
        low, high = self.model.bounds(like.dtype)
        return (high + low) / 2, (high - low) / 2

    def _weigh(self, rows: Rows) -> None:
        """Choose the next weight: halfway between one too small and one large enough."""
        if "constant" not in rows:
            eps = at_least_single(rows["eps"])
            rows["constant"] = torch.full_like(eps, self.attack.constant)
            rows["too_small"] = torch.zeros_like(eps)
            rows["enough"] = torch.full_like(eps, torch.inf)
        else:
            constant, crossed = rows["constant"], rows["crossed"]
            rows["enough"] = torch.where(crossed, constant, rows["enough"])
            rows["too_small"] = torch.where(crossed, rows["too_small"], constant)
            halfway = (rows["too_small"] + rows["enough"]) / 2
            larger = constant * _MUCH_LARGER
            rows["constant"] = torch.where(halfway.isinf(), larger, halfway)
        rows["crossed"] = torch.zeros_like(rows["live"])

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of the margin that counts, and the logits."""
        gradient, logits = input_gradient(
            model,
            rows["points"],
            rows["labels"],
            lambda logits, _: self._short(logits, rows).clamp_min(0),
        )
        rows["crossed"].logical_or_(self._crossed(logits, rows))
        return gradient, logits

    def _short(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return by how much the goal is missed."""
        return self.attack.confidence - ascended("margin", logits, rows)

    def _crossed(self, logits: Tensor, rows: Rows) -> Tensor:
        return reached(logits, rows) & (self._short(logits, rows) <= 0)

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        variable, dtype = rows["variable"], rows["clean"].dtype
        # In half precision, Adam divides 0 by 0.
        points, clean, gradient = map(at_least_single, (rows["points"], rows["clean"], gradient))
        middle, half = self._range(clean)
        whole = 2 * (points - clean) + per_row(rows["constant"], clean) * gradient
        whole = whole * half * (1 - variable.tanh() ** 2)
        rows["mean"] = _DECAY * rows["mean"] + (1 - _DECAY) * whole
        rows["square"] = _DECAY_OF_SQUARES * rows["square"] + (1 - _DECAY_OF_SQUARES) * whole**2
        taken = per_row(rows["step"] + 1, clean).to(clean.dtype)
        mean = rows["mean"] / (1 - _DECAY**taken)
        square = rows["square"] / (1 - _DECAY_OF_SQUARES**taken)
        direction = -mean / (square.sqrt() + _ADDED)
        rows["variable"] = variable + self.attack.step_size * direction
        low, high = model.bounds(dtype)
        points = (middle + half * rows["variable"].tanh()).to(dtype)
        return points.clamp(low, high), direction.to(dtype)

    def won(self, logits: Tensor, rows: Rows) -> Tensor:
        return super().won(logits, rows) & self._crossed(logits, rows)
