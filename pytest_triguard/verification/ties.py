"""Values that are nearly multiples of others: channels that see the same thing in the same place.

Trained kernels repeat each other, scaled and moved: what one channel's window sees here, another's
sees in the window beside it. Relaxed one by one, each of their maxima loses something, and where
rows add some and subtract others, the losses add up though the values cancel. A tie writes one as a
multiple of the other and a small rest; rows meet on the other, cancel there, and one is relaxed.

For `a = max_j a_j` and `b = max_j b_j` and a factor `f > 0`, the rest `a - f b` is at most the
largest `a_j - f b_j` over the elements that may be the maximum of a, and at least the smallest over
those that may be that of b. Where both are rectified, zero is one more element of each. The
differences are convolutions of the same images with the difference of two kernels, one of them
moved, so that intervals know their ranges where the images vary independently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.relaxations import Carried, Kernel, Slid, dot, positive
from pytest_triguard.verification.windows import Windowed

_ALIKE = 0.5
"""Largest difference of two kernels that are compared, relative to the first, in sums of
magnitudes."""
_MOST = 8
"""Channels that one channel is compared with, at most."""
_SMALL = 0.5
"""Largest width of a rest, relative to the width of the value, that makes a tie."""

Cut = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Origin:
    """A convolution behind a maximum.

    Attributes:
        kernel: Its weights.
        images: Its argument.
        values: Bounds of its result, `(N, C, H, W)`.
        rectified: Whether a ReLU is between it and the maximum.
        undecided: `(N, C, h, w)` bool, where the maximum is taken apart: whether which element it
            is is still relaxed; None where it is not taken apart.
        held: Elements that may be held at a time.
    """

    kernel: Kernel
    images: Interval
    values: Interval
    rectified: bool
    held: int
    undecided: Tensor | None = None


@dataclass(frozen=True)
class Tied:
    """A value some elements of which are multiples of others, and a rest.

    Attributes:
        piecewise: Whether nothing is lost once it is known which element each maximum is: nothing
            is tied then.
        input: The value itself, `(N, C, H, W)`.
        place: `(N, C, H, W)` int64, the place in `(C, H, W)` of the element that stands for each;
            its own where it stands for itself.
        factor: `(N, C, H, W)`, 1 where an element stands for itself.
        lower: `(N, C, H, W)` what is beside the multiple at least, 0 where nothing is.
        upper: What is at most.
        reach: How far places are up, down, left and right of an element, at most.
    """

    piecewise: ClassVar[bool] = True

    input: Interval
    place: Tensor
    factor: Tensor
    lower: Tensor
    upper: Tensor
    reach: tuple[int, int, int, int]

    @property
    def error(self) -> Tensor:
        """What rounding in `back` costs per unit of a coefficient, `(N, C, H, W)`."""
        terms = self.factor[0].numel()
        gamma = rounding.gamma(terms, self.factor.dtype)
        size = self.input.magnitude.detach().flatten(1).gather(1, self.place.flatten(1))
        rest = torch.maximum(self.lower.abs(), self.upper.abs())
        return 2 * gamma * (self.factor * size.view_as(self.factor) + rest)

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows to the elements that stand for others."""
        flat = (rows * self.factor.unsqueeze(1)).flatten(2)
        index = self.place.flatten(1).unsqueeze(1).expand_as(flat)
        carried = torch.zeros_like(flat).scatter_add(2, index, flat).view_as(rows)
        above = positive(rows, 2)
        constant = dot(above, self.lower.unsqueeze(1)) + dot(rows - above, self.upper.unsqueeze(1))
        return [(self.input, carried)], constant

    def slide(self, rows: Windowed) -> Slid:
        """Carry rows in windows to the elements that stand for others, in larger windows."""
        rows = rows.cleaned()
        up, down, left, right = self.reach
        old, size = rows.grid, rows.rows.shape
        grid = replace(
            old,
            origin=(old.origin[0] - up, old.origin[1] - left),
            size=(old.size[0] + up + down, old.size[1] + left + right),
        )
        index = grid.local(old.cut(self.place)).unsqueeze(2).expand(size).flatten(3)
        flat = (rows.rows * old.cut(self.factor).unsqueeze(2)).flatten(3)
        carried = flat.new_zeros(*size[:3], size[3] * grid.size[0] * grid.size[1])
        carried = carried.scatter_add(3, index, flat).view(*size[:4], *grid.size)
        above = replace(rows, rows=positive(rows.rows, 3))
        below = replace(rows, rows=rows.rows - above.rows)
        constant = above.dot(self.lower) + below.dot(self.upper)
        return [(self.input, Windowed(carried, grid, clean=True))], constant


