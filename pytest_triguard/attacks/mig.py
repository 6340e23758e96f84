"""The momentum integrated gradients attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.engine.baselines import Baseline, baseline_inputs, check_baseline
from pytest_triguard.engine.estimators import MEAN, Copies, Mean, Reduction
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.transforms.base import (
    CopyTransform,
    PointTransform,
    Transform,
    copies_of,
    shaped,
)
from pytest_triguard.facts import Facts
from pytest_triguard.validation import one_of, whole

WEIGHTS = ("integral", "chain")


@dataclass(frozen=True, kw_only=True)
class Line(PointTransform):
    """Point `i` of `S` lies `i / S` of the way from a baseline, the second of the context."""

    name: ClassVar[str] = "line"

    def apply(self, model: Model, copies: Copies) -> Tensor:
        """Return the points, `(m, C, H, W)`."""
        inputs, baseline = copies.inputs, copies.context[1]
        way = (copies.numbers + 1).to(inputs.dtype) / self.copies
        return torch.lerp(baseline, inputs, per_row(way, inputs))


@dataclass(frozen=True, kw_only=True)
class MIG(MomentumSteps):
    """MIM along integrated gradients of the loss, from a baseline to the iterate.

    The baseline should lie below the inputs: an element that equals it has no integrated gradient
    and never moves (with the baseline zero the black background of a digit stays black, unless
    `random_start=True` sets it free), and one below it steps down the loss.

    Args:
        points: Number of points on the line.
        baseline: Where the line starts: `"zero"`, `"blur"`, `"noise"`, `"uniform"`, `"midpoint"`,
            or a tensor `(C, H, W)` or `(N, C, H, W)`.
        weights: `"integral"` weighs all points alike; `"chain"` weighs point `i` with `i`, as
            code that differentiates through the scaling does.

    References:
        Ma et al. 2023, "Transferable Adversarial Attack for Both Vision Transformers and
        Convolutional Networks via Momentum Integrated Gradients", ICCV, algorithm 1.
    """

    name: ClassVar[str] = "mig"
    facts: ClassVar[Facts] = Facts()

    loss: str = "probability"
    points: int = 20
    baseline: Baseline = "zero"
    weights: str = "integral"

    def __post_init__(self) -> None:
        whole("points", self.points, low=1)
        super().__post_init__()
        check_baseline("baseline", self.baseline)
        one_of("weights", self.weights, WEIGHTS)

    @property
    def own(self) -> tuple[Transform, ...]:
        """The line."""
        return (Line(copies=self.points),)

    def begin(self, model: Model, rows: Rows) -> None:
        """Start without momentum, with each sample's baseline."""
        super().begin(model, rows)
        batch = Batch(tuple(rows.positions), tuple(rows.ids), rows["keys"], rows["clean"])
        start = baseline_inputs(self.baseline, model, batch, seed=self.drawn_seed)
        # Rows are overwritten in place later, and a baseline of all samples is one row in memory.
        rows["baseline"] = start.clone(memory_format=torch.contiguous_format)

    def gradient(self, model: Model, rows: Rows) -> Tensor:
        """Return the integrated gradient, `(n, C, H, W)`, smoothed where there is a kernel."""
        points, baseline = rows["points"], rows["baseline"]
        copied = [each for each in self.applied if isinstance(each, CopyTransform)]
        mean = self.averaged(
            model, rows, points, copied, context=(baseline,), reduction=self._reduction
        )
        return shaped((points - baseline) * mean, self.applied)

    @property
    def _reduction(self) -> Reduction:
        if self.weights == "integral":
            return MEAN
        count = copies_of(self.applied)
        ways = [(number % self.points + 1) / self.points for number in range(count)]
        return Mean([way / count for way in ways])
