"""The gradient of the output with respect to the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.base import Attribution, known_targets
from pytest_triguard.engine.backward_rules import BackwardRules
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.second_order import GradientMean
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class Saliency(Attribution):
    """The signed gradient, `d f_y / d x`.

    References:
        Simonyan et al. 2014, "Deep Inside Convolutional Networks", arXiv:1312.6034, section 3
        (which takes the absolute value; here that is the reader's choice).
    """

    name: ClassVar[str] = "saliency"
    kind: ClassVar[str] = "gradient"
    facts: ClassVar[Facts] = Facts(sign="signed", axioms=("linear",), checked="Captum")

    @property
    def passes_per_sample(self) -> int:
        """One."""
        return 1

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the gradients, `(n, C, H, W)`."""
        return self.explain_and_predict(model, batch)[0]

    def explain_and_predict(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the gradients, and the logits that came with them."""
        return chunked_gradient(self, model, batch)

    def gradient_mean(self, model: Model, batch: Batch) -> GradientMean:
        """Return the gradient at the sample itself."""
        return GradientMean(self.objective)


def chunked_gradient(
    method: Attribution, model: Model, batch: Batch, *, rules: BackwardRules | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradient of a method's output at the samples themselves, and their logits."""
    targets, objective = known_targets(batch), method.objective
    parts = model.chunk.attempt(
        lambda part: input_gradient(
            model, batch.inputs[part], targets[part], objective, rules=rules
        ),
        len(batch),
    )
    if len(parts) == 1:
        return parts[0]
    return torch.cat([each for each, _ in parts]), torch.cat([each for _, each in parts])
