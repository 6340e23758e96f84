"""Gradients integrated along the straight line from a baseline."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pytest_triguard.attributions.base import Attribution, known_logits, with_logits
from pytest_triguard.attributions.baselines import Baseline, baseline_inputs, check_baseline
from pytest_triguard.engine.equality import fingerprint
from pytest_triguard.engine.estimators import Copies, Mean, expected_gradient
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.running import running
from pytest_triguard.validation import one_of, whole

RULES = ("midpoint", "gauss_legendre")


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Attribution):
    """The displacement from the baseline times the mean gradient along the way.

    The maps sum to the change of the output between baseline and sample, up to the error of the
    quadrature (completeness); `completeness_error` tells it.

    Args:
        baseline: Where the path starts: `"zero"`, `"blur"`, `"noise"`, `"uniform"`, `"midpoint"`,
            or a tensor `(C, H, W)` or `(N, C, H, W)`.
        points: Number of points on the path.
        rule: Quadrature: `"midpoint"` or `"gauss_legendre"`.

    References:
        Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", arXiv:1703.01365,
        equation 1.
    """

    name: ClassVar[str] = "integrated_gradients"

    baseline: Baseline = "zero"
    points: int = 50
    rule: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline("baseline", self.baseline)
        whole("points", self.points, low=1)
        one_of("rule", self.rule, RULES)

    @property
    def passes_per_sample(self) -> int:
        """One per point."""
        return self.points

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        values = super().parameters()
        if isinstance(self.baseline, Tensor):
            values["baseline"] = fingerprint(self.baseline)
        return values

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        inputs, targets = batch.inputs, batch.targets
        if targets is None:
            raise TypeError("an attribution needs targets")
        start = self._start(model, batch)
        places, weights = quadrature(self.rule, self.points)
        along = torch.tensor(places, dtype=inputs.dtype).to(model.device)

        def make(copies: Copies) -> Tensor:
            (origin,) = copies.context
            return torch.lerp(origin, copies.inputs, per_row(along[copies.numbers], origin))

        mean = expected_gradient(
            model,
            inputs,
            targets,
            batch.keys,
            self.objective,
            copies=self.points,
            make=make,
            context=(start,),
            reduction=Mean(weights),
        )
        return (inputs - start) * mean

    def _start(self, model: Model, batch: Batch) -> Tensor:
        return baseline_inputs(self.baseline, model, batch, seed=self.drawn_seed)

    @torch.no_grad()
    def diagnostics(self, model: Model, batch: Batch, maps: Tensor) -> dict[str, Tensor]:
        """Return the completeness error of each map, `(n,)`: see `completeness_error`."""
        targets = batch.targets
        if targets is None:
            raise TypeError("an attribution needs targets")
        ends = (
            known_logits(with_logits(model, batch)),
            model.chunk.map(model.logits, self._start(model, batch)),
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
                self.diagnostics(run.model, batch, maps)["completeness error"]
                for batch, maps in self.stream(run.model, run.samples)
            ]
            return torch.cat(errors).to(run.like.device)


def quadrature(rule: str, points: int) -> tuple[list[float], list[float]]:
    """Return places in (0, 1) and weights that sum to one."""
    if rule == "midpoint":
        return [(place + 0.5) / points for place in range(points)], [1.0 / points] * points
    places, weights = np.polynomial.legendre.leggauss(points)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()
