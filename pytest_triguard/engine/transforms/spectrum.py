"""Copies whose frequencies are amplified and damped at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.transforms.base import PointTransform
from pytest_triguard.validation import number


@dataclass(frozen=True, kw_only=True)
class Spectrum(PointTransform):
    """The gradient is taken at `IDCT(DCT(x + noise) * mask)`, and with respect to it.

    The noise is normal; the mask is uniform on `[1 - rho, 1 + rho)`. The cosine transform is a
    product with an orthonormal matrix on either side, so that any size of image works.

    Args:
        copies: Number of points.
        rho: How far the mask strays from 1.
        sigma: Standard deviation of the noise, in input units.

    References:
        Long et al. 2022, "Frequency Domain Model Augmentation for Adversarial Attack",
        arXiv:2207.05382, equation 6.
    """

    name: ClassVar[str] = "ssa"

    copies: int = 20
    rho: float = 0.5
    sigma: float = 16 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        number("rho", self.rho, low=0)
        number("sigma", self.sigma, low=0)

    def shared(self, inputs: Tensor) -> Tensor:
        """Return the spectrum, which is the same for all copies of a sample; `(n, C, H, W)`."""
        if not self.rho:
            return inputs
        rows, columns = self._cosines(inputs)
        return rows @ inputs @ columns.mT

    def apply(self, model: Model, copies: Copies) -> Tensor:
        """Return the points, `(m, C, H, W)`.

        The noise is drawn in the frequencies: an orthonormal transform leaves its distribution as
        it is.
        """
        values, shape = copies.inputs, copies.inputs.shape[1:]
        if self.sigma:
            noise = draws.normal(copies.keys, shape, dtype=values.dtype)
            values = values.add(noise, alpha=self.sigma)
        if not self.rho:
            return values
        # The noise has taken the keys themselves.
        low, high = 1 - self.rho, 1 + self.rho
        mask = draws.uniform(copies.keys + 1, shape, dtype=values.dtype, low=low, high=high)
        rows, columns = self._cosines(values)
        return rows.mT @ mask.mul_(values) @ columns

    def _cosines(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transforms of the columns and of the rows."""
        height, width = values.shape[2:]
        rows = cosines(height, values)
        return rows, rows if width == height else cosines(width, values)


def cosines(size: int, like: Tensor) -> Tensor:
    """Return the orthonormal matrix of the discrete cosine transform (type II).

    Args:
        size: Number of places.
        like: Gives dtype and device.

    Returns:
        `(size, size)`: row `k` is the cosine of frequency `k`; its transpose is its inverse.
    """
    places = torch.arange(size, device=like.device)
    # In whole numbers: the cosine of a large argument is inaccurate in float32.
    phase = places.unsqueeze(1) * (2 * places + 1) % (4 * size)
    matrix = (phase.to(like.dtype) * (math.pi / (2 * size))).cos() * math.sqrt(2 / size)
    return torch.where(places.unsqueeze(1) == 0, matrix * math.sqrt(0.5), matrix)
