"""The spectrum simulation attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.engine.transforms.base import Transform
from pytest_triguard.engine.transforms.spectrum import Spectrum
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class SSA(MomentumSteps):
    """MIM with the gradient averaged over, and taken at, copies with another spectrum.

    Args:
        copies: Number of copies.
        rho: How far the factor of a frequency strays from 1.
        sigma: Standard deviation of the noise, in input units.

    References:
        Long et al. 2022, "Frequency Domain Model Augmentation for Adversarial Attack",
        arXiv:2207.05382, algorithm 1.
    """

    name: ClassVar[str] = "ssa"
    facts: ClassVar[Facts] = Facts()

    copies: int = 20
    rho: float = 0.5
    sigma: float = 16 / 255

    @property
    def own(self) -> tuple[Transform, ...]:
        """The spectrum."""
        return (Spectrum(copies=self.copies, rho=self.rho, sigma=self.sigma),)
