"""The input times the gradient averaged over a small cube."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.base import Attribution, known_targets
from pytest_triguard.attributions.lines import MODES
from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import Copies, expected_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.second_order import GradientMean
from pytest_triguard.errors import InputError
from pytest_triguard.facts import Facts
from pytest_triguard.validation import number, one_of, whole


@dataclass(frozen=True, kw_only=True)
class UniGrad(Attribution):
    """The sample times the mean gradient at `x + noise`, the noise uniform and not clipped.

    Args:
        copies: Number of noisy copies.
        radius: Largest noise, as a fraction of the valid range.
        mode: `"canonical"` for signed maps; `"reference"` for the map of the published code:
            absolute values, summed over channels and scaled to a mean of 1 over pixels, spread
            over channels. A zero map stays zero.

    References:
        Wang et al. 2020, "Smoothed Geometry for Robust Attribution", arXiv:2006.06643, section 5.
    """

    name: ClassVar[str] = "unigrad"
    kind: ClassVar[str] = "gradient"
    facts: ClassVar[Facts] = Facts(sign="signed", axioms=("linear",), checked="Captum")

    copies: int = 50
    radius: float = 4 / 255
    mode: str = "canonical"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("copies", self.copies, low=1)
        number("radius", self.radius, low=0)
        one_of("mode", self.mode, MODES)

    @property
    def passes_per_sample(self) -> int:
        """One per copy."""
        return self.copies

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        products = batch.inputs * expected_gradient(
            model,
            batch.inputs,
            known_targets(batch),
            batch.keys,
            self.objective,
            copies=self.copies,
            make=self._around(model, batch.inputs.dtype),
        )
        return products if self.mode == "canonical" else _scaled(products)

    def gradient_mean(self, model: Model, batch: Batch) -> GradientMean:
        """Return the mean of the products over the noisy copies.

        Raises:
            InputError: If the maps are those of the published code, which are scaled.
        """
        if self.mode != "canonical":
            raise InputError(
                f"mode must be 'canonical' for an attack through the map, but {self.mode!r} came"
            )
        return GradientMean(
            self.objective,
            self.copies,
            self._around(model, batch.inputs.dtype),
            term=lambda gradients, copies: copies.inputs * gradients,
        )

    def _around(self, model: Model, dtype: torch.dtype) -> Callable[[Copies], Tensor]:
        """Return what makes the noisy copies."""
        low, high = model.bounds(dtype)
        radius = (high - low) * self.radius

        def make(copies: Copies) -> Tensor:
            inputs = copies.inputs
            keys = draws.row_keys(
                copies.keys, seed=self.drawn_seed, method=self.name, copy=copies.numbers
            )
            noise = draws.uniform(keys, inputs.shape[1:], dtype=inputs.dtype, low=-1.0)
            return inputs + noise.mul_(radius)

        return make


def _scaled(maps: Tensor) -> Tensor:
    pixels = maps.abs().sum(1, keepdim=True)
    mean = pixels.mean((2, 3), keepdim=True)
    return (pixels / mean.where(mean > 0, 1.0)).expand_as(maps) / maps.shape[1]
