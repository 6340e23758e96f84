"""The neuron attribution-based attack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.features import expected_feature_gradient
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.layers import (
    Captured,
    Layer,
    capture,
    capture_input,
    check_layer,
    find_layer,
    last_spatial_layer,
)
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.path_integral import Integrand
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import Facts
from pytest_triguard.validation import number, whole

_SHARE = 0.25
"""Least height and width of the default layer's output, as a share of the input's."""


@dataclass(frozen=True, kw_only=True)
class NAA(MomentumSteps):
    """MIM up `sum F(x) * W`: features that the loss depends on are strengthened.

    `F` is what a layer gives, and `W` the gradient of the loss by it, averaged once over the way
    from black to the sample: point `n` of `N` is `x * n / N`. With the loss `"probability"`, the
    default, features that speak for the label are weakened.

    Args:
        layer: A module of the classifier, or its dotted name; None for the last one before the
            height or width of the features falls below a quarter of the input's, or for the input
            itself where that never happens.
        points: Number of points on the way.
        noise: Standard deviation of normal noise added to the sample at each point, in input
            units.

    References:
        Zhang et al. 2022, "Improving Adversarial Transferability via Neuron Attribution-Based
        Attacks", arXiv:2204.00008, algorithm 1.
    """

    name: ClassVar[str] = "naa"
    facts: ClassVar[Facts] = Facts()

    loss: str = "probability"
    layer: Layer | None = None
    points: int = 30
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            check_layer(self.layer)
        whole("points", self.points, low=1)
        number("noise", self.noise, low=0)

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        layer = self.layer
        named = type(layer).__name__ if isinstance(layer, nn.Module) else layer
        return super().parameters() | {"layer": named}

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""
        return self.points + super().passes(steps)

    def stream(
        self, model: Model, batches: Iterable[Batch], *, integrand: Integrand | None = None
    ) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        if self.layer is not None:
            found: nn.Module | None = find_layer(model.module, self.layer)
        else:
            batches = iter(batches)
            first = next((each for each in batches if len(each)), None)
            if first is None:
                return iter(())
            batches = chain([first], batches)
            example = first.inputs[:1].to(model.device)
            found = last_spatial_layer(model, example, share=_SHARE)
        return super(NAA, replace(self, layer=found)).stream(model, batches, integrand=integrand)

    def begin(self, model: Model, rows: Rows) -> None:
        """Start without momentum, with the weights of each sample's features."""
        super().begin(model, rows)
        keys = self.keys(rows, "naa")
        with self._features(model) as features:
            rows["weights"] = expected_feature_gradient(
                model,
                features,
                rows["clean"],
                torch.arange(len(rows), device=model.device),
                keys,
                self.objective(rows),
                copies=self.points,
                make=self._dimmed,
            )

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of the weighed features, and no logits."""
        weights = rows["weights"]
        with self._features(model) as features:

            def weighed(logits: Tensor, places: Tensor) -> Tensor:
                return (features.output * weights[places]).flatten(1).sum(1)

            points = self.evaluated(model, rows)
            gradient = self.averaged(model, rows, points, self.applied, objective=weighed)
        return gradient, None

    def _features(self, model: Model) -> AbstractContextManager[Captured]:
        if isinstance(self.layer, nn.Module):
            return capture(self.layer)
        return capture_input(model.module)

    def _dimmed(self, copies: Copies) -> Tensor:
        inputs = copies.inputs
        if self.noise:
            keys = draws.row_keys(copies.keys, seed=0, method="noise", copy=copies.numbers)
            noise = draws.normal(keys, inputs.shape[1:], dtype=inputs.dtype)
            inputs = inputs.add(noise, alpha=self.noise)
        return inputs * per_row(copies.numbers.to(inputs.dtype) / self.points, inputs)