@dataclass(frozen=True)
class _Pairs:
    """Channels that are compared with others.

    Attributes:
        these: `(P,)` channels that may be multiples.
        others: `(P,)` channels they may be multiples of.
        moved: `(P, 2)` rows and columns from a place of the one to a place of the other.
        factor: `(P,)`.
        kernel: `(P, C, h, w)` the difference of the kernels, padded.
        offset: `(P,)` the difference of the biases.
        size: `(P,)` what the magnitudes of both kernels add up to.
        padding: Rows and columns by which kernels are padded on each side.
    """

    these: Tensor
    others: Tensor
    moved: Tensor
    factor: Tensor
    kernel: Tensor
    offset: Tensor
    size: Tensor
    padding: tuple[int, int]

    def part(self, which: slice) -> _Pairs:
        """Return some of the pairs."""
        names = ("these", "others", "moved", "factor", "kernel", "offset", "size")
        return replace(self, **{name: getattr(self, name)[which] for name in names})


def ties(origin: Origin, value: Interval, cut: Cut, step: tuple[int, int]) -> Tied | None:
    """Return how elements of the maxima over windows depend on each other, or None for not.

    Args:
        origin: What the maxima are taken of.
        value: Bounds of the maxima, `(N, C, h, w)`.
        cut: From images to windows, `(N, C, h, w, k)`, all of them inside the image.
        step: Rows and columns from a window to the next.
    """
    pairs = _pairs(origin.kernel, step, origin.held)
    if pairs is None:
        return None
    place, inside = _places(pairs, value.shape)
    lower, upper = _rests(origin, pairs, cut, place)
    contested, limit = _contested(origin, cut), _SMALL * (value.upper - value.lower)
    alone = torch.ones_like(contested)
    found = _alone(value)
    for channel, part in _by_channel(pairs):
        # Where nothing is known of an element, no end of a rest is one.
        known = lower[:, part] <= upper[:, part]
        free = alone.flatten(1)[:, place[part]] & inside[part] & known
        width = torch.where(free, upper[:, part] - lower[:, part], torch.inf)
        least, which = width.min(1, keepdim=True)
        taken = contested[:, channel] & (least.squeeze(1) <= limit[:, channel])
        alone[:, channel] &= ~taken
        factor = pairs.factor[part].view(1, -1, 1, 1)
        parts = place[part], factor, lower[:, part], upper[:, part]
        for kept, each in zip(found, parts, strict=True):
            best = each.expand(width.shape).gather(1, which).squeeze(1)
            kept[:, channel] = torch.where(taken, best, kept[:, channel])
    return None if bool(alone.all()) else Tied(value, *found, reach=_reach(pairs))


