"""Rules of affine operators: products with weights, and scaling of single elements.

In centre and radius form a product costs two forwards: `W c + b` and `|W| r`. Its rounding error
is at most gamma times `|W| |c| + |b|`; as `|W|` is applied to `r` anyway, the error goes with it:
`|W| (r + gamma |c|) + gamma |b|`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import ROOM, Ball, Interval, per_sample
from pytest_triguard.verification.operators.phases import Phases
from pytest_triguard.verification.operators.rule import Keep, Unsupported
from pytest_triguard.verification.operators.scaling import statistics
from pytest_triguard.verification.relaxations import Affine, Kernel, flat_rows
from pytest_triguard.verification.windows import Windowed

_MUCH = 0.25
"""Largest relative error of a sum that is worth a bound."""

_PRODUCTS = 2**16
"""Products of a transposed convolution that are held at a time."""


@dataclass(frozen=True)
class Product:
    """A linear operator: its arithmetic, whatever the weights.

    Attributes:
        apply: From input, weights and bias to output.
        transpose: From rows `(M, *shape of the output)`, weights and their phases to rows on the
            input.
        fan_in: Number of products in a sum.
        fan_out: Number of products in a sum of the transpose.
        outputs: Number of elements of a bias.
        elements: Number of elements of a sample's result.
        largest: From magnitudes of the weights and scales of the inputs to the largest product of
            the two in each sum, shaped to go with the output.
        channels: Shape in which a bias goes with the output.
        sliding: The transpose for rows in windows, where there is one.
        phases: From weights to their phases, or to None where they are of no use.
        norms: From magnitudes of the weights to the sum of those behind each output or channel.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    transpose: Callable[[Tensor, Tensor, Phases | None], Tensor]
    fan_in: int
    fan_out: int
    outputs: int
    elements: int
    largest: Callable[[Tensor, Tensor], Tensor]
    channels: tuple[int, ...] = (-1,)
    sliding: Callable[[Windowed, Tensor], Windowed] | None = None
    phases: Callable[[Tensor], Phases | None] = lambda weights: None
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

    def transpose(rows: Tensor, weights: Tensor, phases: Phases | None) -> Tensor:
        del phases
        return rows @ weights

    outputs, inputs = weight.shape
    elements = input.shape[1:-1].numel() * outputs
    return Product(functional.linear, transpose, inputs, outputs, outputs, elements, largest)


def conv2d(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    keep: Keep | None = None,
    norm: dict[str, Any] | None = None,
) -> Interval:
    """Bounds of `functional.conv2d`, or of a batch normalisation of it with those arguments."""
    product = _conv2d_product(input, weight, stride, padding, dilation, groups)
    return bounded(input, weight, bias, product, keep, norm)


def conv2d_relaxation(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    keep: Keep | None = None,
    **kwargs: Any,
) -> Affine:
    """The convolution itself."""
    product = _conv2d_product(input, weight, *args, **kwargs)
    step = relaxed(input, weight, bias, product, keep)
    return replace(step, kernel=_kernel(weight.to(input.dtype), step.offset, *args, **kwargs))


