"""Rules of affine operators: products with weights, and scaling of single elements.

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
from torch.nn.grad import conv2d_input

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Ball, Interval, lengths, per_sample
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.relaxations import Affine, Scale, flat_rows, magnitude

_ROUNDINGS = 16
"""Roundings that `scaled` makes at most, those in its factor included."""


@dataclass(frozen=True)
class Product:
    """A linear operator: its arithmetic, whatever the weights.

    Attributes:
        apply: From input, weights and bias to output.
        transpose: From rows `(M, *shape of the output)` and weights to rows on the input.
        fan_in: Number of products in a sum.
        fan_out: Number of products in a sum of the transpose.
        largest: From magnitudes of the weights and scales of the inputs to the largest product of
            the two in each sum, shaped to go with the output.
        channels: Shape in which a bias goes with the output.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    transpose: Callable[[Tensor, Tensor], Tensor]
    fan_in: int
    fan_out: int
    largest: Callable[[Tensor, Tensor], Tensor]
    channels: tuple[int, ...] = (-1,)


def linear(input: Interval, weight: Tensor, bias: Tensor | None = None) -> Interval:
    """Bounds of `functional.linear`."""
    return bounded(input, weight, bias, _linear_product(weight))


def linear_relaxation(input: Interval, weight: Tensor, bias: Tensor | None = None) -> Affine:
    """The product itself."""
    return relaxed(input, weight, bias, _linear_product(weight))


def linear_evaluation(
    input: Interval, weight: Tensor, bias: Tensor | None = None, *, unit: float
) -> Tensor:
    """Rounding of the module's own product."""
    return evaluated(input, weight, bias, _linear_product(weight), unit)


def _linear_product(weight: Tensor) -> Product:
    if weight.ndim != 2:
        raise Unsupported(f"weights of {weight.ndim} dimensions")

    def largest(magnitudes: Tensor, scale: Tensor) -> Tensor:
        return (magnitudes * scale.amax(tuple(range(scale.ndim - 1)))).amax(1)

    outputs, inputs = weight.shape
    return Product(functional.linear, torch.matmul, inputs, outputs, largest)


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
    product = _conv2d_product(input, weight, stride, padding, dilation, groups)
    return bounded(input, weight, bias, product)