def _alone(value: Interval) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return place, factor and both ends of the rest where every element stands for itself."""
    like = value.lower
    place = torch.arange(like[0].numel(), device=like.device).view(1, *like.shape[1:])
    zero = torch.zeros_like(like)
    return place.expand(like.shape).clone(), torch.ones_like(like), zero, zero.clone()


def _by_channel(pairs: _Pairs) -> Iterator[tuple[int, slice]]:
    """Hand out the channels that may be multiples, each with its pairs, which are together."""
    channels = pairs.these.tolist()
    for channel in dict.fromkeys(channels):
        first = channels.index(channel)
        yield channel, slice(first, first + channels.count(channel))


def _reach(pairs: _Pairs) -> tuple[int, int, int, int]:
    """Return how far places are up, down, left and right, at most."""
    down, across = pairs.moved.T.tolist()
    return max(0, -min(down)), max(0, *down), max(0, -min(across)), max(0, *across)


def _pairs(kernel: Kernel, step: tuple[int, int], held: int) -> _Pairs | None:
    """Return which channels are to be compared, the ones that come first in order standing.

    Channels are in the order of where their kernels look, so that places move one way.
    """
    weight = kernel.weight
    moves = [a * b for a, b in zip(step, kernel.stride, strict=True)]
    most = [(size - 1) // move for size, move in zip(weight.shape[2:], moves, strict=True)]
    padding = (most[0] * moves[0], most[1] * moves[1])
    rows, columns = padding
    base = functional.pad(weight, (columns, columns, rows, rows))
    shifts = [
        (down, across)
        for down in range(-most[0], most[0] + 1)
        for across in range(-most[1], most[1] + 1)
    ]
    away = torch.stack([base.roll((a * moves[0], b * moves[1]), (2, 3)) for a, b in shifts])
    factor, rest = _compared(base.flatten(1), away.flatten(2), held)
    rank = _order(weight)
    good = (factor > 0) & (rest <= _ALIKE) & (rank[:, None] > rank)
    shift, this, other = good.nonzero(as_tuple=True)
    found = torch.stack([rank[this].to(rest), rest[good], shift, this, other]).T.tolist()
    kept = [tuple(map(int, each[2:])) for each in _first(sorted(found))]
    if not kept:
        return None
    shift, this, other = torch.tensor(kept, device=base.device).T
    scale = factor[shift, this, other]
    scaled = away[shift, other] * scale.view(-1, 1, 1, 1)
    size = base[this].abs().flatten(1).sum(1) + scaled.abs().flatten(1).sum(1)
    offset = torch.zeros_like(scale)
    if kernel.bias is not None:
        offset = kernel.bias[this] - scale * kernel.bias[other]
        size = size + kernel.bias[this].abs() + scale * kernel.bias[other].abs()
    moved = torch.tensor(shifts, device=base.device)[shift]
    return _Pairs(this, other, moved, scale, base[this] - scaled, offset, size, padding)


def _first(found: list[list[float]]) -> list[list[float]]:
    """Return the first few of what has the same first entry, in a sorted list."""
    return [
        each
        for place, each in enumerate(found)
        if place < _MOST or found[place - _MOST][0] != each[0]
    ]


def _order(weight: Tensor) -> Tensor:
    """Return the rank of each channel: those that look furthest down and right come first."""
    size = weight.abs().sum(1)
    rows, columns = (
        torch.arange(extent, device=weight.device, dtype=weight.dtype) for extent in size.shape[1:]
    )
    total = size.sum((1, 2)).clamp_min(rounding.tiny(weight.dtype))
    down = (size.sum(2) * rows).sum(1) / total
    across = (size.sum(1) * columns).sum(1) / total
    return (-(down + across)).argsort(stable=True).argsort()


def _compared(these: Tensor, others: Tensor, held: int) -> tuple[Tensor, Tensor]:
    """Return the best factor between kernels, and what is left, `(shifts, these, others)` each.

    What is left is relative to the first of both. Of their differences, no more than so many
    elements are held at a time, or those of one kernel to all others.
    """
    floor = rounding.tiny(these.dtype) ** 0.5
    length = others.square().sum(2).clamp_min(floor).unsqueeze(1)
    factor = these @ others.transpose(1, 2) / length
    left = torch.empty_like(factor)
    shifts = max(1, held // (len(these) * others[0].numel()))
    rows = max(1, held // (shifts * others[0].numel()))
    for first in range(0, len(others), shifts):
        away = others[first : first + shifts].unsqueeze(1)
        for start in range(0, len(these), rows):
            block = slice(first, first + shifts), slice(start, start + rows)
            multiple = factor[block].unsqueeze(3) * away
            left[block] = multiple.sub_(these[block[1]].unsqueeze(1)).abs_().sum(3)
    return factor, left / these.abs().sum(1, keepdim=True).clamp_min(floor)


def _places(pairs: _Pairs, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the place of each element's other, `(P, h, w)`, and whether there is one."""
    _, _, high, wide = shape
    rows = torch.arange(high, device=pairs.moved.device).view(1, -1, 1)
    columns = torch.arange(wide, device=pairs.moved.device).view(1, 1, -1)
    down = rows + pairs.moved[:, :1, None]
    across = columns + pairs.moved[:, 1:, None]
    inside = (down >= 0) & (down < high) & (across >= 0) & (across < wide)
    place = (pairs.others.view(-1, 1, 1) * high + down) * wide + across
    return torch.where(inside, place, 0), inside


