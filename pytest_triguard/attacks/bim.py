"""The basic iterative method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attacks.gradient_steps import GradientSteps
from pytest_triguard.facts import PASSES, Facts


@dataclass(frozen=True, kw_only=True)
class BIM(GradientSteps):
    """Iterated gradient sign from the sample itself, 10 steps of eps / 10 by default.

    References:
        Kurakin et al. 2017, "Adversarial Examples in the Physical World", arXiv:1607.02533,
        section 2.2.
    """

    name: ClassVar[str] = "bim"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES}", checked="torchattacks, Foolbox, ART")

    def default_step(self, eps: Tensor) -> Tensor:
        """Return the step of each sample where the user named none: eps / steps."""
        return eps / self.steps
