"""How badly a map predicts what a perturbation does to the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.base import known_logits, known_targets, with_logits
from pytest_triguard.engine import draws
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.model_metric import OutputMetric, over_copies
from pytest_triguard.validation import flag, number, whole


@dataclass(frozen=True, kw_only=True)
class Infidelity(OutputMetric):
    """Mean squared error of a map as a linear model of the output around the sample.

    `E[(u . A - (f(x) - f(x - u)))^2]` over normal perturbations `u`, which are not clipped. 0 for
    the gradient of a linear network. A zero map predicts no change at all; it is defined, but
    with `scaled=True` it is not.

    Args:
        noise_level: Standard deviation of the perturbations, in input units.
        copies: Number of perturbations.
        scaled: Whether the map is first multiplied by the factor that fits the changes best, so
            that methods of different scales can be compared.

    References:
        Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", arXiv:1901.09392,
        definition 2.1 and section 4.1 (the factor).
    """

    name: ClassVar[str] = "infidelity"
    facts: ClassVar[Facts] = Facts(
        cost=f"{PASSES} forward", sign="lower is better", checked="Captum"
    )

    noise_level: float = 0.2
    copies: int = 50
    scaled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        number("noise_level", self.noise_level, low=0, low_open=True)
        whole("copies", self.copies, low=1)
        flag("scaled", self.scaled)

    @property
    def title(self) -> str:
        """What reports call the number."""
        return f"{'scaled ' if self.scaled else ''}infidelity to the {self.output}"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "map without a finite value" if not self.scaled else "zero map"

    @property
    def passes_per_sample(self) -> int:
        """One per perturbation, and one for the sample."""
        return self.copies + 1

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return 0 and infinity."""
        return 0.0, math.inf

    def measure(self, model: Model, batch: Batch, maps: Tensor) -> Tensor:
        """Return the error of each map, `(n,)`."""
        batch = with_logits(model, batch)
        inputs, targets, maps = batch.inputs, known_targets(batch), at_least_single(maps)
        clean = self.objective(known_logits(batch), targets)

        def evaluate(samples: Tensor, copies: Tensor) -> Tensor:
            keys = draws.row_keys(
                batch.keys[samples], seed=self.drawn_seed, method=self.name, copy=copies
            )
            change = draws.normal(keys, inputs.shape[1:], dtype=inputs.dtype) * self.noise_level
            found = self.objective(model.logits(inputs[samples] - change), targets[samples])
            predicted = (change * maps[samples]).flatten(1).sum(1)
            return torch.stack([predicted, clean[samples] - found], 1)

        predicted, actual = over_copies(model, batch, self.copies, evaluate).unbind(2)
        if self.scaled:
            # 0 / 0 for a map that predicts nothing.
            factor = (predicted * actual).mean(1) / predicted.square().mean(1)
            predicted = predicted * factor.unsqueeze(1)
        return (predicted - actual).square().mean(1)
