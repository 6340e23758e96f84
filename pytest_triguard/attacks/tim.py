"""The translation-invariant method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.engine.transforms.base import Transform
from pytest_triguard.engine.transforms.kernel import Kernel
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class TIM(MomentumSteps):
    """MIM with each gradient smoothed by a kernel.

    Args:
        size: Side of the kernel in pixels, odd.
        kernel: `"gaussian"`, `"uniform"` or `"linear"`.

    References:
        Dong et al. 2019, "Evading Defenses to Transferable Adversarial Examples by
        Translation-Invariant Attacks", arXiv:1904.02884, equation 7.
    """

    name: ClassVar[str] = "tim"
    facts: ClassVar[Facts] = Facts(checked="torchattacks")

    size: int = 15
    kernel: str = "gaussian"

    @property
    def own(self) -> tuple[Transform, ...]:
        """The kernel."""
        return (Kernel(size=self.size, kernel=self.kernel),)
