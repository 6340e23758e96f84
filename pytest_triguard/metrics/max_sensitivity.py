"""How far a map moves at most when its sample hardly does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard import attributions
from pytest_triguard.attributions import Attribution
from pytest_triguard.engine import draws
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputTypeError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.model_metric import ModelMetric
from pytest_triguard.validation import describe, number, whole


@dataclass(frozen=True, kw_only=True)
class MaxSensitivity(ModelMetric):
    """Largest relative change of a map over random perturbations of its sample.

    `max |A(x + u) - A(x)|_2 / |A(x)|_2` over `u` uniform in `[-radius, radius]`, not clipped; the
    explained class stays that of the sample. A zero map is undefined. What is drawn is a lower
    bound of the largest change in the ball.

    Args:
        attribution: The method that made the maps, by name or as it is. Nothing can tell that the
            maps are another method's: their distance to its maps is then what comes.
        radius: Half width of the perturbations, in input units.
        copies: Number of perturbations.

    References:
        Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", arXiv:1901.09392,
        definition 3.1 and equation 5.
    """

    name: ClassVar[str] = "max_sensitivity"
    facts: ClassVar[Facts] = Facts(
        cost=f"{PASSES} with saliency", sign="lower is better", checked="Captum"
    )

    attribution: str | Attribution = "saliency"
    radius: float = 0.02
    copies: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attribution, str | Attribution):
            raise InputTypeError(
                "attribution must be a name or an attribution, but "
                f"{describe(self.attribution)} came"
            )
        number("radius", self.radius, low=0, low_open=True)
        whole("copies", self.copies, low=1)
        if isinstance(self.attribution, str):
            attributions.get(self.attribution)

    @property
    def method(self) -> Attribution:
        """The attribution whose maps move."""
        given = self.attribution
        return attributions.get(given) if isinstance(given, str) else given

    @property
    def title(self) -> str:
        """What reports call the number."""
        return f"max-sensitivity of {self.method.name}"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "zero map"

    @property
    def passes_per_sample(self) -> int:
        """Those of a map, for each perturbation."""
        return self.copies * self.method.passes_per_sample

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return 0 and infinity."""
        return 0.0, math.inf

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        return super().parameters() | {"attribution": self.method.parameters()}

    def measure(self, model: Model, batch: Batch, maps: Tensor) -> Tensor:
        """Return the largest relative change of each map, `(n,)`."""
        maps, method = at_least_single(maps), self.method
        peak = maps.abs().amax((1, 2, 3), keepdim=True)  # squares of tiny maps would vanish
        length = torch.linalg.vector_norm((maps / peak).flatten(1), dim=1)
        largest = torch.zeros_like(length)
        for copy in range(self.copies):
            keys = draws.row_keys(batch.keys, seed=self.drawn_seed, method=self.name, copy=copy)
            shift = draws.uniform(keys, batch.inputs.shape[1:], dtype=batch.inputs.dtype, low=-1.0)
            moved = replace(batch, inputs=batch.inputs + shift * self.radius, logits=None)
            change = (method.explain(model, moved) - maps) / peak
            change_length = torch.linalg.vector_norm(change.flatten(1), dim=1)
            largest = torch.maximum(largest, change_length / length)
        return largest