def _rests(origin: Origin, pairs: _Pairs, cut: Cut, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds of what each element is beside the multiple of its other, `(N, P, h, w)`.

    A few pairs at a time, as many as may be held.
    """
    known = _possible(origin, cut)
    one = max(origin.values.lower[:, 0].numel(), known[0][:, 0].numel())
    step = max(1, origin.held // one)
    blocks = (slice(start, start + step) for start in range(0, len(place), step))
    parts = [_rest(origin, pairs.part(each), cut, place[each], known) for each in blocks]
    lower, upper = (torch.cat(ends, 1) for ends in zip(*parts, strict=True))
    return lower, upper


def _rest(
    origin: Origin, pairs: _Pairs, cut: Cut, place: Tensor, known: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    low, high = (cut(each) for each in _differences(origin, pairs))
    may_be, zero = known
    these = may_be[:, pairs.these], zero[:, pairs.these]
    others = may_be.flatten(1, 3)[:, place], zero.flatten(1)[:, place]
    upper = torch.where(these[0], high, -torch.inf).amax(-1)
    lower = torch.where(others[0], low, torch.inf).amin(-1)
    upper = torch.where(these[1], upper.clamp_min(0), upper)
    lower = torch.where(others[1], lower.clamp_max(0), lower)
    return lower, upper


def _differences(origin: Origin, pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """Return bounds of one convolution minus a multiple of the other, moved, `(N, P, H, W)`."""
    kernel, images = origin.kernel, origin.images
    padding = [a + b for a, b in zip(kernel.padding, pairs.padding, strict=True)]
    centre, radius = images.centre_and_radius()
    value = functional.conv2d(centre, pairs.kernel, pairs.offset, kernel.stride, padding)
    reach = functional.conv2d(radius, pairs.kernel.abs(), None, kernel.stride, padding)
    # Both sums of products, and the differences of the weights.
    gamma = rounding.gamma(pairs.kernel[0].numel(), value.dtype)
    largest = images.magnitude.flatten(1).amax(1).clamp_min(1)
    error = 8 * gamma * largest[:, None] * pairs.size
    reach = reach + error[:, :, None, None]
    return value - reach, value + reach


def _possible(origin: Origin, cut: Cut) -> tuple[Tensor, Tensor]:
    """Return which elements may be the maximum, `(N, C, h, w, k)`, and whether zero may be."""
    low, high = cut(origin.values.lower), cut(origin.values.upper)
    most = low.amax(-1, keepdim=True)
    may_be = high >= most
    if not origin.rectified:
        return may_be, torch.zeros_like(most.squeeze(-1), dtype=torch.bool)
    return may_be & (high >= 0), most.squeeze(-1) < 0


def _contested(origin: Origin, cut: Cut) -> Tensor:
    """Return whether more than one element may be the maximum, zero among them, `(N, C, h, w)`.

    What is taken apart and decided is not: it is exact, so that a search comes to an end.
    """
    may_be, zero = _possible(origin, cut)
    contested = may_be.sum(-1) + zero.to(torch.int64) > 1
    if origin.undecided is None:
        return contested
    if not origin.rectified:
        return contested & origin.undecided
    kinked = may_be & (cut(origin.values.lower) < 0) & (cut(origin.values.upper) > 0)
    return contested & (origin.undecided | kinked.any(-1))
