"""Gradients smoothed over places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine.transforms.base import GradientTransform
from pytest_triguard.errors import InputError
from pytest_triguard.validation import one_of, whole

KERNELS = ("gaussian", "uniform", "linear")


@dataclass(frozen=True, kw_only=True)
class Kernel(GradientTransform):
    """The gradient correlated with a kernel, channel by channel: a mean over shifted inputs.

    Beyond the border the gradient is zero.

    Args:
        size: Side of the kernel in pixels, odd.
        kernel: `"gaussian"` (reaching to three standard deviations), `"uniform"` or `"linear"`.

    References:
        Dong et al. 2019, "Evading Defenses to Transferable Adversarial Examples by
        Translation-Invariant Attacks", arXiv:1904.02884, equation 7.
    """

    name: ClassVar[str] = "tim"

    size: int = 15
    kernel: str = "gaussian"

    def __post_init__(self) -> None:
        if whole("size", self.size, low=1) % 2 == 0:
            raise InputError(f"size must be odd, but {self.size} came")
        one_of("kernel", self.kernel, KERNELS)

    def apply(self, gradient: Tensor) -> Tensor:
        """Return the smoothed gradient, `(n, C, H, W)`."""
        if self.size == 1:
            return gradient
        # The kernel is a product: down the columns, then along the rows.
        rows, columns = (self.matrix(gradient.shape[axis], gradient) for axis in (2, 3))
        return rows @ gradient @ columns

    def matrix(self, side: int, like: Tensor) -> Tensor:
        """Return the symmetric matrix `(side, side)` that smoothes one axis."""
        half = self.size // 2
        places = torch.arange(side, device=like.device, dtype=like.dtype)
        offsets = places.unsqueeze(1) - places
        own = torch.arange(-half, half + 1, device=like.device, dtype=like.dtype)
        weights = self.profile(offsets) / self.profile(own).sum()
        return torch.where(offsets.abs() <= half, weights, torch.zeros_like(weights))

    def profile(self, offsets: Tensor) -> Tensor:
        """Return the weights at some offsets in pixels, along one axis and not yet normalised."""
        half = self.size // 2
        if self.kernel == "uniform":
            return torch.ones_like(offsets)
        if self.kernel == "linear":
            return 1 - offsets.abs() / (half + 1)
        return torch.exp(-0.5 * (3 * offsets / half) ** 2)
