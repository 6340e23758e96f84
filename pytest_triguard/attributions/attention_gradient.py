"""Attention weighted by how much the output asks for it, added up over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.attention import FromAttention
from pytest_triguard.engine.attention import Attention
from pytest_triguard.engine.model import Model
from pytest_triguard.facts import Facts


@dataclass(frozen=True, kw_only=True)
class AttentionGradient(FromAttention):
    """Gradient-weighted attention: how relevant each patch is to the class token.

    With `W_l` the mean over heads of the positive part of attention times its gradient in layer
    `l`, it is the row of the class token in `(I + W_L) ... (I + W_1) - I`; without a class token,
    the mean over all rows. It becomes a picture, and is defined on torchvision's `MaxVit`, as
    `AttentionRollout` is. What comes before the first attention is not differentiated.

    References:
        Chefer et al. 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and
        Encoder-Decoder Transformers", arXiv:2103.15679, equations 5 and 6.
    """

    name: ClassVar[str] = "attention_gradient"
    facts: ClassVar[Facts] = Facts(sign="never negative; one value per pixel")

    def layers(
        self, model: Model, inputs: Tensor, targets: Tensor
    ) -> tuple[list[Attention], list[Tensor]]:
        """Return the attention of each layer, and the positive part of it times its gradient."""
        with torch.inference_mode(False), torch.enable_grad():
            found, logits = self.watched(model, inputs.detach(), follow=True)
            total = self.objective(logits, targets).sum()
            gradients: Sequence[Tensor | None] = [None] * len(found)
            if total.requires_grad:
                followed = [each.followed for each in found]
                gradients = torch.autograd.grad(total, followed, allow_unused=True)
                model.passes.backward += len(inputs)
        weights = [
            torch.zeros_like(each.weights).mean(-3)
            if gradient is None
            else (each.by_weights(gradient) * each.weights).relu().mean(-3)
            for each, gradient in zip(found, gradients, strict=True)
        ]
        return found, weights

    def back(self, start: Tensor, layers: Sequence[tuple[Attention, Tensor]]) -> Tensor:
        """Return what the layers add to the start, without the start itself."""
        relevance = torch.zeros_like(start)
        for attention, weights in layers:
            start, relevance = attention.here(start), attention.here(relevance)
            relevance = relevance + attention.passed_on(start + relevance, weights)
        return relevance
