"""Rules of max-pooling, with any stride, padding, dilation and overlap.

A maximum rounds nothing, so that its interval is exact where elements vary on their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.engine import max_pool
from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import arithmetic, rectifiers
from pytest_triguard.verification.operators.pooling import reduced
from pytest_triguard.verification.operators.rule import Rule, Unsupported
from pytest_triguard.verification.operators.shape import exact, pair
from pytest_triguard.verification.relaxations import (
    Affine,
    Carried,
    Slid,
    dot,
    first_largest,
    positive,
    transposed,
)
from pytest_triguard.verification.ties import Origin, Tied, ties
from pytest_triguard.verification.windows import Windowed

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


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
        lambda values: max_pool.max_pool2d(
            values, kernel_size, stride, padding, dilation, ceil_mode
        )
    )


def max_pool2d_relaxation(input: Interval, *args: Any, **kwargs: Any) -> Choice:
    """Between two elements of each window.

    From below, the element with the largest lower bound. From above, for the element x in [l, u]
    with the largest upper bound, and c the larger of l and of all other upper bounds, the chord
    from (l, c) to (u, u): `max(x, others) <= max(x, c)`, which is convex in x. It is x itself
    where nothing else can be larger. Of elements alike in all but their last digits it is the
    first, whatever was rounded, and the chord is level where that has not quite the largest bound.
    """
    windows = _Windows.of(input, *args, **kwargs)
    low, high = windows.values(input.lower), windows.values(input.upper)
    lowest, top = (first_largest(each, -1, keepdim=True) for each in (low, high))
    most, least = (each.gather(-1, top).squeeze(-1) for each in (high, low))
    rest = torch.maximum(high.scatter(-1, top, -torch.inf).amax(-1), least)
    slope = torch.where(most > least, ((most - rest) / (most - least)).clamp_min(0), 1.0)
    offset = torch.maximum(rest - slope * least, most - slope * most)
    size = most.abs() + rest.abs() + slope * (least.abs() + most.abs())
    offset = offset + 8 * rounding.roundoff(offset.dtype) * size.detach()
    exact = rest <= least
    return Choice(
        input,
        windows.places(lowest),
        windows.places(top),
        torch.where(exact, 1.0, slope),
        torch.where(exact, 0.0, offset),
        windows.index.shape[-1],
        windows.geometry,
    )


def max_pool2d_open(input: Interval, *args: Any, **kwargs: Any) -> list[tuple[Interval, Tensor]]:
    """Elements that may be the largest of a window in which another may be, too."""
    windows = _Windows.of(input, *args, **kwargs)
    low, high = windows.values(input.lower), windows.values(input.upper)
    may = high >= low.amax(-1, keepdim=True)
    contested = may & (may.sum(-1, keepdim=True) > 1) & (high > low)
    count = input.lower.new_zeros(input.shape).flatten(2)
    places = windows.index.expand_as(high).flatten(2).clamp_min(0)
    count.scatter_add_(2, places, contested.flatten(2).to(count.dtype))
    return [(input, count.view(input.shape) > 0)]


def max_pool2d_tied(
    origin: Origin, value: Interval, input: Interval, *args: Any, **kwargs: Any
) -> Tied | None:
    """How the maxima over windows depend on each other, where every window lies inside."""
    windows = _Windows.of(input, *args, **kwargs)
    steps, pads, reach = windows.geometry
    ends = [
        (count - 1) * step + extent
        for count, step, extent in zip(value.shape[2:], steps, reach, strict=True)
    ]
    if any(pads) or any(end > size for end, size in zip(ends, input.shape[2:], strict=True)):
        return None
    return ties(origin, value, windows.values, steps)


def amax(input: Interval, dim: Any = None, keepdim: bool = False) -> Interval:
    """Bounds of `torch.amax` over dimensions that are not the samples'."""
    dims = reduced(input, dim)
    return input.monotone(lambda values: values.amax(dims, keepdim))


def amax_relaxation(input: Interval, dim: Any = None, keepdim: bool = False) -> Rearranged:
    """As that of one window over all that is reduced."""
    change = _in_a_row(reduced(input, dim))
    moved = input.rearranged(change)
    inner = max_pool2d_relaxation(moved, (1, moved.shape[3]))
    error = inner.error.view(amax(input, dim, keepdim).shape)
    return Rearranged(input, inner, transposed(change, input), error)


