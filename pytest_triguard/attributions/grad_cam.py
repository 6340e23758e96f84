"""The features of a layer, weighted by how much the output asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.attributions.base import Attribution, known_targets
from pytest_triguard.engine.layers import (
    Captured,
    Layer,
    check_layer,
    cut,
    find_layer,
    last_spatial_layer,
)
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, ModelError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import describe, flag


@dataclass(frozen=True, kw_only=True)
class GradCAM(Attribution):
    """Channels of a layer times the mean gradient of each, summed and enlarged to the image.

    The map has one value per place, which is spread over the channels of the image. Only what
    comes behind the layer is differentiated.

    Args:
        layer: A module of the network, or its dotted name, with an output `(N, C, h, w)`; None for
            the last layer with more than one place whose height and width are those of an image
            that some convolution, pooling or resizing takes or gives.
        relu: Whether negative values are set to zero, as in the paper, or kept.

    References:
        Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
        Localization", arXiv:1610.02391, equations 1 and 2.
    """

    name: ClassVar[str] = "grad_cam"
    kind: ClassVar[str] = "cam"
    facts: ClassVar[Facts] = Facts(
        cost=f"{PASSES} forward, and back to the layer",
        sign="never negative with relu=True; one value per pixel",
        axioms=("linear with relu=False",),
        checked="Captum",
    )

    layer: Layer | None = None
    relu: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            check_layer(self.layer)
        flag("relu", self.relu)

    @property
    def passes_per_sample(self) -> int:
        """One forward pass; going backward to the layer costs less than another."""
        return 1

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        values = super().parameters()
        if isinstance(self.layer, nn.Module):
            values["layer"] = type(self.layer).__name__
        return values

    def describe(self) -> str:
        """Return the method and why its maps can be zero in words, for reports."""
        cut_off = ", zero where the activation is negative (relu=False keeps it)"
        return super().describe() + (cut_off if self.relu else "")

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        inputs = batch.inputs
        maps = self.activation(model, batch) / inputs.shape[1]
        return maps.expand_as(inputs).contiguous()

    def activation(self, model: Model, batch: Batch) -> Tensor:
        """Return the enlarged class activation, `(n, 1, H, W)`."""
        targets, layer = known_targets(batch), self._layer(model, batch.inputs)
        parts = model.chunk.attempt(
            lambda part: self._activation(model, layer, batch.inputs[part], targets[part]),
            len(batch),
        )
        return enlarged(parts[0] if len(parts) == 1 else torch.cat(parts), batch.inputs)

    def _layer(self, model: Model, inputs: Tensor) -> nn.Module:
        if self.layer is not None:
            return find_layer(model.module, self.layer)
        layer = last_spatial_layer(model, inputs)
        if layer is None:
            raise ModelError(
                f"{self.name} needs a layer with an output (N, C, h, w) of more than one place, "
                f"but the module {type(model.module).__name__} has none that some convolution, "
                "pooling or resizing shows to be an image; layer=NAME takes another"
            )
        return layer

    def _activation(
        self, model: Model, layer: nn.Module, inputs: Tensor, targets: Tensor
    ) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad(), cut(layer) as captured:
            total = self.objective(model.logits(inputs.detach()), targets).sum()
            features, gradient = self._features(captured, len(inputs)), None
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total, features, allow_unused=True)
        return self._weighted(features.detach(), gradient)

    def _features(self, captured: Captured, samples: int) -> Tensor:
        """Return what the layer gave.

        Raises:
            InputError: If that has no places, or not one row for each sample.
        """
        features = captured.output
        if features.ndim != 4 or not features.dtype.is_floating_point:
            raise InputError(
                f"layer must give an output (N, C, h, w), but {describe(self.layer)} gave "
                f"{describe(features)}"
            )
        if len(features) != samples:
            raise InputError(
                f"layer must give one row for each of {samples} inputs, but {describe(features)} "
                "came"
            )
        return features

    def _weighted(self, features: Tensor, gradient: Tensor | None) -> Tensor:
        """Return the features weighted by their mean gradients, `(n, 1, h, w)`."""
        if gradient is None:
            return torch.zeros_like(features[:, :1])
        weights = gradient.mean((2, 3)).unsqueeze(1)
        maps = torch.bmm(weights, features.flatten(2)).view_as(features[:, :1])
        return maps.relu() if self.relu else maps


def enlarged(maps: Tensor, inputs: Tensor) -> Tensor:
    """Return maps `(n, 1, h, w)` at the size of the inputs, `(n, 1, H, W)`."""
    return functional.interpolate(maps, inputs.shape[2:], mode="bilinear", align_corners=False)
