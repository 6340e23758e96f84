"""Auto-PGD on the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.apgd import APGD
from pytest_triguard.facts import PASSES, Facts


@dataclass(frozen=True, kw_only=True)
class APGDCE(APGD):
    """Auto-PGD up the cross-entropy, 100 steps by default.

    References:
        Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of
        Diverse Parameter-free Attacks", arXiv:2003.01690, algorithm 1.
    """

    name: ClassVar[str] = "apgd_ce"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES}", checked="torchattacks, ART")
    loss: ClassVar[str] = "cross_entropy"
