"""What methods with a baseline share: the baseline itself, and completeness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_triguard.attributions.base import Attribution, known_logits, known_targets, with_logits
from pytest_triguard.attributions.completeness import Summing, shortfall
from pytest_triguard.engine.baselines import Baseline, baseline_inputs, check_baseline
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch


@dataclass(frozen=True, kw_only=True)
class WithBaseline(Attribution):
    """A method that compares a sample with a baseline.

    Args:
        baseline: What a sample is compared with: `"zero"`, `"blur"`, `"noise"`, `"uniform"`,
            `"midpoint"`, or a tensor `(C, H, W)` or `(N, C, H, W)`.
    """

    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline("baseline", self.baseline)

    def start(self, model: Model, batch: Batch) -> Tensor:
        """Return the baseline of each sample, `(n, C, H, W)`."""
        return baseline_inputs(self.baseline, model, batch, seed=self.drawn_seed)


@dataclass(frozen=True, kw_only=True)
class Complete(Summing, WithBaseline):
    """A method whose maps sum to the change of the output between baseline and sample."""

    @torch.no_grad()
    def diagnostics(self, model: Model, batch: Batch, maps: Tensor) -> dict[str, Tensor]:
        """Return the completeness error of each map, `(n,)`: see `completeness_error`."""
        targets = known_targets(batch)
        ends = (
            known_logits(with_logits(model, batch)),
            model.chunk.map(model.logits, self.start(model, batch)),
        )
        there, start = (self.objective(logits, targets) for logits in ends)
        return {"completeness error": shortfall(maps.sum((1, 2, 3)), there - start)}

    def completeness_errors(self, model: Model, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Yield the completeness errors of batches, block by block."""
        for batch, maps in self.stream(model, batches):
            yield Complete.diagnostics(self, model, batch, maps)["completeness error"]
