"""What methods with a baseline share: the baseline itself, and completeness."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.attributions.base import Attribution, known_logits, known_targets, with_logits
from pytest_triguard.engine.baselines import Baseline, baseline_inputs, check_baseline
from pytest_triguard.engine.equality import fingerprint
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.running import running


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

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        values = super().parameters()
        if isinstance(self.baseline, Tensor):
            values["baseline"] = fingerprint(self.baseline)
        return values

    def start(self, model: Model, batch: Batch) -> Tensor:
        """Return the baseline of each sample, `(n, C, H, W)`."""
        return baseline_inputs(self.baseline, model, batch, seed=self.drawn_seed)


@dataclass(frozen=True, kw_only=True)
class Complete(WithBaseline):
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
        change = there - start
        tiny = torch.finfo(maps.dtype).tiny
        error = (maps.sum((1, 2, 3)) - change).abs() / change.abs().clamp_min(tiny)
        return {"completeness error": error}

    def completeness_error(
        self,
        classifier: Any,
        inputs: Any,
        targets: Any = None,
        *,
        ids: Sequence[Hashable] | None = None,
    ) -> Tensor:
        """Return how far each map is from summing to the change of the output.

        Args:
            classifier: As for the attribution itself.
            inputs: Likewise.
            targets: Likewise.
            ids: Likewise.

        Returns:
            `(N,)`: the distance of the sum from the change, as a fraction of the change.
        """
        with running(classifier, inputs, ids=ids, targets=targets) as run:
            run.tune(self.passes_per_sample)
            errors = [
                Complete.diagnostics(self, run.model, batch, maps)["completeness error"]
                for batch, maps in self.stream(run.model, run.samples)
            ]
            return torch.cat(errors).to(run.like.device)
