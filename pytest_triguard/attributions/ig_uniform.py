"""Integrated gradients from uniform references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attributions.drawn_references import DrawnReferences
from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class IGUniform(DrawnReferences):
    """Integrated gradients, averaged over references drawn uniformly from the valid range.

    References:
        Sturmfels et al. 2020, "Visualizing the Impact of Feature Attribution Baselines", Distill,
        section "The Uniform Baseline"; with the points and defaults of Yang et al. 2023,
        "Re-calibrating Feature Attributions for Model Interpretation", ICLR 2023.
    """

    name: ClassVar[str] = "ig_uniform"
    facts: ClassVar[Facts] = Facts(sign="signed", axioms=("complete on average", "linear"))

    def drawn(self, copies: Copies, low: Tensor, high: Tensor) -> Tensor:
        """Return uniform references, `(m, C, H, W)`."""
        keys = draws.row_keys(
            copies.keys, seed=self.drawn_seed, method=self.name, copy=copies.numbers
        )
        values = draws.uniform(keys, copies.inputs.shape[1:], dtype=copies.inputs.dtype)
        return low + (high - low) * values
