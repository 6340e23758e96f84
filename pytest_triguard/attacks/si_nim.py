"""The scale-invariant Nesterov iterative method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.nim import NIM
from pytest_triguard.engine.transforms.base import Transform
from pytest_triguard.engine.transforms.scales import Scales
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class SINIM(NIM):
    """NIM with the gradient averaged over copies divided by 1, 2, 4 and so on.

    The gradient is taken through the division: copy `i` counts `2 ** -i`.

    Args:
        copies: Number of copies.

    References:
        Lin et al. 2020, "Nesterov Accelerated Gradient and Scale Invariance for Adversarial
        Attacks", arXiv:1908.06281, algorithm 1.
    """

    name: ClassVar[str] = "si_nim"
    facts: ClassVar[Facts] = Facts(checked="torchattacks")

    copies: int = 5

    @property
    def own(self) -> tuple[Transform, ...]:
        """Copies at falling brightness."""
        return (Scales(copies=self.copies),)
