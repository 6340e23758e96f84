"""Interval rules of the derivatives of kinked operators, which choose among slopes.

Where a kink lies within the bounds, the slope is anything between its two sides, whatever a
framework picks. In a maximum, an argument that is always the largest has the slope 1, one that
never is has 0, and any other something between them, so that shares among tied arguments count too.

Each rule takes the cotangent of the result and the operator's arguments, and returns the cotangent
of the argument that depends on the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import Unsupported
from pytest_triguard.verification.operators.shape import pair

_Pair = tuple[int, int]


def _gated(cotangent: Interval, passes: Tensor, blocks: Tensor) -> Interval:
    """Return a cotangent times a slope that is 1, or 0, or anything between them."""
    lower = torch.where(passes, cotangent.lower, cotangent.lower.clamp_max(0))
    upper = torch.where(passes, cotangent.upper, cotangent.upper.clamp_min(0))
    return Interval(torch.where(blocks, 0.0, lower), torch.where(blocks, 0.0, upper))


def relu(cotangent: Interval, input: Interval, inplace: bool = False) -> list[Interval]:
    """Carry a cotangent back through `functional.relu`."""
    del inplace
    return [_gated(cotangent, input.lower > 0, input.upper < 0)]


def leaky_relu(
    cotangent: Interval, input: Interval, negative_slope: float = 0.01, inplace: bool = False
) -> list[Interval]:
    """Carry a cotangent back through `functional.leaky_relu`, of any slope."""
    del inplace
    # As tensors: torch chooses between numbers in its default dtype.
    above, below = (input.lower.new_tensor(each) for each in (1.0, negative_slope))
    active, dead = input.lower > 0, input.upper < 0
    slopes = [
        torch.where(active, above, torch.where(dead, below, end))
        for end in (torch.minimum(above, below), torch.maximum(above, below))
    ]
    return [_sloped(cotangent, *slopes)]


def _sloped(cotangent: Interval, least: Tensor, most: Tensor) -> Interval:
    """Return a cotangent times a slope between two ends."""
    products = torch.stack(
        [end * slope for end in (cotangent.lower, cotangent.upper) for slope in (least, most)]
    )
    return Interval(rounding.down(products.amin(0), 1), rounding.up(products.amax(0), 1))


def clamp(
    cotangent: Interval, input: Interval, min: float | None = None, max: float | None = None
) -> list[Interval]:
    """Carry a cotangent back through `torch.clamp` between numbers."""
    low = -torch.inf if min is None else min
    high = torch.inf if max is None else max
    passes = (input.lower > low) & (input.upper < high)
    blocks = (input.upper < low) | (input.lower > high)
    return [_gated(cotangent, passes, blocks)]


def clamp_min(cotangent: Interval, input: Interval, min: float) -> list[Interval]:
    """Carry a cotangent back through `torch.clamp_min`."""
    return clamp(cotangent, input, min)


def clamp_max(cotangent: Interval, input: Interval, max: float) -> list[Interval]:
    """Carry a cotangent back through `torch.clamp_max`."""
    return clamp(cotangent, input, None, max)


def hardsigmoid(cotangent: Interval, input: Interval, inplace: bool = False) -> list[Interval]:
    """Carry a cotangent back through `functional.hardsigmoid`."""
    del inplace
    (kept,) = clamp(cotangent, input, -3.0, 3.0)
    return [Interval(rounding.down(kept.lower / 6, 1), rounding.up(kept.upper / 6, 1))]


def absolute(cotangent: Interval, input: Interval) -> list[Interval]:
    """Carry a cotangent back through `torch.abs`."""
    return leaky_relu(cotangent, input, -1.0)


def hardtanh(
    cotangent: Interval,
    input: Interval,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> list[Interval]:
    """Carry a cotangent back through `functional.hardtanh`."""
    del inplace
    return clamp(cotangent, input, min_val, max_val)


def relu6(cotangent: Interval, input: Interval, inplace: bool = False) -> list[Interval]:
    """Carry a cotangent back through `functional.relu6`."""
    del inplace
    return clamp(cotangent, input, 0.0, 6.0)


def _largest(lower: Tensor, upper: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return which elements are always, and which never, the largest along a dimension."""
    if lower.shape[dim] == 1:
        return torch.ones_like(lower, dtype=torch.bool), torch.zeros_like(lower, dtype=torch.bool)
    # Only the element with the best upper bound can be above the second best.
    second = upper.topk(2, dim).values.narrow(dim, 1, 1)
    return lower > second, upper < lower.amax(dim, keepdim=True)


