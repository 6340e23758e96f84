"""The diverse inputs iterative method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.engine.transforms.base import Transform
from pytest_triguard.engine.transforms.resize_pad import ResizePad
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class DIM(MomentumSteps):
    """MIM with the gradient taken through a random resizing and padding.

    Args:
        copies: Number of draws per step.
        probability: Probability with which an input is transformed.
        rate: Size of the padded input as a share of its own, or below 1 the smallest share it is
            resized to; see `ResizePad`.

    References:
        Xie et al. 2019, "Improving Transferability of Adversarial Examples with Input Diversity",
        arXiv:1803.06978, section 3.3.
    """

    name: ClassVar[str] = "dim"
    facts: ClassVar[Facts] = Facts(checked="torchattacks")

    copies: int = 1
    probability: float = 0.5
    rate: float = 1.1

    @property
    def own(self) -> tuple[Transform, ...]:
        """Resizing and padding."""
        return (ResizePad(copies=self.copies, probability=self.probability, rate=self.rate),)
