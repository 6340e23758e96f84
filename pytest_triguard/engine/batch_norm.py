"""Batch normalisation by running statistics, whose gradient needs no input.

In evaluation mode it is affine in each channel, so that the gradient of its input is that of its
output times a factor. On a host, torch keeps the input all the same and reads it on the way back,
channel by channel. By the factor alone, wherever numbers are many enough for that to pay, going
backward takes some 5 % less of all of a ResNet's time. Going forward is what it was, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.engine.onlookers import backward_watched, watched

_LEAST = 2**16
"""Numbers of an input from which a function written in Python takes less time than it saves."""

_DTYPES = (torch.float32, torch.float64)
"""Those in which a factor is as fine as torch's own: it computes coarser ones in float32."""


def forward(layer: nn.BatchNorm2d, input: Tensor) -> Tensor:
    """What a layer does in the place of its `forward`."""
    mean, variance = layer.running_mean, layer.running_var
    if (
        # First, as whoever looks on would see the sizes compared, and hold to them.
        watched(input)
        or input.numel() < _LEAST
        or not (input.requires_grad and torch.is_grad_enabled())
        or layer.training
        or mean is None
        or variance is None
        or input.dtype not in _DTYPES
        or not _held_still(input, mean, variance, layer.weight, layer.bias)
        or backward_watched()
    ):
        return type(layer).forward(layer, input)
    layer._check_input_dim(input)
    factor = (variance + layer.eps).rsqrt()
    if layer.weight is not None:
        factor = factor * layer.weight  # not in place: vmap may have many weights for one variance
    factor = factor.view(-1, *[1] * (input.ndim - 2))
    outputs: Tensor = _Normalized.apply(
        input, mean, variance, layer.weight, layer.bias, layer.eps, factor
    )
    return outputs


def _held_still(input: Tensor, *parts: Tensor | None) -> bool:
    """Return whether the parts of a layer learn nothing and are of their input's kind."""
    return all(
        each is None
        or (not each.requires_grad and each.dtype == input.dtype and each.device == input.device)
        for each in parts
    )


class _Normalized(torch.autograd.Function):
    """Normalises as ever, and goes backward by a factor for each channel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        factor: Tensor,
    ) -> Tensor:
        return functional.batch_norm(input, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (factor,) = ctx.saved_tensors
        return gradient * factor, *[None] * 6