def amax(
    cotangent: Interval, input: Interval, dim: Any = None, keepdim: bool = False
) -> list[Interval]:
    """Carry a cotangent back through `torch.amax` over dimensions that are not the samples'."""
    ndim = len(input.shape)
    dims = [dim] if isinstance(dim, int) else list(dim or range(ndim))
    dims = sorted(each % ndim for each in dims)
    kept = [each for each in range(ndim) if each not in dims]
    order = kept + dims
    whole = [input.shape[each] for each in order]

    def flat(values: Tensor) -> Tensor:
        return values.permute(order).reshape(*whole[: len(kept)], -1)

    always, never = _largest(flat(input.lower), flat(input.upper), -1)
    spread = cotangent.rearranged(
        lambda values: values.reshape(*whole[: len(kept)], 1).expand_as(always)
    )
    found = _gated(spread, always, never)
    back = [order.index(each) for each in range(ndim)]
    return [found.rearranged(lambda values: values.reshape(whole).permute(back))]


def max_pool2d(
    cotangent: Interval,
    input: Interval,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> list[Interval]:
    """Carry a cotangent back through `functional.max_pool2d`.

    Raises:
        Unsupported: If the argument has no dimension for channels.
    """
    del ceil_mode, return_indices
    if len(input.shape) != 4:
        raise Unsupported(f"a value of {len(input.shape)} dimensions")
    kernel, gaps, pads = pair(kernel_size), pair(dilation), pair(padding)
    steps = pair(stride) if stride else kernel
    frame = _Frame(input.shape, cotangent.shape, kernel, steps, pads, gaps)
    always, never = _largest(frame.windows(input.lower), frame.windows(input.upper), 2)
    spread = cotangent.rearranged(lambda each: each.flatten(2).unsqueeze(2).expand_as(always))
    found = _gated(spread, always, never)
    size = frame.folded(found.magnitude)
    error = size * (2 * rounding.gamma(kernel[0] * kernel[1], size.dtype))
    return [Interval(frame.folded(found.lower) - error, frame.folded(found.upper) + error)]


@dataclass(frozen=True)
class _Frame:
    """The windows of a pooling, over an input that is padded with what is never the largest."""

    shape: torch.Size
    result: torch.Size
    kernel: _Pair
    steps: _Pair
    pads: _Pair
    gaps: _Pair

    def windows(self, values: Tensor) -> Tensor:
        """Return the elements of every window, `(N, C, elements, windows)`."""
        (rows, columns), (top, left), (_, _, high, wide) = self.size, self.pads, self.shape
        room = (left, columns - wide - left, top, rows - high - top)
        padded = functional.pad(values, room, value=-torch.inf)
        found = functional.unfold(padded, self.kernel, self.gaps, 0, self.steps)
        return found.view(*self.shape[:2], self.kernel[0] * self.kernel[1], -1)

    def folded(self, values: Tensor) -> Tensor:
        """Return the sum over windows for each element of the input, `(N, C, H, W)`."""
        flat = values.flatten(1, 2)
        whole = functional.fold(flat, self.size, self.kernel, self.gaps, 0, self.steps)
        top, left = self.pads
        return whole[:, :, top : top + self.shape[2], left : left + self.shape[3]]

    @property
    def size(self) -> _Pair:
        """Size with padding; the last windows may reach beyond it, or leave something out."""
        rows, columns = (
            max(
                self.shape[2 + axis] + 2 * self.pads[axis],
                (self.result[2 + axis] - 1) * self.steps[axis]
                + self.gaps[axis] * (self.kernel[axis] - 1)
                + 1,
            )
            for axis in (0, 1)
        )
        return rows, columns
