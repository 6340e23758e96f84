"""Batch normalisation by running statistics, whose gradient needs no input.

In evaluation mode it is affine in each channel, so that the gradient of its input is that of its
output times a factor. On a host, torch keeps the input all the same and reads it on the way back,
channel by channel. While a classifier is held, its layers of torch's own types go backward by the
factor alone, wherever numbers are many enough for that to pay: some 5 % of all of a ResNet's time.
Going forward they are what they were, to the bit, and so they are where anything else looks on:
other rules for going backward, hooks on what is saved for it, derivatives that go forward, a
compiler, a layer that learns.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn import functional
from torch.overrides import has_torch_function_unary

from pytest_triguard.engine.compiled import compiled

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LEAST = 2**16
"""Numbers of an input from which a function written in Python takes less time than it saves."""

_DTYPES = (torch.float32, torch.float64)
"""Those in which a factor is as fine as torch's own: it computes coarser ones in float32."""


def lighten(module: nn.Module) -> list[nn.Module]:
    """Let the batch normalisations of a network on a host go backward without their inputs.

    Args:
        module: The network; one that was compiled is left as it is.

    Returns:
        The layers that changed, for `restore`.
    """
    if compiled(module):
        return []
    # One with a forward of its own is another layer, or is held by somebody else already.
    layers = [
        each for each in module.modules() if type(each) in _KINDS and "forward" not in vars(each)
    ]
    for each in layers:
        each.forward = MethodType(forward, each)
    return layers


def lightened(layer: nn.Module) -> bool:
    """Return whether a layer is one of those that `lighten` changed."""
    return _is_own(layer, forward)


def has_own_forward(layer: nn.Module) -> bool:
    """Return whether a module has a forward that is not its class's, nor that of `lighten`."""
    # What was pickled while it was held comes back with its class's own among its attributes.
    known = lightened(layer) or _is_own(layer, type(layer).forward)
    return "forward" in vars(layer) and not known


def _is_own(layer: nn.Module, function: Any) -> bool:
    """Return whether a layer has a function, bound to itself, as its forward."""
    found = vars(layer).get("forward")
    bound_to_it = getattr(found, "__self__", None) is layer
    return bound_to_it and getattr(found, "__func__", None) is function


def restore(layers: Iterable[nn.Module]) -> None:
    """Put layers back as they were before `lighten`."""
    for each in layers:
        vars(each).pop("forward", None)


def forward(layer: nn.BatchNorm2d, input: Tensor) -> Tensor:
    """What a layer does in the place of its `forward`."""
    mean, variance = layer.running_mean, layer.running_var
    if (
        # First, as whoever looks on would see the sizes compared, and hold to them.
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or has_torch_function_unary(input)  # somebody has rules of their own, or looks on
        or input.numel() < _LEAST
        or not (input.requires_grad and torch.is_grad_enabled())
        or layer.training
        or mean is None
        or variance is None
        or input.dtype not in _DTYPES
        or not _held_still(input, mean, variance, layer.weight, layer.bias)
        or forward_ad._current_level >= 0  # any part of the layer may have a tangent
        or _saved_elsewhere()
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


def _saved_elsewhere() -> bool:
    """Return whether hooks take what is saved for the way back.

    Those of a checkpoint want the same saved when a layer is computed again, which may be after it
    was restored, or where other rules no longer hold.
    """
    try:
        with disable_saved_tensors_hooks("used by others"):
            return False
    except RuntimeError:
        return True


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
