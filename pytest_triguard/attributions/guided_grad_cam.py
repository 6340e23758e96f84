"""Guided backpropagation where the class activation is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pytest_triguard.attributions.base import known_targets
from pytest_triguard.attributions.grad_cam import GradCAM, enlarged
from pytest_triguard.engine.backward_rules import GuidedReLU
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.layers import capture
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
        cost=f"{PASSES}, and back to the layer", sign="signed", checked="Captum"
    )

    @property
    def passes_per_sample(self) -> int:
        """One, and back to the layer once more for the class activation."""
        return 1

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        targets, layer = known_targets(batch), self._layer(model, batch.inputs)
        parts = model.chunk.attempt(
            lambda part: self._product(model, layer, batch.inputs[part], targets[part]),
            len(batch),
        )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _product(self, model: Model, layer: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the guided gradient times the class activation, from one forward pass."""
        rules, plain = GuidedReLU(), None
        with capture(layer) as captured:

            def objective(logits: Tensor, classes: Tensor) -> Tensor:
                nonlocal plain
                values = self.objective(logits, classes)
                features = self._features(captured, len(inputs))
                if values.requires_grad and features.requires_grad:
                    rules.guides = False
                    (plain,) = torch.autograd.grad(
                        values.sum(), features, retain_graph=True, allow_unused=True
                    )
                    rules.guides = True
                return values

            guided, _ = input_gradient(model, inputs, targets, objective, rules=rules)
        activation = self._weighted(captured.output.detach(), plain)
        return guided * enlarged(activation, inputs)
