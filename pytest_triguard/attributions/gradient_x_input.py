"""The gradient times the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attributions.base import Attribution
from pytest_triguard.attributions.saliency import chunked_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.second_order import GradientMean
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class GradientXInput(Attribution):
    """The input times the signed gradient, `x * d f_y / d x`, in the user's space.

    For bias-free networks of linear, ReLU and max-pool layers it equals integrated gradients from
    the zero baseline.

    References:
        Shrikumar et al. 2016, "Not Just a Black Box", arXiv:1605.01713, section 2.
    """

    name: ClassVar[str] = "gradient_x_input"
    kind: ClassVar[str] = "gradient"
    facts: ClassVar[Facts] = Facts(sign="signed", axioms=("linear",), checked="Captum")

    @property
    def passes_per_sample(self) -> int:
        """One."""
        return 1

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the products, `(n, C, H, W)`."""
        return self.explain_and_predict(model, batch)[0]

    def explain_and_predict(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the products, and the logits that came with the gradients."""
        gradients, logits = chunked_gradient(self, model, batch)
        return batch.inputs * gradients, logits

    def gradient_mean(self, model: Model, batch: Batch) -> GradientMean:
        """Return the product at the sample itself."""
        return GradientMean(
            self.objective, term=lambda gradients, copies: copies.inputs * gradients
        )
