"""Interval rules of affine operators: products with weights, and scaling of single elements.

In centre and radius form a product costs two forwards: `W c + b` and `|W| r`. Its rounding error
is at most gamma times `|W| |c| + |b|`; as `|W|` is applied to `r` anyway, the error goes with it:
`|W| (r + gamma |c|) + gamma |b|`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Ball, Interval, lengths, per_sample
from pytest_triguard.verification.operators.rule import Unsupported

_ROUNDINGS = 16
"""Roundings that `scaled` makes at most, those in its factor included."""


@dataclass(frozen=True)
class _Product:
    """A linear operator: its arithmetic, whatever the weights.

    Attributes:
        apply: From input, weights and bias to output.
        fan_in: Number of products in a sum.
        largest: From magnitudes of the weights and scales of the inputs to the largest product of
            the two in each sum, shaped to go with the output.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    fan_in: int
    largest: Callable[[Tensor, Tensor], Tensor]


def linear(input: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    """Bounds of `functional.linear`."""
    if weight.ndim != 2:
        raise Unsupported(f"weights of {weight.ndim} dimensions")

    def largest(magnitudes: Tensor, scale: Tensor) -> Tensor:
        return (magnitudes * scale.amax(tuple(range(scale.ndim - 1)))).amax(1)

    return _affine(input, weight, bias, _Product(functional.linear, weight.shape[1], largest))


def conv2d(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Interval:
    """Bounds of `functional.conv2d`."""

    def apply(values: Tensor, weights: Tensor, offset: Tensor | None) -> Tensor:
        return functional.conv2d(values, weights, offset, stride, padding, dilation, groups)

    def largest(magnitudes: Tensor, scale: Tensor) -> Tensor:
        by_channel = scale.amax((0, 2, 3)).view(groups, 1, -1)
        by_group = magnitudes.amax((2, 3)).view(groups, -1, magnitudes.shape[1])
        return (by_group * by_channel).amax(2).view(-1, 1, 1)

    return _affine(input, weight, bias, _Product(apply, weight[0].numel(), largest))


def conv2d_arguments(module: nn.Conv2d) -> dict[str, Any]:
    """Return the arguments of a convolution module."""
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode={module.padding_mode!r}")
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    return {name: getattr(module, name) for name in names}


def batch_norm(
    input: Interval,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Interval:
    """Bounds of `functional.batch_norm` with running statistics."""
    del momentum
    if training or running_mean is None or running_var is None:
        raise Unsupported("batch normalisation without running statistics")
    shape = (1, -1, *[1] * (len(input.shape) - 2))
    mean, variance = running_mean.to(input.dtype), running_var.to(input.dtype)
    factor = (variance + eps).sqrt().reciprocal()
    if weight is not None:
        factor = factor * weight.to(input.dtype)
    shift = torch.zeros_like(mean) if bias is None else bias.to(input.dtype)
    return scaled(input, factor.view(shape), mean.view(shape), shift.view(shape))


def batch_norm_arguments(module: nn.BatchNorm2d) -> dict[str, Any]:
    """Return the arguments of a batch normalisation module."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "eps")
    return {name: getattr(module, name) for name in names}


def scaled(input: Interval, factor: Tensor, centre: Tensor, shift: Tensor) -> Interval:
    """Bounds of `factor * (input - centre) + shift`, element by element.

    Args:
        input: The value.
        factor: Factor, known up to four roundings.
        centre: Subtracted first, exact.
        shift: Added last, exact.
    """

    def run(values: Tensor) -> tuple[Tensor, Tensor]:
        product = (values - centre) * factor
        error = product.abs().add_(shift.abs()).mul_(_ROUNDINGS * rounding.roundoff(input.dtype))
        return product + shift, error.add_(rounding.tiny(input.dtype))

    (low, low_error), (high, high_error) = run(input.lower), run(input.upper)
    lower = torch.minimum(low - low_error, high - high_error)
    upper = torch.maximum(low + low_error, high + high_error)
    ball = None if input.ball is None else _scaled_ball(input.ball, factor, run)
    return Interval(lower, upper, ball)


def _scaled_ball(
    ball: Ball, factor: Tensor, run: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Ball:
    """Scale a ball; what was rounded in its centre widens its radius."""
    centre, error = run(ball.centre)
    unit = rounding.roundoff(centre.dtype)
    scale = (ball.scale * factor.abs()).expand_as(centre) * (1 + _ROUNDINGS * unit)
    moved = torch.where(scale == 0, torch.zeros_like(error), error / scale)
    growth = 1 + rounding.gamma(centre[0].numel(), centre.dtype)
    return Ball(centre, scale, (ball.radius + lengths(moved, ball.norm)) * growth, ball.norm)


def _affine(input: Interval, weight: Tensor, bias: Tensor | None, product: _Product) -> Interval:
    """Bound a product over a box, and over a ball where there is one."""
    dtype = input.dtype
    exact = weight.to(dtype)
    offset = exact.new_zeros(len(exact)) if bias is None else bias.to(dtype)
    gamma = rounding.gamma(product.fan_in, dtype)
    floor = product.fan_in * rounding.tiny(dtype)
    centre, reach = (input.lower + input.upper).mul_(0.5), input.upper - input.lower
    reach.mul_(0.5 + 2 * gamma).add_(centre.abs(), alpha=2 * gamma).add_(rounding.tiny(dtype))
    value = product.apply(centre, exact, offset)
    over_ball = None
    if input.ball is not None:
        over_ball = _over_ball(input.ball, exact, offset, product)
    # Weights can be larger than everything else; their magnitudes replace a converted copy.
    magnitudes = exact.abs() if exact is weight else exact.abs_()
    radius = product.apply(reach, magnitudes, offset.abs().mul_(2 * gamma).add_(floor))
    radius = _with_last_rounding(radius, value)
    lower, upper = value - radius, value + radius
    if over_ball is not None:
        value, radius = over_ball
        lower, upper = torch.maximum(lower, value - radius), torch.minimum(upper, value + radius)
    return Interval(lower, upper)


def _with_last_rounding(radius: Tensor, value: Tensor) -> Tensor:
    """Return the radius with room for adding it to the value.

    A value that overflowed makes the radius infinite, and so both ends not finite.
    """
    return radius.add_(value.abs(), alpha=4 * rounding.roundoff(value.dtype))


def _over_ball(
    ball: Ball, weight: Tensor, offset: Tensor, product: _Product
) -> tuple[Tensor, Tensor]:
    """Return centre and radius of a product over a ball: the dual norm of each row of weights."""
    gamma = rounding.gamma(product.fan_in, weight.dtype)
    floor = product.fan_in * rounding.tiny(weight.dtype)
    magnitudes = weight.abs()
    value = product.apply(ball.centre, weight, offset)
    if ball.norm == "l1":
        dual = product.largest(magnitudes, ball.scale)
    else:
        # One sample stands for all: scales do not differ between samples.
        squares = product.apply(ball.scale[:1].square(), weight.square(), None)
        dual = (squares + floor).sqrt_()
    radius = dual * per_sample(ball.radius, value)
    error = product.apply(ball.centre.abs(), magnitudes, offset.abs()) * (2 * gamma) + floor
    return value, _with_last_rounding(radius * (1 + 2 * gamma) + error, value)
