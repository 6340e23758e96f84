"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.gradient_steps import GradientSteps
from pytest_triguard.facts import PASSES, Facts


@dataclass(frozen=True, kw_only=True)
class PGD(GradientSteps):
    """Projected gradient ascent from random starts, 40 steps of 2.5 eps / 40 by default.

    References:
        Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks",
        arXiv:1706.06083, section 2.1.
    """

    name: ClassVar[str] = "pgd"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES}", checked="torchattacks, Foolbox, ART")

    steps: int = 40
    random_start: bool = True