def conv2d_relaxation(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Affine:
    """The convolution itself."""
    product = _conv2d_product(input, weight, stride, padding, dilation, groups)
    return relaxed(input, weight, bias, product)


def conv2d_evaluation(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    unit: float,
) -> Tensor:
    """Rounding of the module's own convolution; not one that rearranges products (Winograd)."""
    product = _conv2d_product(input, weight, stride, padding, dilation, groups)
    return evaluated(input, weight, bias, product, unit)


def _conv2d_product(
    input: Interval, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Product:
    def apply(values: Tensor, weights: Tensor, offset: Tensor | None) -> Tensor:
        return functional.conv2d(values, weights, offset, stride, padding, dilation, groups)

    def transpose(rows: Tensor, weights: Tensor) -> Tensor:
        return _conv2d_transpose(rows, weights, input.shape[2:], stride, padding, dilation, groups)

    def largest(magnitudes: Tensor, scale: Tensor) -> Tensor:
        by_channel = scale.amax((0, 2, 3)).view(groups, 1, -1)
        by_group = magnitudes.amax((2, 3)).view(groups, -1, magnitudes.shape[1])
        return (by_group * by_channel).amax(2).view(-1, 1, 1)

    fan_out = weight.numel() // (weight.shape[1] * groups)
    return Product(apply, transpose, weight[0].numel(), fan_out, largest, (-1, 1, 1))


def _conv2d_transpose(
    rows: Tensor,
    weight: Tensor,
    size: torch.Size,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    """Return the transpose of a convolution, `(M, C, H, W)` for rows `(M, K, h, w)`."""
    steps, gaps = _pair(stride), _pair(dilation)
    reach = [gap * (each - 1) for gap, each in zip(gaps, weight.shape[2:], strict=True)]
    if padding == "same":
        before = [each // 2 for each in reach]
        full = [each + extra for each, extra in zip(size, reach, strict=True)]
    else:
        before = [0, 0] if padding == "valid" else list(_pair(padding))
        full = [each + 2 * pad for each, pad in zip(size, before, strict=True)]
    # What the last windows do not reach is nothing's concern, and comes out as zero.
    missed = [
        whole - ((count - 1) * step + extent + 1)
        for whole, count, step, extent in zip(full, rows.shape[2:], steps, reach, strict=True)
    ]
    if padding != "same" and rows.dtype != torch.float64:
        return functional.conv_transpose2d(
            rows, weight, None, steps, tuple(before), tuple(missed), groups, gaps
        )
    # In float64 the gradient's kernel is several times faster on a processor.
    whole: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        [len(rows), weight.shape[1] * groups, *full], weight, rows, steps, 0, gaps, groups
    )
    return whole[:, :, before[0] : before[0] + size[0], before[1] : before[1] + size[1]]


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
    return scaled(input, *_statistics(input, running_mean, running_var, weight, bias, eps))


def batch_norm_relaxation(
    input: Interval,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Scale:
    """The scaling itself."""
    del training, momentum
    return scaled_relaxation(
        input, *_statistics(input, running_mean, running_var, weight, bias, eps)
    )


def batch_norm_evaluation(
    input: Interval,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    unit: float,
) -> Tensor:
    """Rounding of the module's own batch normalisation, merged into one product or not."""
    del training, momentum
    return scaled_evaluation(
        input, *_statistics(input, running_mean, running_var, weight, bias, eps), unit=unit
    )


def _statistics(
    input: Interval,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return factor, centre and shift of a batch normalisation, shaped to go with its input."""
    shape = (1, -1, *[1] * (len(input.shape) - 2))
    mean, variance = running_mean.to(input.dtype), running_var.to(input.dtype)
    factor = (variance + eps).sqrt().reciprocal()
    if weight is not None:
        factor = factor * weight.to(input.dtype)
    shift = torch.zeros_like(mean) if bias is None else bias.to(input.dtype)
    return factor.view(shape), mean.view(shape), shift.view(shape)


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


def scaled_relaxation(input: Interval, factor: Tensor, centre: Tensor, shift: Tensor) -> Scale:
    """The scaling itself, as a factor and one offset."""
    factor, centre, shift = (_aligned(each, input) for each in (factor, centre, shift))
    offset = shift - factor * centre
    unit = rounding.roundoff(input.dtype)
    size = (factor * centre).abs() + shift.abs()
    terms = magnitude(input)[0].numel()
    error = _ROUNDINGS * unit * factor.abs() * magnitude(input)
    return Scale(input, factor, offset, error + 2 * rounding.gamma(terms, input.dtype) * size)


def _aligned(constant: Tensor, input: Interval) -> Tensor:
    """Return a constant with as many dimensions as a value that it is broadcast with."""
    missing = len(input.shape) - constant.ndim
    if missing < 0:
        raise Unsupported("a constant of more dimensions than the value")
    return constant.reshape(*[1] * missing, *constant.shape)


def scaled_evaluation(
    input: Interval, factor: Tensor, centre: Tensor, shift: Tensor, *, unit: float
) -> Tensor:
    """Rounding of the module's own scaling, whichever way it orders the operations."""
    size = factor.abs() * (magnitude(input) + centre.abs()) + shift.abs()
    return _ROUNDINGS * unit * size


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


def bounded(input: Interval, weight: Tensor, bias: Tensor | None, product: Product) -> Interval:
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


def relaxed(input: Interval, weight: Tensor, bias: Tensor | None, product: Product) -> Affine:
    """Return a product as a relaxation: its transpose, and what that rounds."""
    exact = weight.to(input.dtype)
    offset = None if bias is None else bias.to(input.dtype)
    with torch.no_grad():
        size = product.apply(magnitude(input), exact.abs(), None)
        error = size * (2 * rounding.gamma(max(product.fan_in, product.fan_out), input.dtype))
        if offset is not None:
            offset = offset.view(product.channels)
            error += offset.abs() * (2 * rounding.gamma(size[0].numel(), input.dtype))
    return Affine(
        input,
        lambda rows: flat_rows(rows, lambda flat: product.transpose(flat, exact)),
        offset,
        error,
    )


def evaluated(
    input: Interval, weight: Tensor, bias: Tensor | None, product: Product, unit: float
) -> Tensor:
    """Return how far the module's own product can be off, in any order of summation."""
    size = product.apply(
        magnitude(input),
        weight.to(input.dtype).abs(),
        None if bias is None else bias.to(input.dtype).abs(),
    )
    return size.mul_(2 * rounding.accumulated(product.fan_in, unit))


def _with_last_rounding(radius: Tensor, value: Tensor) -> Tensor:
    """Return the radius with room for adding it to the value.

    A value that overflowed makes the radius infinite, and so both ends not finite.
    """
    return radius.add_(value.abs(), alpha=4 * rounding.roundoff(value.dtype))


def _over_ball(
    ball: Ball, weight: Tensor, offset: Tensor, product: Product
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


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return first, (rest[0] if rest else first)
