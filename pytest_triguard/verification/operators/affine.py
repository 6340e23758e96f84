"""Rules of affine operators: products with weights, and scaling of single elements.

In centre and radius form a product costs two forwards: `W c + b` and `|W| r`. Its rounding error
is at most gamma times `|W| |c| + |b|`; as `|W|` is applied to `r` anyway, the error goes with it:
`|W| (r + gamma |c|) + gamma |b|`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import ROOM, Ball, Interval, per_sample
from pytest_triguard.verification.operators.phases import Phases
from pytest_triguard.verification.operators.rule import Keep, Unsupported
from pytest_triguard.verification.operators.scaling import statistics
from pytest_triguard.verification.relaxations import Affine, flat_rows
from pytest_triguard.verification.windows import Windowed

_MUCH = 0.25
"""Largest relative error of a sum that is worth a bound."""


@dataclass(frozen=True)
class Product:
    """A linear operator: its arithmetic, whatever the weights.

    Attributes:
        apply: From input, weights and bias to output.
        transpose: From rows `(M, *shape of the output)` and weights to rows on the input.
        fan_in: Number of products in a sum.
        fan_out: Number of products in a sum of the transpose.
        outputs: Number of elements of a bias.
        elements: Counts the elements of a sample's result.
        largest: From magnitudes of the weights and scales of the inputs to the largest product of
            the two in each sum, shaped to go with the output.
        channels: Shape in which a bias goes with the output.
        sliding: The transpose for rows in windows, where there is one.
        phases: From weights to their phases, or to None where they are of no use.
        phased: The transpose from rows and phases, for weights that have some.
        layout: Of the weights in `apply`, where a device is fastest with one.
        norms: From magnitudes of the weights to the sum of those behind each output or channel.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    transpose: Callable[[Tensor, Tensor], Tensor]
    fan_in: int
    fan_out: int
    outputs: int
    elements: Callable[[], int]
    largest: Callable[[Tensor, Tensor], Tensor]
    channels: tuple[int, ...] = (-1,)
    sliding: Callable[[Windowed, Tensor], Windowed] | None = None
    phases: Callable[[Tensor], Phases | None] = lambda weights: None
    phased: Callable[[Tensor, Phases], Tensor] | None = None
    layout: torch.memory_format = torch.preserve_format
    norms: Callable[[Tensor], Tensor] = lambda magnitudes: magnitudes.flatten(1).sum(1)


def linear(
    input: Interval, weight: Tensor, bias: Tensor | None = None, *, keep: Keep | None = None
) -> Interval:
    """Bounds of `functional.linear`."""
    return bounded(input, weight, bias, _linear_product(input, weight), keep)


def linear_relaxation(
    input: Interval, weight: Tensor, bias: Tensor | None = None, *, keep: Keep | None = None
) -> Affine:
    """The product itself."""
    return relaxed(input, weight, bias, _linear_product(input, weight), keep)


def linear_evaluation(
    input: Interval, weight: Tensor, bias: Tensor | None = None, *, unit: float
) -> Tensor:
    """Rounding of the module's own product."""
    return evaluated(input, weight, bias, _linear_product(input, weight), unit)


def _linear_product(input: Interval, weight: Tensor) -> Product:
    if weight.ndim != 2:
        raise Unsupported(f"weights of {weight.ndim} dimensions")

    def largest(magnitudes: Tensor, scale: Tensor) -> Tensor:
        return (magnitudes * scale.amax(tuple(range(scale.ndim - 1)))).amax(1)

    outputs, inputs = weight.shape

    def elements() -> int:
        return input.shape[1:-1].numel() * outputs

    return Product(functional.linear, torch.matmul, inputs, outputs, outputs, elements, largest)


@dataclass(frozen=True)
class Weights:
    """What a product's bounds take of its weights, in the dtype of the bounds.

    Attributes:
        exact: The weights.
        offset: The bias, or None.
        magnitudes: Magnitudes of the weights, and a little more.
        floor: What the radius of each output starts from, `(outputs,)`.
        size: Bytes that they take beside the module.
    """

    exact: Tensor
    offset: Tensor | None
    magnitudes: Tensor
    floor: Tensor
    size: int

    @staticmethod
    def of(
        weight: Tensor,
        bias: Tensor | None,
        product: Product,
        dtype: torch.dtype,
        norm: dict[str, Any] | None,
    ) -> Weights:
        """Convert the weights of a product, and of a batch normalisation that follows it."""
        fan_in, exact = product.fan_in, weight.to(dtype, memory_format=product.layout)
        if product.layout != torch.preserve_format:  # a part of a kernel is a view of it so far
            exact = exact.contiguous(memory_format=product.layout)
        offset = None if bias is None else bias.to(dtype)
        share, tiny = product_share(fan_in, dtype), rounding.tiny(dtype)
        start = exact.new_zeros(product.outputs) if offset is None else offset.abs()
        if norm is not None:
            factor, centre, shift = statistics(dtype, **norm)
            start = factor.abs() * (start + centre.abs()) + shift.abs()
            offset = factor * (-centre if offset is None else offset - centre) + shift
            exact = exact * factor.view(-1, *[1] * (exact.ndim - 1))
        magnitudes = exact.abs().mul_(1 + share)
        if norm is not None:  # factors may underflow
            magnitudes.add_(tiny / rounding.roundoff(dtype))
        floor = start * share + fan_in * tiny * (8 + 8 * magnitudes.amax())
        size = magnitudes.nbytes * (1 if exact is weight else 2)
        return Weights(exact, offset, magnitudes, floor, size)