def amax_open(
    input: Interval, dim: Any = None, keepdim: bool = False
) -> list[tuple[Interval, Tensor]]:
    """Elements that may be the largest where another may be, too."""
    del keepdim
    change = _in_a_row(reduced(input, dim))
    moved = input.rearranged(change)
    [(_, mask)] = max_pool2d_open(moved, (1, moved.shape[3]))
    back = transposed(change, input)
    return [(input, back(mask.to(input.dtype).unsqueeze(1)).squeeze(1) > 0)]


def _in_a_row(dims: list[int]) -> Callable[[Tensor], Tensor]:
    """Return the change from `(N, ...)` to `(N, kept, 1, reduced)`."""
    last = tuple(range(-len(dims), 0))
    return lambda values: (
        values.movedim(dims, last).flatten(-len(dims)).flatten(1, -2).unsqueeze(2)
        if values.ndim > len(dims) + 1
        else values.flatten(1)[:, None, None]
    )


@dataclass(frozen=True)
class Rearranged:
    """A relaxation of a value whose elements were moved first, one result for each window.

    Attributes:
        input: The value.
        inner: The relaxation after moving.
        transpose: From rows on the moved value to rows on the value.
        error: Per unit of a coefficient on the result.
    """

    input: Interval
    inner: Choice
    transpose: Callable[[Tensor], Tensor]
    error: Tensor

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows back to the chosen elements."""
        [(_, carried)], constant = self.inner.back(rows.flatten(2)[..., None, None])
        return [(self.input, self.transpose(carried))], constant


def max_pool2d_composition(
    apply: Callable[..., Interval], input: Interval, *args: Any, **kwargs: Any
) -> Interval:
    """Rounds of a knockout between the elements of a window: `max(a, b) = a + relu(b - a)`."""
    windows = _Windows.of(input, *args, **kwargs)
    first = windows.index.amax(-1, keepdim=True)  # stands in for the padding
    index = torch.where(windows.index < 0, first, windows.index)[0, 0]
    left = [apply(_PICK, input, index[..., place]) for place in range(index.shape[-1])]
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        over = left[2 * len(pairs) :]
        left = [apply(_ADD, a, apply(_RELU, apply(_SUB, b, a))) for a, b in pairs] + over
    return left[0]


def _pick(input: Interval, index: Tensor) -> Interval:
    """Elements of each image by place, `(h, w)`."""
    return input.monotone(_picking(index))


def _pick_relaxation(input: Interval, index: Tensor) -> Affine:
    """The elements themselves."""
    return Affine(input, transposed(_picking(index), input))


def _picking(index: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda values: values.flatten(2)[:, :, index.flatten()].view(
        *values.shape[:2], *index.shape
    )


# The module compares, and never adds: nothing of the composition is rounded.
_PICK = Rule(interval=_pick, relaxation=_pick_relaxation, evaluation=exact, mixing="none")
_ADD = Rule(
    interval=arithmetic.add,
    relaxation=arithmetic.add_relaxation,
    evaluation=exact,
    many=True,
)
_SUB = Rule(
    interval=arithmetic.sub,
    relaxation=arithmetic.sub_relaxation,
    evaluation=exact,
    many=True,
)
_RELU = Rule(
    interval=rectifiers.relu,
    relaxation=rectifiers.relu_relaxation,
    open=rectifiers.relu_open,
    evaluation=exact,
    mixing="none",
)


@dataclass(frozen=True)
class _Windows:
    """The windows of a pooling.

    Attributes:
        index: `(1, 1, h, w, k)` place of each element in its image; -1 in the padding.
        cut: From images padded with a value to windows, `(N, C, h, w, k)`.
        geometry: Stride, padding in front, and what a window reaches.
    """

    index: Tensor
    cut: Callable[[Tensor, float], Tensor]
    geometry: Geometry

    @staticmethod
    def of(
        input: Interval,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> _Windows:
        """Return the windows of a pooling over an argument.

        Raises:
            Unsupported: If the argument has no dimension for channels.
        """
        del return_indices
        if len(input.shape) != 4:
            raise Unsupported(f"a value of {len(input.shape)} dimensions")
        kernel, gaps, pads = pair(kernel_size), pair(dilation), pair(padding)
        steps = kernel if stride is None or stride == [] else pair(stride)
        shape = functional.max_pool2d(
            input.lower[:1, :1], kernel_size, stride, padding, dilation, ceil_mode
        ).shape[2:]
        reach = [gap * (size - 1) + 1 for gap, size in zip(gaps, kernel, strict=True)]
        after = [
            max(0, (count - 1) * step + extent - whole - pad)
            for count, step, extent, whole, pad in zip(
                shape, steps, reach, input.shape[2:], pads, strict=True
            )
        ]

        def cut(images: Tensor, outside: float) -> Tensor:
            padded = functional.pad(images, (pads[1], after[1], pads[0], after[0]), value=outside)
            for place in (0, 1):
                padded = padded.unfold(2 + place, reach[place], steps[place])
            padded = padded[:, :, : shape[0], : shape[1], :: gaps[0], :: gaps[1]]
            return padded.flatten(4)

        rows, columns = input.shape[2:]
        places = torch.arange(rows * columns, device=input.lower.device, dtype=input.dtype)
        index = cut(places.view(1, 1, rows, columns), -1.0).to(torch.int64)
        return _Windows(index, cut, (steps, pads, (reach[0], reach[1])))

    def values(self, images: Tensor) -> Tensor:
        """Return the elements of each window, `(N, C, h, w, k)`; the padding is never largest."""
        return self.cut(images, -torch.inf)

    def places(self, choice: Tensor) -> Tensor:
        """Return the places in the images of one element per window, `(N, C, h, w)`.

        Padding is chosen only where no bound is above minus infinity: another element stands in.
        """
        inside = torch.where(self.index < 0, self.index.amax(-1, keepdim=True), self.index)
        wide = inside.expand(*choice.shape[:-1], inside.shape[-1])
        return wide.gather(-1, choice).squeeze(-1)


@dataclass(frozen=True)
class Choice:
    """A maximum over windows between two of its elements, as a relaxation.

    Attributes:
        input: The argument, `(N, C, H, W)`.
        below: Place of the element that bounds each window from below, `(N, C, h, w)` int64.
        above: Place of the element in the bound from above.
        slope: Its slope there.
        offset: The offset there.
        overlap: Number of windows that an element may be in, at most.
        geometry: Stride, padding in front, and what a window reaches.
    """

    input: Interval
    below: Tensor
    above: Tensor
    slope: Tensor
    offset: Tensor
    overlap: int
    geometry: Geometry

    @property
    def error(self) -> Tensor:
        """What rounding in `back` costs per unit of a coefficient, `(N, C, h, w)`."""
        terms = self.offset[0].numel()
        unit = rounding.roundoff(self.offset.dtype)
        largest = self.input.magnitude.detach().flatten(2)
        size = torch.maximum(
            largest.gather(2, self.below.flatten(2)), largest.gather(2, self.above.flatten(2))
        ).view_as(self.offset)
        dots = 2 * rounding.gamma(terms, self.offset.dtype) * self.offset.detach().abs()
        return dots + 2 * (4 + self.overlap) * unit * size

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows back to the chosen elements."""
        above = positive(rows, 2)
        below = rows - above
        carried = rows.new_zeros(*rows.shape[:3], self.input.shape[2:].numel())
        for part, places in ((above, self.below), (below * self.slope.unsqueeze(1), self.above)):
            index = places.unsqueeze(1).flatten(3).expand(*rows.shape[:3], -1)
            carried = carried.scatter_add(3, index, part.flatten(3))
        carried = carried.view(*rows.shape[:3], *self.input.shape[2:])
        return [(self.input, carried)], dot(below, self.offset.unsqueeze(1))

    def slide(self, rows: Windowed) -> Slid:
        """Carry rows in windows back to the chosen elements."""
        rows = rows.cleaned()
        grid = rows.grid.back(*self.geometry, self.input.shape[2:])
        above = positive(rows.rows, 3)
        below = rows.rows - above
        slope = rows.grid.cut(self.slope).unsqueeze(2)
        carried = rows.rows.new_zeros(*rows.rows.shape[:4], grid.size[0] * grid.size[1])
        for part, places in ((above, self.below), (below * slope, self.above)):
            index = grid.local(rows.grid.cut(places)).unsqueeze(2).flatten(4)
            index = index.expand(*rows.rows.shape[:4], -1)
            carried = carried.scatter_add(4, index, part.flatten(4))
        found = carried.view(*rows.rows.shape[:4], *grid.size)
        constant = Windowed(below, rows.grid, clean=True).dot(self.offset)
        return [(self.input, Windowed(found, grid, clean=True))], constant


def max_pool2d_arguments(module: nn.MaxPool2d) -> dict[str, Any]:
    """Return the arguments of a max-pooling module."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return {name: getattr(module, name) for name in names}
