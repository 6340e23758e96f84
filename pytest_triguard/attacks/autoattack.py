"""AutoAttack: four attacks with published parameters, and its two published variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.apgd_ce import APGDCE
from pytest_triguard.attacks.apgd_dlr import APGDDLR
from pytest_triguard.attacks.apgd_t import APGDT
from pytest_triguard.attacks.base import Attack
from pytest_triguard.attacks.cascade import Cascaded
from pytest_triguard.attacks.fab import FAB
from pytest_triguard.attacks.fab_t import FABT
from pytest_triguard.attacks.square import Square
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import one_of

_VERSIONS: dict[str, tuple[Attack, ...]] = {
    "standard": (APGDCE(), APGDT(), FABT(), Square()),
    "plus": (
        APGDCE(restarts=5),
        APGDDLR(restarts=5),
        FAB(restarts=5),
        Square(),
        APGDT(),
        FABT(),
    ),
    "rand": (APGDCE(copies=20), APGDDLR(copies=20)),
}
"""The attacks of each version; what they leave unsaid is their published default."""


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Cascaded):
    """AutoAttack with its published parameters, which cannot be changed under this name.

    `standard` is apgd_ce, apgd_t, fab_t and square. `plus` is apgd_ce, apgd_dlr and fab with five
    restarts each, square, apgd_t and fab_t. `rand` is apgd_ce and apgd_dlr with gradients
    averaged over 20 passes. For other parameters build a `Cascade`.

    Args:
        version: `"standard"`, `"plus"` or `"rand"`.

    References:
        Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of
        Diverse Parameter-free Attacks", arXiv:2003.01690, section 6.
    """

    name: ClassVar[str] = "autoattack"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES}")
    with_fewer_classes: ClassVar[str] = (
        "use attacks.Cascade with 'apgd_ce', 'fab' and 'square', which need two"
    )

    version: str = "standard"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("version", self.version, _VERSIONS)

    @property
    def chosen(self) -> Sequence[Attack]:
        """The attacks in order, whatever ball they bring."""
        return _VERSIONS[self.version]

    @property
    def takes_targets(self) -> bool:
        """No: the goal is any class but the label."""
        return False

    def classes_needed(self, *, targeted: bool) -> int:
        """Return the fewest classes that all of the attacks are defined for."""
        return max(each.classes_needed(targeted=targeted) for each in self.members)

    def describe(self) -> str:
        """Return the attacks in words, for reports."""
        return f"{super().describe()}, version {self.version}"