def product_share(fan_in: int, dtype: torch.dtype) -> float:
    """Return the share s of its terms' magnitudes that a sum's radius gets, and of the radius.

    With g for gamma, `s (1 - g) >= g + (ROOM + 29) u`: what the centre's sum rounds, what the
    radius' sum rounds, what folding a normalisation into the weights rounds, and room for more.
    """
    gamma = rounding.gamma(fan_in, dtype)
    if gamma > _MUCH:
        return math.inf
    return (gamma + (ROOM + 32) * rounding.roundoff(dtype)) * (1 + 2 * gamma)


def bounded(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None,
    product: Product,
    keep: Keep | None = None,
    norm: dict[str, Any] | None = None,
) -> Interval:
    """Bound a product over a box, and over a ball where there is one.

    Args:
        input: The value.
        weight: The weights.
        bias: Added last, or None.
        product: The arithmetic.
        keep: Keeps what is computed from weights and bias alone, or None.
        norm: Arguments of a batch normalisation that follows it, or None.
    """
    dtype = input.dtype

    def convert() -> Weights:
        return Weights.of(weight, bias, product, dtype, norm)

    known = convert() if keep is None else keep(convert)
    centre, reach = input.parts(product_share(product.fan_in, dtype))
    value = product.apply(centre, known.exact, known.offset)
    radius = product.apply(reach, known.magnitudes, known.floor)
    found = Interval.around(value, radius, ROOM)
    if input.ball is None:
        return found
    offset = known.exact.new_zeros(product.outputs) if known.offset is None else known.offset
    middle, spread = _over_ball(input.ball, known.exact, offset, product)
    spread = spread + known.floor.view(product.channels)
    return Interval(
        torch.maximum(found.lower, middle - spread), torch.minimum(found.upper, middle + spread)
    )


@dataclass(frozen=True)
class Rows:
    """What rows on a product's result take of its weights, in the dtype of the bounds.

    Attributes:
        exact: The weights.
        offset: The bias, shaped to go with the result, or None.
        share: Of the argument's largest magnitude that is rounded per unit of a coefficient.
        phases: The weights as a faster transpose takes them, or None.
        size: Bytes that they take beside the module.
    """

    exact: Tensor
    offset: Tensor | None
    share: Tensor
    phases: Phases | None
    size: int

    @staticmethod
    @torch.no_grad()
    def of(weight: Tensor, bias: Tensor | None, product: Product, dtype: torch.dtype) -> Rows:
        """Convert the weights of a product."""
        exact = weight.to(dtype).contiguous()
        offset = None if bias is None else bias.to(dtype).view(product.channels)
        # The norm of each row of weights times the largest magnitude: no product is needed.
        gamma = rounding.gamma(max(product.fan_in, product.fan_out), dtype)
        share = product.norms(exact.abs()).view(product.channels) * (2 * gamma)
        phases = product.phases(exact)
        size = (0 if exact is weight else exact.nbytes) + (0 if phases is None else phases.nbytes)
        return Rows(exact, offset, share, phases, size)


def relaxed(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None,
    product: Product,
    keep: Keep | None = None,
) -> Affine:
    """Return a product as a relaxation: its transpose, and what that rounds."""

    def convert() -> Rows:
        return Rows.of(weight, bias, product, input.dtype)

    known, slide = convert() if keep is None else keep(convert), product.sliding

    def transpose(rows: Tensor) -> Tensor:
        if product.phased is None or known.phases is None or torch.is_grad_enabled():
            return product.transpose(rows, known.exact)
        return product.phased(rows, known.phases)

    error = known.share * per_sample(input.largest.detach(), input)
    if known.offset is not None:  # the more elements the result has, the more is added up
        share = 2 * rounding.gamma(product.elements(), input.dtype)
        error.add_(known.offset.abs(), alpha=share)
    return Affine(
        input,
        lambda rows: flat_rows(rows, transpose),
        known.offset,
        error,
        None if slide is None else lambda rows: slide(rows, known.exact),
        fresh=True,
    )


def evaluated(
    input: Interval, weight: Tensor, bias: Tensor | None, product: Product, unit: float
) -> Tensor:
    """Return how far the module's own product can be off, in any order of summation."""
    magnitudes, sizes = weight.to(input.dtype).abs(), input.magnitude
    size = product.apply(sizes, magnitudes, None if bias is None else bias.to(input.dtype).abs())
    largest = per_sample(sizes.flatten(1).amax(1), size) + magnitudes.amax()
    error = size * (2 * rounding.accumulated(product.fan_in, unit))
    return rounding.unless_overflow(error + rounding.lost(largest, product.fan_in), size)


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
