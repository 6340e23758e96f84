"""What methods that read attention share: the layers in turn, and the way back to pixels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.attributions.base import Attribution, known_targets
from pytest_triguard.engine.attention import Attention, watch_attention
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.validation import describe, whole


@dataclass(frozen=True, kw_only=True)
class FromAttention(Attribution):
    """A method that follows attention from where the network reads its answer back to the image.

    It needs a network whose self-attention goes through `nn.MultiheadAttention`, as in
    torchvision's `VisionTransformer`, or torchvision's `MaxVit`. Layers are taken in the order in
    which they run, over the same tokens.

    Args:
        patches: Rows and columns of the patches, which are the last tokens, row by row; None for
            square patches that fill the image, with one class token before them or none.
    """

    kind: ClassVar[str] = "attention"

    patches: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patches is None:
            return
        if not isinstance(self.patches, Sequence) or len(self.patches) != 2:
            raise InputTypeError(
                f"patches must be a pair (rows, columns), but {describe(self.patches)} came"
            )
        for each in self.patches:
            whole("patches", each, low=1)

    @property
    def passes_per_sample(self) -> int:
        """One."""
        return 1

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        inputs, targets = batch.inputs, known_targets(batch)
        parts = model.chunk.attempt(
            lambda part: self._relevance(model, inputs[part], targets[part]), len(batch)
        )
        maps = functional.interpolate(
            torch.cat(parts), inputs.shape[2:], mode="bilinear", align_corners=False
        )
        return (maps / inputs.shape[1]).expand_as(inputs).contiguous()

    def watched(
        self, model: Model, inputs: Tensor, *, follow: bool
    ) -> tuple[list[Attention], Tensor]:
        """Return the attention of each layer, and the logits.

        Raises:
            ModelError: If it does not go from layer to layer over the same tokens.
        """
        with watch_attention(model.module, follow=follow) as found:
            logits = model.logits(inputs)
        self._check(model, found, len(inputs))
        return found, logits

    @abstractmethod
    def layers(
        self, model: Model, inputs: Tensor, targets: Tensor
    ) -> tuple[list[Attention], list[Tensor]]:
        """Return the attention of each layer, and what its relevance is passed on by, no heads."""

    @abstractmethod
    def back(self, start: Tensor, layers: Sequence[tuple[Attention, Tensor]]) -> Tensor:
        """Return the relevance of the first layer's tokens, the last layer coming first."""

    def _relevance(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the relevance of each place, `(n, 1, h, w)`."""
        found, weights = self.layers(model, inputs, targets)
        first, last = found[0], found[-1]
        layers = list(zip(found, weights, strict=True))[::-1]
        if last.picture is not None:
            if self.patches is not None:
                raise InputError(
                    "patches must be left out where attention knows the places of its tokens, but "
                    f"{self.patches} came"
                )
            height, width = last.picture
            start = inputs.new_full((len(inputs), 1, height, width), 1 / (height * width))
            return self.back(start, layers)
        tokens = first.weights.shape[-1]
        rows, columns = self._grid(tokens, inputs)
        others = tokens - rows * columns
        if others:
            start = inputs.new_zeros(len(inputs), tokens)
            start[:, 0] = 1
        else:
            start = inputs.new_full((len(inputs), tokens), 1 / tokens)
        return self.back(start, layers)[:, others:].view(-1, 1, rows, columns)

    def _check(self, model: Model, found: Sequence[Attention], rows: int) -> None:
        """Refuse attention that does not go from layer to layer over the same tokens."""
        name = type(model.module).__name__
        if not found:
            raise ModelError(
                f"{self.name} needs attention through nn.MultiheadAttention or torchvision's "
                f"MaxVit, but the module {name} has none"
            )
        windows = found[0].picture is not None
        tokens = found[0].weights.shape[-1]
        for each in found:
            shape = tuple(each.weights.shape)
            fits = shape[0] == rows and shape[-1] == shape[-2] and (each.picture is None) != windows
            if not fits or len(shape) != 4 + windows or not (windows or shape[-1] == tokens):
                raise ModelError(
                    f"{self.name} needs self-attention of each sample over the same tokens in all "
                    f"layers, but of {rows} samples the module {name} has attention weights of "
                    f"shape {shape}" + ("" if windows else f" beside {tokens} tokens")
                )

    def _grid(self, tokens: int, inputs: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the patches."""
        height, width = inputs.shape[2:]
        if self.patches is not None:
            rows, columns = self.patches
            if rows * columns <= tokens:
                return rows, columns
            raise InputError(
                f"patches must be at most as many as the {tokens} tokens, but {self.patches} came"
            )
        for count in (tokens, tokens - 1):
            side = isqrt(height * width // max(count, 1))
            if side and height % side == width % side == 0:
                rows, columns = height // side, width // side
                if rows * columns == count:
                    return rows, columns
        raise InputError(
            f"patches must be given as (rows, columns), for {tokens} tokens are not the square "
            f"patches of a {height} x {width} image, with a class token or without; None came"
        )

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        values = super().parameters()
        return values | {"patches": None if self.patches is None else list(self.patches)}
