"""The fall of the output when a window slides over the image and hides what is under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.base import known_targets
from pytest_triguard.attributions.baselined import WithBaseline
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import whole

Place = tuple[slice, slice]
"""Rows and columns that a window covers."""


@dataclass(frozen=True, kw_only=True)
class Occlusion(WithBaseline):
    """Mean fall of the output over the windows that cover a pixel, spread over its channels.

    A window hides all channels: it shows the baseline there. No gradient is taken, so the network
    need not have one. The last window of a row or column may reach over the border.

    Args:
        window: Side of the square window in pixels, or None for a quarter of the shorter side.
        stride: Pixels from one window to the next, or None for half the window.

    References:
        Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks",
        arXiv:1311.2901, section 4.2.
    """

    name: ClassVar[str] = "occlusion"
    kind: ClassVar[str] = "difference"
    facts: ClassVar[Facts] = Facts(
        cost=f"about {PASSES} forward",
        sign="signed; one value per pixel",
        axioms=("linear",),
        checked="Captum",
    )

    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None:
                whole(name, value, low=1)
        if self.window is not None and (self.stride or 1) > self.window:
            raise InputError(
                f"stride must be at most the window, {self.window}, so that every pixel is hidden "
                f"once, but {self.stride} came"
            )

    @property
    def passes_per_sample(self) -> int:
        """About 64 forward passes with the default window; other windows have their own number."""
        return 64

    def describe(self) -> str:
        """Return the method and its window in words, for reports."""
        window = "a quarter of the side" if self.window is None else f"{self.window} pixels"
        return f"{self.name} of the {self.output}, windows of {window}, seed {self.drawn_seed}"

    @torch.no_grad()
    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        inputs = batch.inputs
        start = self.start(model, batch)
        there = self._outputs(model, inputs, batch)
        total, count = torch.zeros_like(inputs[:, :1]), torch.zeros_like(inputs[:1, :1])
        places = self._places(*inputs.shape[2:])
        per_pass = max(1, model.chunk.rows // len(batch))
        for first in range(0, len(places), per_pass):
            some = places[first : first + per_pass]
            copies = inputs.repeat(len(some), 1, 1, 1).view(len(some), *inputs.shape)
            for copy, (rows, columns) in zip(copies, some, strict=True):
                copy[..., rows, columns] = start[..., rows, columns]
            falls = there - self._outputs(model, copies.flatten(0, 1), batch).view(-1, len(batch))
            for fall, (rows, columns) in zip(falls, some, strict=True):
                total[..., rows, columns] += per_row(fall, total)
                count[..., rows, columns] += 1
        return (total / count / inputs.shape[1]).expand_as(inputs).contiguous()

    def _outputs(self, model: Model, points: Tensor, batch: Batch) -> Tensor:
        targets = known_targets(batch).repeat(len(points) // len(batch))
        return self.objective(model.chunk.map(model.logits, points), targets)

    def _places(self, height: int, width: int) -> list[Place]:
        window = self.window or max(1, round(min(height, width) / 4))
        stride = self.stride or max(1, window // 2)
        if stride > window:
            raise InputError(
                f"stride must be at most the window, {window} pixels here, but {stride} came"
            )
        return [
            (slice(row, row + window), slice(column, column + window))
            for row in _starts(height, window, stride)
            for column in _starts(width, window, stride)
        ]


def _starts(side: int, window: int, stride: int) -> range:
    """Return where windows start along a side, so that the last one reaches its end."""
    return range(0, max(side - window, 0) + stride, stride)
