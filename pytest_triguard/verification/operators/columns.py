"""A convolution with a stride as products of matrices, for processors without a kernel for it.

In float64, torch writes out the windows of each sample and multiplies them by the weights. With a
stride, each element lies in few windows, so that those of several samples may be written out side
by side: one product of matrices takes them all, in a fifth less of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.engine.devices import is_host
from pytest_triguard.verification.operators.shape import pair

_HELD = 2**17
"""Elements of windows that are written out at a time, beyond those of one sample."""

_CHANNELS = 8
"""Channels below which windows are too slim."""

_REPEATED = 4
"""Windows that an element lies in, at most."""


def pay(values: Tensor, weights: Tensor, steps: tuple[int, int], padding: Any) -> bool:
    """Return whether this is faster than torch's own.

    Args:
        values: `(n, C, H, W)`.
        weights: `(K, C, h, w)`.
        steps: Stride.
        padding: As of `functional.conv2d`.
    """
    return (
        values.dtype == torch.float64
        and is_host(values.device)
        and steps != (1, 1)
        and weights.shape[1] >= _CHANNELS
        and weights[0, 0].numel() <= _REPEATED * steps[0] * steps[1]
        and not isinstance(padding, str)
        and all(
            size + 2 * pad >= extent  # else torch refuses it
            for size, pad, extent in zip(
                values.shape[2:], pair(padding), weights.shape[2:], strict=True
            )
        )
        and values.is_contiguous()
        and not torch.is_grad_enabled()
    )


def conv2d(
    values: Tensor,
    weights: Tensor,
    offset: Tensor | None,
    steps: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Return `functional.conv2d` of all channels.

    Args:
        values: `(n, C, H, W)`.
        weights: `(K, C, h, w)`.
        offset: `(K,)`, or None.
        steps: Stride.
        padding: Rows and columns of zeros on either side.

    Returns:
        `(n, K, h', w')`.
    """
    (down, across), (kernels, _, *extent) = padding, weights.shape
    padded = functional.pad(values, (across, across, down, down)) if down or across else values
    windows = padded.unfold(2, extent[0], steps[0]).unfold(3, extent[1], steps[1])
    matrix, (height, width) = weights.reshape(kernels, -1), windows.shape[2:4]
    found = values.new_empty(len(values), kernels, height, width)
    step = max(1, _HELD // (matrix.shape[1] * height * width))
    for part, place in zip(torch.split(windows, step), torch.split(found, step), strict=True):
        columns = part.permute(1, 4, 5, 0, 2, 3).reshape(matrix.shape[1], -1)
        product = matrix @ columns if offset is None else offset[:, None].addmm(matrix, columns)
        place.copy_(product.view(kernels, -1, height, width).transpose(0, 1))
    return found
