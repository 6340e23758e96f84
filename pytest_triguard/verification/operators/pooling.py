"""Rules of pooling: the largest of the bounds, the average of the bounds.

A maximum rounds nothing, so its bounds are exact for any stride, padding, dilation and overlap.
An average of n numbers is off by at most gamma(n) times the average of their magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import ROOM, Interval
from pytest_triguard.verification.operators.affine import product_share
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.operators.shape import pair
from pytest_triguard.verification.relaxations import Affine, transposed


@dataclass(frozen=True)
class Average:
    """An average.

    Attributes:
        apply: Its arithmetic.
        terms: The largest number of terms.
    """

    apply: Callable[[Tensor], Tensor]
    terms: int


def _avg_pool2d(
    input: Interval,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Average:
    del input
    high, wide = pair(kernel_size)
    if divisor_override is not None and divisor_override < 0:
        raise Unsupported(f"divisor_override={divisor_override}")

    def average(values: Tensor) -> Tensor:
        return functional.avg_pool2d(
            values, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )

    return Average(average, high * wide)


def _adaptive_avg_pool2d(input: Interval, output_size: Any) -> Average:
    rows, columns = input.shape[-2:]
    return Average(
        lambda values: functional.adaptive_avg_pool2d(values, output_size), rows * columns
    )


def _mean(input: Interval, dim: Any = None, keepdim: bool = False) -> Average:
    """Over dimensions that are not the samples'."""
    dims = reduced(input, dim)
    terms = torch.Size(input.shape[each] for each in dims).numel()
    return Average(lambda values: values.mean(dims, keepdim), terms)


def _sum(input: Interval, dim: Any = None, keepdim: bool = False) -> Average:
    """Over dimensions that are not the samples'."""
    dims = reduced(input, dim)
    terms = torch.Size(input.shape[each] for each in dims).numel()
    return Average(lambda values: values.sum(dims, keepdim), terms)


def averaging(average: Callable[..., Average]) -> dict[str, Any]:
    """Return the rules of an average, all with its arguments."""

    @wraps(average)
    def interval(input: Interval, *args: Any, **kwargs: Any) -> Interval:
        return _averaged(input, average(input, *args, **kwargs))

    @wraps(average)
    def relaxation(input: Interval, *args: Any, **kwargs: Any) -> Affine:
        found = average(input, *args, **kwargs)
        size = found.apply(input.magnitude).abs()
        inputs = input.lower[0].numel()  # an element may be in as many windows, at most
        error = size * (2 * rounding.gamma(found.terms + inputs, input.dtype))
        return Affine(input, transposed(found.apply, input), None, error)

    @wraps(average)
    def evaluation(input: Interval, *args: Any, unit: float, **kwargs: Any) -> Tensor:
        found = average(input, *args, **kwargs)
        size = found.apply(input.magnitude).abs()
        error = size * (2 * rounding.accumulated(found.terms, unit))
        error = error + rounding.lost(torch.ones_like(size), found.terms)
        return rounding.unless_overflow(error, size * found.terms)

    return {"interval": interval, "relaxation": relaxation, "evaluation": evaluation}


AVG_POOL = averaging(_avg_pool2d)
ADAPTIVE_AVG_POOL = averaging(_adaptive_avg_pool2d)
MEAN = averaging(_mean)
SUM = averaging(_sum)
avg_pool2d, adaptive_avg_pool2d, mean = (
    rules["interval"] for rules in (AVG_POOL, ADAPTIVE_AVG_POOL, MEAN)
)


def reduced(input: Interval, dim: Any) -> list[int]:
    """Return the dimensions, from 0, that a reduction is over; never that of the samples."""
    ndim = len(input.shape)
    dims = [dim] if isinstance(dim, int) else list(dim or range(ndim))
    dims = [each % ndim for each in dims]
    if 0 in dims:
        raise Unsupported("a reduction over the samples")
    return dims


def _averaged(input: Interval, average: Average) -> Interval:
    share = product_share(average.terms, input.dtype)
    centre, reach = input.parts(share)
    radius = average.apply(reach).abs_().mul_(1 + share)
    radius.add_(8 * average.terms * rounding.tiny(input.dtype))
    return Interval.around(average.apply(centre), radius, ROOM)
