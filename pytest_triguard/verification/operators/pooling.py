"""Interval rules of pooling: the largest of the bounds, the average of the bounds.

A maximum rounds nothing, so its bounds are exact for any stride, padding, dilation and overlap.
An average of n numbers is off by at most gamma(n) times the average of their magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported


def max_pool2d(
    input: Interval,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Interval:
    """Bounds of `functional.max_pool2d`."""
    if return_indices:
        raise Unsupported("return_indices=True")
    return input.monotone(
        lambda values: functional.max_pool2d(
            values, kernel_size, stride, padding, dilation, ceil_mode
        )
    )


def avg_pool2d(
    input: Interval,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Interval:
    """Bounds of `functional.avg_pool2d`."""
    high, wide = _pair(kernel_size)
    if divisor_override is not None and divisor_override < 0:
        raise Unsupported(f"divisor_override={divisor_override}")

    def average(values: Tensor) -> Tensor:
        return functional.avg_pool2d(
            values, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )

    return _averaged(input, average, high * wide)


def adaptive_avg_pool2d(input: Interval, output_size: Any) -> Interval:
    """Bounds of `functional.adaptive_avg_pool2d`."""
    rows, columns = input.shape[2:]
    return _averaged(
        input, lambda values: functional.adaptive_avg_pool2d(values, output_size), rows * columns
    )


def mean(input: Interval, dim: Any = None, keepdim: bool = False) -> Interval:
    """Bounds of `torch.mean` over dimensions that are not the samples'."""
    dims = _reduced(input, dim)
    terms = torch.Size(input.shape[each] for each in dims).numel()
    return _averaged(input, lambda values: values.mean(dims, keepdim), terms)


def amax(input: Interval, dim: Any = None, keepdim: bool = False) -> Interval:
    """Bounds of `torch.amax` over dimensions that are not the samples'."""
    dims = _reduced(input, dim)
    return input.monotone(lambda values: values.amax(dims, keepdim))


def _reduced(input: Interval, dim: Any) -> list[int]:
    ndim = len(input.shape)
    dims = [dim] if isinstance(dim, int) else list(dim or range(ndim))
    dims = [each % ndim for each in dims]
    if 0 in dims:
        raise Unsupported("a reduction over the samples")
    return dims


def _averaged(input: Interval, average: Callable[[Tensor], Tensor], terms: int) -> Interval:
    magnitude = torch.maximum(input.lower.abs(), input.upper.abs())
    error = average(magnitude).mul_(2 * rounding.gamma(terms, input.dtype))
    error.add_(terms * rounding.tiny(input.dtype))
    return Interval(average(input.lower) - error, average(input.upper) + error)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    first, *rest = size
    return first, (rest[0] if rest else first)


def max_pool2d_arguments(module: nn.MaxPool2d) -> dict[str, Any]:
    """Return the arguments of a max-pooling module."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return {name: getattr(module, name) for name in names}
