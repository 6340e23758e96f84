"""Guided backpropagation where the class activation is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attributions.grad_cam import GradCAM
from pytest_triguard.attributions.saliency import chunked_gradient
from pytest_triguard.engine.backward_rules import GuidedReLU
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts


@dataclass(frozen=True, kw_only=True)
class GuidedGradCAM(GradCAM):
    """The class activation times the gradient that passes ReLUs only where it is positive.

    ReLUs are found wherever they are called, in modules, functions and methods. Other activation
    functions go by their gradient, which for a network without ReLU is the plain one. The class
    activation itself goes by the plain gradient.

    References:
        Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization", arXiv:1610.02391, section 3.2; Springenberg et al. 2015, arXiv:1412.6806,
        for guided backpropagation.
    """

    name: ClassVar[str] = "guided_grad_cam"
    facts: ClassVar[Facts] = Facts(
        cost=f"{PASSES}, and a Grad-CAM", sign="signed", checked="Captum"
    )

    @property
    def passes_per_sample(self) -> int:
        """One, and a forward pass for the class activation."""
        return 1

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        activation = self.activation(model, batch)
        return chunked_gradient(self, model, batch, rules=GuidedReLU())[0] * activation
