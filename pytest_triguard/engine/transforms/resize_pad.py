"""Copies resized and padded at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine import draws
from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.transforms.base import InputTransform
from pytest_triguard.errors import InputError
from pytest_triguard.validation import number

_FINE = 2**24
"""Steps of a draw: what a float32 in [0, 1) can hold."""


@dataclass(frozen=True, kw_only=True)
class ResizePad(InputTransform):
    """With some probability, the input is resized, padded with zeros, and brought back to size.

    A side of `S` pixels is resized to `r` with `S <= r < rate * S`, padded to `rate * S` at a
    random place, and resized to `S`. With a rate below 1, `rate * S <= r < S`, and it is padded
    to `S`. Resizing is bilinear. Coin and geometry are drawn for each sample, where published
    code draws one for the batch.

    Args:
        copies: Number of draws.
        probability: Probability with which a copy is transformed.
        rate: Largest size as a share of the input's or, below 1, the smallest.

    References:
        Xie et al. 2019, "Improving Transferability of Adversarial Examples with Input Diversity",
        arXiv:1803.06978, equation 5.
    """

    name: ClassVar[str] = "dim"

    probability: float = 0.5
    rate: float = 1.1

    def __post_init__(self) -> None:
        super().__post_init__()
        number("probability", self.probability, low=0, high=1)
        number("rate", self.rate, low=0, low_open=True)

    def apply(self, model: Model, copies: Copies) -> Tensor:
        """Return the resized and padded inputs, `(m, C, H, W)`."""
        inputs, keys = copies.inputs, copies.keys
        height, width = inputs.shape[2:]
        if all(self._sizes(side) == (side, side) for side in (height, width)):
            raise InputError(
                f"rate must leave room to resize inputs of {height} x {width} pixels, but "
                f"{self.rate:g} came"
            )
        # One draw for the size of both sides, so that a square stays a square.
        coin, size, top, left = draws.integers(keys, (4,), below=_FINE).unbind(1)
        chosen = coin < self.probability * _FINE

        def resized(picked: Tensor | slice) -> Tensor:
            like = chosen[picked].to(inputs.dtype)
            rows = self._resampling(height, size[picked], top[picked], like).unsqueeze(1)
            columns = self._resampling(width, size[picked], left[picked], like).unsqueeze(1)
            return rows @ inputs[picked] @ columns.mT

        if not is_host(inputs.device):  # it would wait for the number of those chosen
            return resized(slice(None))
        places = chosen.nonzero().flatten()
        return inputs.index_copy(0, places, resized(places)) if len(places) else inputs

    def _sizes(self, side: int) -> tuple[int, int]:
        """Return the smallest size and the one that is padded to."""
        other = max(1, int(self.rate * side + 1e-9))  # 0.57 * 100 is below 57
        return min(side, other), max(side, other)

    def _resampling(self, side: int, size: Tensor, place: Tensor, chosen: Tensor) -> Tensor:
        """Return the matrices `(m, side, side)` that resample one axis of the rows chosen."""
        smallest, canvas = self._sizes(side)
        size = smallest + (size * (canvas - smallest) // _FINE)
        start = place * (canvas - size) // _FINE
        resized = interpolation(canvas, size, start, side, chosen)
        if canvas != side:
            whole = torch.full_like(size[:1], side)
            back = interpolation(side, whole, torch.zeros_like(whole), canvas, chosen)
            resized = back @ resized
        # An identity leaves a row as it is, to the bit, and costs less than a choice by element.
        same = torch.eye(side, dtype=chosen.dtype, device=chosen.device)
        return torch.lerp(same, resized, chosen.view(-1, 1, 1))


def interpolation(canvas: int, size: Tensor, start: Tensor, side: int, like: Tensor) -> Tensor:
    """Return the matrices that resize an axis bilinearly and place it on a canvas of zeros.

    Args:
        canvas: Length of the axis afterwards.
        size: `(m,)` int64, the length the axis is resized to.
        start: `(m,)` int64, where on the canvas it begins.
        side: Length of the axis before.
        like: Gives dtype and device.

    Returns:
        `(m, canvas, side)`.
    """
    places = torch.arange(canvas, device=like.device) - start.unsqueeze(1)
    inside = (places >= 0) & (places < size.unsqueeze(1))
    # Centres of pixels, not corners, as in `torch.nn.functional.interpolate`.
    ratio = side / size.unsqueeze(1).to(like.dtype)
    source = ((places.to(like.dtype) + 0.5) * ratio - 0.5).clamp(0, side - 1)
    source = torch.where(inside, source, -2.0)  # next to no pixel
    pixels = torch.arange(side, device=like.device, dtype=like.dtype)
    return (source.unsqueeze(2) - pixels).abs_().neg_().add_(1).clamp_min_(0)
