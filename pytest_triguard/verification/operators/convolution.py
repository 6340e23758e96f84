"""Rules of convolutions, and their transposes for rows and for rows in windows."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from pytest_triguard.engine.devices import is_host
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import columns
from pytest_triguard.verification.operators.affine import Product, bounded, evaluated, relaxed
from pytest_triguard.verification.operators.phases import Phases
from pytest_triguard.verification.operators.rule import Keep, Unsupported
from pytest_triguard.verification.operators.shape import pair
from pytest_triguard.verification.operators.taps import meeting
from pytest_triguard.verification.relaxations import Affine, Kernel
from pytest_triguard.verification.windows import Windowed

_PRODUCTS = 2**17
"""Products of a transposed convolution that are held at a time."""


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
    weight, padding, keep = _met(input, weight, stride, padding, dilation, keep)
    product = _product(input, weight, stride, padding, dilation, groups)
    return bounded(input, weight, bias, product, keep, norm)


def conv2d_relaxation(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    keep: Keep | None = None,
) -> Affine:
    """The convolution itself."""
    weight, padding, keep = _met(input, weight, stride, padding, dilation, keep)
    product = _product(input, weight, stride, padding, dilation, groups)
    step = relaxed(input, weight, bias, product, keep)
    kernel = _kernel(weight.to(input.dtype), step.offset, stride, padding, dilation, groups)
    return replace(step, kernel=kernel)


def _met(
    input: Interval, weight: Tensor, stride: Any, padding: Any, dilation: Any, keep: Keep | None
) -> tuple[Tensor, Any, Keep | None]:
    """Return weights that meet the image, the padding for them, and what keeps what they give."""
    weight, padding, span = meeting(input.shape[2:], weight, stride, padding, dilation)
    return weight, padding, None if keep is None else partial(keep, about=span)


def _kernel(
    weight: Tensor,
    offset: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Kernel | None:
    """Return the weights of a convolution of all channels, or None of another."""
    if groups != 1 or pair(dilation) != (1, 1) or isinstance(padding, str):
        return None
    bias = None if offset is None else offset.flatten()
    return Kernel(weight, bias, pair(stride), pair(padding))


def conv2d_evaluation(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    unit: float,
    **kwargs: Any,
) -> Tensor:
    """Rounding of the module's own convolution; not one that rearranges products (Winograd)."""
    product = _product(input, weight, *args, **kwargs)
    return evaluated(input, weight, bias, product, unit)


def _product(
    input: Interval,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Product:
    size = input.shape[2:]
    # Of kernels of one place a gap says nothing, and it brings down torch's float32 kernel for
    # channels last (2.14: one column, stride, padding and gap 2, 1 and 2).
    dilation = tuple(
        1 if extent == 1 else gap
        for extent, gap in zip(weight.shape[2:], pair(dilation), strict=True)
    )
    pointwise = (
        weight.shape[2:] == (1, 1)
        and groups == 1
        and pair(stride) == (1, 1)
        and (isinstance(padding, str) or pair(padding) == (0, 0))
    )

    plain = groups == 1 and pair(dilation) == (1, 1)

    def apply(values: Tensor, weights: Tensor, offset: Tensor | None) -> Tensor:
        if pointwise and values.is_contiguous(memory_format=torch.channels_last):
            by_place = values.permute(0, 2, 3, 1)
            return functional.linear(by_place, weights[:, :, 0, 0], offset).permute(0, 3, 1, 2)
        if plain and columns.pay(values, weights, pair(stride), padding):
            return columns.conv2d(values, weights, offset, pair(stride), pair(padding))
        return functional.conv2d(values, weights, offset, stride, padding, dilation, groups)

    def phases(weights: Tensor) -> Phases | None:
        return Phases.of(weights, pair(stride)) if plain else None

    def phased(rows: Tensor, arranged: Phases) -> Tensor:
        return arranged.back(rows, pair(size), _reach(weight, (1, 1), padding)[1])

    def transpose(rows: Tensor, weights: Tensor) -> Tensor:
        return _transpose(rows, weights, size, stride, padding, dilation, groups)

    def sliding(rows: Windowed, weights: Tensor) -> Windowed:
        return _sliding(rows, weights, size, stride, padding, dilation, groups)

    def largest(magnitudes: Tensor, scale: Tensor) -> Tensor:
        by_channel = scale.amax((0, 2, 3)).view(groups, 1, -1)
        by_group = magnitudes.amax((2, 3)).view(groups, -1, magnitudes.shape[1])
        return (by_group * by_channel).amax(2).view(-1, 1, 1)

    def elements() -> int:
        return len(weight) * _places(size, weight, stride, padding, dilation)

    fan_in, fan_out = weight.shape[1:].numel(), weight.numel() // (weight.shape[1] * groups)
    outputs, shape = len(weight), (-1, 1, 1)
    return Product(
        apply,
        transpose,
        fan_in,
        fan_out,
        outputs,
        elements,
        largest,
        shape,
        sliding=sliding,
        phases=phases,
        phased=phased,
        layout=_layout(input, weight),
    )


def _layout(input: Interval, weight: Tensor) -> torch.memory_format:
    """Return the layout of weights that a device convolves fastest with; results follow it."""
    if input.dtype == torch.float32 and is_host(input.device):
        return torch.channels_last
    part = weight.nbytes < weight.untyped_storage().nbytes()  # as some places of a kernel are
    return torch.contiguous_format if part else torch.preserve_format


def _places(size: torch.Size, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> int:
    """Return the number of windows of a convolution over images of a size."""
    if padding == "same":
        return size.numel()
    reach, before = _reach(weight, pair(dilation), padding)
    counts = (
        (each + 2 * pad - extent) // step + 1
        for each, pad, extent, step in zip(size, before, reach, pair(stride), strict=True)
    )
    return math.prod(counts)


def _transpose(
    rows: Tensor,
    weight: Tensor,
    size: torch.Size,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    """Return the transpose of a convolution, `(M, C, H, W)` for rows `(M, K, h, w)`."""
    steps, gaps = pair(stride), pair(dilation)
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
            rows, weight, None, steps, before, pair(missed), groups, gaps
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


def _sliding(
    rows: Windowed,
    weight: Tensor,
    size: torch.Size,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Windowed:
    """Return the transpose of a convolution for rows in windows."""
    steps, gaps = pair(stride), pair(dilation)
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
    reach = pair([gap * (size - 1) + 1 for gap, size in zip(gaps, weight.shape[2:], strict=True)])
    if padding == "same":
        return reach, ((reach[0] - 1) // 2, (reach[1] - 1) // 2)
    return reach, (0, 0) if padding == "valid" else pair(padding)


def conv2d_arguments(module: nn.Conv2d) -> dict[str, Any]:
    """Return the arguments of a convolution module."""
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode={module.padding_mode!r}")
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    return {name: getattr(module, name) for name in names}
