"""How far a map is from summing to the change of the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.base import known_logits, known_targets, with_logits
from pytest_triguard.engine.baselines import Baseline, baseline_inputs, check_baseline
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.model_metric import OutputMetric


@dataclass(frozen=True, kw_only=True)
class CompletenessError(OutputMetric):
    """`|sum(A) - (f(x) - f(b))| / |f(x) - f(b)|`: 0 for a complete map.

    Undefined where sample and baseline have the same output.

    Args:
        baseline: The input that the map compares the sample with.

    References:
        Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", arXiv:1703.01365,
        proposition 1.
    """

    name: ClassVar[str] = "completeness_error"
    facts: ClassVar[Facts] = Facts(cost=f"{PASSES} forward", sign="lower is better")

    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline("baseline", self.baseline)

    @property
    def title(self) -> str:
        """What reports call the number."""
        return f"completeness error of the {self.output}"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "no change from the baseline"

    @property
    def passes_per_sample(self) -> int:
        """One for the sample and one for its baseline."""
        return 2

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return 0 and infinity."""
        return 0.0, math.inf

    @torch.no_grad()
    def measure(self, model: Model, batch: Batch, maps: Tensor) -> Tensor:
        """Return the error of each map, `(n,)`."""
        targets = known_targets(batch)
        start = baseline_inputs(self.baseline, model, batch, seed=self.drawn_seed)
        there = self.objective(known_logits(with_logits(model, batch)), targets)
        change = there - self.objective(model.chunk.map(model.logits, start), targets)
        error = (at_least_single(maps).sum((1, 2, 3)) - change).abs() / change.abs()
        return error.masked_fill(change == 0, math.nan)