def _kernel(
    weight: Tensor,
    offset: Tensor | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Kernel | None:
    """Return the weights of a convolution of all channels, or None of another."""
    if groups != 1 or _pair(dilation) != (1, 1) or isinstance(padding, str):
        return None
    bias = None if offset is None else offset.flatten()
    return Kernel(weight, bias, _pair(stride), _pair(padding))


def conv2d_evaluation(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    unit: float,
    **kwargs: Any,
) -> Tensor:
    """Rounding of the module's own convolution; not one that rearranges products (Winograd)."""
    product = _conv2d_product(input, weight, *args, **kwargs)
    return evaluated(input, weight, bias, product, unit)


def _conv2d_product(
    input: Interval,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Product:
    def apply(values: Tensor, weights: Tensor, offset: Tensor | None) -> Tensor:
        return functional.conv2d(values, weights, offset, stride, padding, dilation, groups)

    def phases(weights: Tensor) -> Phases | None:
        plain = groups == 1 and _pair(dilation) == (1, 1)
        return Phases.of(weights, _pair(stride)) if plain else None

    def transpose(rows: Tensor, weights: Tensor, arranged: Phases | None) -> Tensor:
        size = input.shape[2:]
        if arranged is not None and not torch.is_grad_enabled():
            return arranged.back(rows, _pair(size), _reach(weights, (1, 1), padding)[1])
        return _conv2d_transpose(rows, weights, size, stride, padding, dilation, groups)

    def sliding(rows: Windowed, weights: Tensor) -> Windowed:
        return _conv2d_sliding(rows, weights, input.shape[2:], stride, padding, dilation, groups)

    def largest(magnitudes: Tensor, scale: Tensor) -> Tensor:
        by_channel = scale.amax((0, 2, 3)).view(groups, 1, -1)
        by_group = magnitudes.amax((2, 3)).view(groups, -1, magnitudes.shape[1])
        return (by_group * by_channel).amax(2).view(-1, 1, 1)

    fan_in, fan_out = weight.shape[1:].numel(), weight.numel() // (weight.shape[1] * groups)
    outputs, shape = len(weight), (-1, 1, 1)
    elements = outputs * _places(input.shape[2:], weight, stride, padding, dilation)
    return Product(
        apply, transpose, fan_in, fan_out, outputs, elements, largest, shape, sliding, phases
    )


def _places(size: torch.Size, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> int:
    """Return the number of windows of a convolution over images of a size."""
    if padding == "same":
        return size.numel()
    reach, before = _reach(weight, _pair(dilation), padding)
    counts = (
        (each + 2 * pad - extent) // step + 1
        for each, pad, extent, step in zip(size, before, reach, _pair(stride), strict=True)
    )
    return math.prod(counts)


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
    reach, before = _reach(weight, gaps, padding)
    if padding == "same":
        full = [each + extra - 1 for each, extra in zip(size, reach, strict=True)]
    else:
        full = [each + 2 * pad for each, pad in zip(size, before, strict=True)]
    # What the last windows do not reach is nothing's concern, and comes out as zero.
    missed = [
        whole - ((count - 1) * step + extent)
        for whole, count, step, extent in zip(full, rows.shape[2:], steps, reach, strict=True)
    ]
    if padding != "same" and rows.dtype != torch.float64:
        return functional.conv_transpose2d(
            rows, weight, None, steps, before, _pair(missed), groups, gaps
        )
    # In float64 the gradient's kernel is several times faster on a processor.
    channels = weight.shape[1] * groups
    down, across = (slice(b, b + count) for b, count in zip(before, size, strict=True))

    def run(part: Tensor) -> Tensor:
        shape = [len(part), channels, *full]
        found: Tensor = conv2d_input(shape, weight, part, steps, 0, gaps, groups)  # type: ignore[no-untyped-call]
        return found[:, :, down, across]

    if torch.is_grad_enabled():
        return run(rows)
    # It is faster without padding, which is then cut off while a few rows are still at hand.
    found = rows.new_empty(len(rows), channels, *size)
    step = max(1, _PRODUCTS // (weight.shape[1:].numel() * rows.shape[2:].numel()))
    for part, place in zip(torch.split(rows, step), torch.split(found, step), strict=True):
        place.copy_(run(part))
    return found


def _conv2d_sliding(
    rows: Windowed,
    weight: Tensor,
    size: torch.Size,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Windowed:
    """Return the transpose of a convolution for rows in windows."""
    steps, gaps = _pair(stride), _pair(dilation)
    reach, before = _reach(weight, gaps, padding)
    grid = rows.grid.back(steps, before, reach, size)
    flat = rows.cleaned().flat()
    if rows.grid.size == (1, 1) and groups == 1 and gaps == (1, 1):
        found = (flat.flatten(1) @ weight.flatten(1)).view(-1, *weight.shape[1:])
        return rows.moved(found, grid)
    shape = [len(flat), weight.shape[1] * groups, *grid.size]
    if flat.dtype == torch.float64:
        found = conv2d_input(shape, weight, flat, steps, 0, gaps, groups)  # type: ignore[no-untyped-call]
    else:
        found = functional.conv_transpose2d(flat, weight, None, steps, 0, 0, groups, gaps)
    return rows.moved(found, grid)


def _reach(
    weight: Tensor, gaps: tuple[int, int], padding: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how far a kernel reaches, and the padding in front."""
    reach = _pair([gap * (size - 1) + 1 for gap, size in zip(gaps, weight.shape[2:], strict=True)])
    if padding == "same":
        return reach, ((reach[0] - 1) // 2, (reach[1] - 1) // 2)
    return reach, (0, 0) if padding == "valid" else _pair(padding)


def conv2d_arguments(module: nn.Conv2d) -> dict[str, Any]:
    """Return the arguments of a convolution module."""
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode={module.padding_mode!r}")
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    return {name: getattr(module, name) for name in names}


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
        fan_in, exact = product.fan_in, weight.to(dtype)
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
        floor: What else is rounded, or None.
        phases: The weights as a faster transpose takes them, or None.
        size: Bytes that they take beside the module.
    """

    exact: Tensor
    offset: Tensor | None
    share: Tensor
    floor: Tensor | None
    phases: Phases | None
    size: int

    @staticmethod
    @torch.no_grad()
    def of(weight: Tensor, bias: Tensor | None, product: Product, dtype: torch.dtype) -> Rows:
        """Convert the weights of a product."""
        exact = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype).view(product.channels)
        # The norm of each row of weights times the largest magnitude: no product is needed.
        gamma = rounding.gamma(max(product.fan_in, product.fan_out), dtype)
        share = product.norms(exact.abs()).view(product.channels) * (2 * gamma)
        floor = None
        if offset is not None:
            floor = offset.abs() * (2 * rounding.gamma(product.elements, dtype))
        phases = product.phases(exact)
        size = (0 if exact is weight else exact.nbytes) + (0 if phases is None else phases.nbytes)
        return Rows(exact, offset, share, floor, phases, size)


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
    error = known.share * per_sample(input.largest.detach(), input.lower)
    return Affine(
        input,
        lambda rows: flat_rows(
            rows, lambda flat: product.transpose(flat, known.exact, known.phases)
        ),
        known.offset,
        error if known.floor is None else error.add_(known.floor),
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


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return first, (rest[0] if rest else first)
