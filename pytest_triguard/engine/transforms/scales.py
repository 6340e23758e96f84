"""Copies at falling brightness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.transforms.base import InputTransform


@dataclass(frozen=True, kw_only=True)
class Scales(InputTransform):
    """Copy `i` is the input divided by `2 ** i`, before any normalisation.

    Args:
        copies: Number of copies.

    References:
        Lin et al. 2020, "Nesterov Accelerated Gradient and Scale Invariance for Adversarial
        Attacks", arXiv:1908.06281, equation 8.
    """

    name: ClassVar[str] = "si"

    copies: int = 5

    def apply(self, model: Model, copies: Copies) -> Tensor:
        """Return the scaled inputs, `(m, C, H, W)`."""
        inputs = copies.inputs
        return inputs * per_row(0.5 ** copies.numbers.to(inputs.dtype), inputs)
