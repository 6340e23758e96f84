"""Gradients smoothed over places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

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
        weights, half = self.profile(gradient), self.size // 2
        # The kernel is a product: down the columns, then along the rows.
        planes = gradient.flatten(0, 1).unsqueeze(1)
        planes = functional.conv2d(planes, weights.view(1, 1, -1, 1), padding=(half, 0))
        planes = functional.conv2d(planes, weights.view(1, 1, 1, -1), padding=(0, half))
        return planes.view_as(gradient)

    def profile(self, like: Tensor) -> Tensor:
        """Return the weights along one axis, `(size,)`; they sum to one."""
        half = self.size // 2
        offsets = torch.arange(-half, half + 1, device=like.device, dtype=like.dtype)
        if self.kernel == "uniform":
            weights = torch.ones_like(offsets)
        elif self.kernel == "linear":
            weights = 1 - offsets.abs() / (half + 1)
        else:
            weights = torch.exp(-0.5 * (3 * offsets / max(half, 1)) ** 2)
        return weights / weights.sum()
