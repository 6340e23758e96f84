"""The Nesterov iterative method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class NIM(MomentumSteps):
    """MIM with the gradient taken ahead, at `x + step * momentum * g`, which is not clipped.

    For the L2 ball `g` is divided by the square root of the number of elements there, so that
    the point lies about a step ahead.

    References:
        Lin et al. 2020, "Nesterov Accelerated Gradient and Scale Invariance for Adversarial
        Attacks", arXiv:1908.06281, equation 6.
    """

    name: ClassVar[str] = "nim"
    facts: ClassVar[Facts] = Facts(checked="torchattacks")
    looks_ahead: ClassVar[bool] = True
