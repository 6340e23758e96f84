"""The structure-invariant attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.engine.transforms.base import Transform
from pytest_triguard.engine.transforms.blocks import OPERATIONS, Blocks
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class SIA(MomentumSteps):
    """MIM with the gradient averaged over copies whose blocks are transformed at random.

    Args:
        copies: Number of copies.
        blocks: Blocks along each axis.
        noise: Amplitude of the noise that a block may get, in input units.
        operations: Names of what blocks go through; see `Blocks`.

    References:
        Wang et al. 2023, "Structure Invariant Transformation for better Adversarial
        Transferability", arXiv:2309.14700, section 3.3.
    """

    name: ClassVar[str] = "sia"
    facts: ClassVar[Facts] = Facts()

    copies: int = 20
    blocks: int = 3
    noise: float = 16 / 255
    operations: Sequence[str] = OPERATIONS

    @property
    def own(self) -> tuple[Transform, ...]:
        """Blocks."""
        return (
            Blocks(
                copies=self.copies,
                blocks=self.blocks,
                noise=self.noise,
                operations=self.operations,
            ),
        )

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        return super().parameters() | {"operations": list(self.operations)}
