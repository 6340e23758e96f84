"""Auto-PGD on the difference-of-logits ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.apgd import APGD
from pytest_triguard.facts import PASSES, Facts


@dataclass(frozen=True, kw_only=True)
class APGDDLR(APGD):
    """Auto-PGD up the difference-of-logits ratio, which no scaling of the logits changes.

    It needs three classes, and four where a target is given.

    References:
        Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of
        Diverse Parameter-free Attacks", arXiv:2003.01690, algorithm 1 and equations 6 and 7.
    """

    name: ClassVar[str] = "apgd_dlr"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES}", checked="torchattacks")
    loss: ClassVar[str] = "dlr"
