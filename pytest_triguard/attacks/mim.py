"""The momentum iterative method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class MIM(MomentumSteps):
    """Steps along the accumulated gradient, 10 of eps / 10 by default.

    References:
        Dong et al. 2018, "Boosting Adversarial Attacks with Momentum", arXiv:1710.06081,
        algorithm 1.
    """

    name: ClassVar[str] = "mim"
    facts: ClassVar[Facts] = Facts(checked="torchattacks, ART")
