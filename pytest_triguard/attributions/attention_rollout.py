"""Attention multiplied up over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.attention import FromAttention
from pytest_triguard.engine.attention import Attention
from pytest_triguard.engine.model import Model
from pytest_triguard.facts import PASSES, Facts


@dataclass(frozen=True, kw_only=True)
class AttentionRollout(FromAttention):
    """How much of what the class token is made of came from each patch, were attention all.

    With `A_l` the attention of layer `l`, averaged over its heads, it is the row of the class token
    in `(A_L + I)/2 ... (A_1 + I)/2`; without a class token, the mean over all rows. The rows of
    patches are laid out as a picture and enlarged bilinearly; each value is spread over the
    channels of the image. The map depends on neither the class nor the output that is explained.

    On torchvision's `MaxVit` the tokens are the places of a feature map, all of which the head
    averages. Within its windows and grids the product is exact, place by place. No attention says
    how convolutions mix what they are given: they are taken to leave it where it is, and what
    halves the resolution to share the relevance of a place evenly among the four it covers. The
    map ends at the first attention and is enlarged from there.

    References:
        Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928,
        section 3 (attention rollout).
    """

    name: ClassVar[str] = "attention_rollout"
    facts: ClassVar[Facts] = Facts(
        cost=f"{PASSES} forward", sign="never negative; one value per pixel"
    )

    @torch.no_grad()
    def layers(
        self, model: Model, inputs: Tensor, targets: Tensor
    ) -> tuple[list[Attention], list[Tensor]]:
        """Return the attention of each layer, averaged over heads."""
        found, _ = self.watched(model, inputs, follow=False)
        return found, [each.weights.mean(-3) for each in found]

    def back(self, start: Tensor, layers: Sequence[tuple[Attention, Tensor]]) -> Tensor:
        """Return the start times the matrices of all layers."""
        relevance = start
        for attention, weights in layers:
            relevance = attention.here(relevance)
            relevance = (relevance + attention.passed_on(relevance, weights)) / 2
        return relevance
