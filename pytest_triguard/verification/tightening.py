"""Tighter bounds of intermediate values, by back-substitution, where an operator asks for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.network import Call
from pytest_triguard.verification.windows import Grid, Windowed

if TYPE_CHECKING:
    from pytest_triguard.verification.substitution import Substitution

Solve = Callable[["Substitution", Hashable, "Tensor | Windowed"], Tensor]
"""From a walk, a key and rows on its value to lower bounds of the rows, `(N, S)`."""

Box = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""


class Tightening:
    """Tightens values of a walk.

    Only elements whose bounds would make a relaxation tighter are bounded again, each once; rows
    on the result of an operator that slides over images are carried back in windows, those of all
    places together.

    Args:
        walk: The walk, which must not keep this: its bounds would wait for the garbage collector.
        done: Elements that were tightened before, by key; those to come are added.
    """

    def __init__(self, walk: Substitution, done: dict[Hashable, Tensor]) -> None:
        self.walk = walk
        self._done = done

    def arguments(self, call: Call, solve: Solve) -> None:
        """Tighten the arguments that an operator wants tighter, unless they are exact."""
        for value, mask in self.walk.network.open(call):
            key = self.walk.key_of(value)
            if not self.walk.is_loose(key):
                continue
            # Through a ReLU nothing is lost: its argument is bounded, where rows are smaller.
            source = self.walk.rectified(key)
            self._once(key if source is None else source, mask, solve)
            if source is not None:
                self.walk.renew(key)

    def _once(self, key: Hashable, mask: Tensor, solve: Solve) -> None:
        """Tighten the masked elements of a value that were not tightened before."""
        known = self._done.get(key)
        todo = mask if known is None else mask & ~known
        self._done[key] = mask if known is None else mask | known
        self._value(key, todo, solve)

    def _value(self, key: Hashable, mask: Tensor, solve: Solve) -> None:
        """Tighten the masked elements of a value, by groups: the places of images, or all."""
        before = self.walk.bounds[key]
        image = len(before.shape) == 4 and self.walk.slides(key)
        wanted = _grouped(mask, image)
        counts = wanted.sum(3).amax(0)
        most = int(counts.amax())
        if not most:
            return
        order = wanted.to(torch.uint8).argsort(dim=3, descending=True, stable=True)[..., :most]
        lower, upper = (_grouped(each, image).clone() for each in (before.lower, before.upper))
        for box, ranks in self._parts(key, counts, len(order), image):
            place = slice(None), slice(box[0], box[1]), slice(box[2], box[3])
            index = order[*place, ranks]
            low, high = self._enclosed(key, index, box, before.shape, solve, image)
            open_ = wanted[place].gather(3, index)
            for ends, found, better in ((lower, low, torch.gt), (upper, high, torch.lt)):
                known = ends[place].gather(3, index)
                kept = open_ & better(found, known)  # never where the bound is NaN
                ends[place] = ends[place].scatter(3, index, torch.where(kept, found, known))
        shape = before.shape
        lower, upper = (
            (each.movedim(3, 1) if image else each).reshape(shape) for each in (lower, upper)
        )
        self.walk.register(key, Interval(lower, upper, before.ball))

    def _parts(
        self, key: Hashable, counts: Tensor, samples: int, image: bool
    ) -> Iterator[tuple[Box, slice]]:
        """Hand out which elements are tightened together: a box of groups, and ranks in each.

        The box holds all groups that have an element of the first rank. How much a row in windows
        holds on its way is seen on the first one.
        """
        rank, most = 0, int(counts.amax())
        while rank < most:
            box = _around(counts > rank)
            groups = samples * (box[1] - box[0]) * (box[3] - box[2])
            size = self.walk.row_sizes.get(key) if image else self.walk.widest
            step = 1 if size is None else max(1, self.walk.held // (2 * groups * size))
            yield box, slice(rank, min(rank + step, most))
            rank += step

    def _enclosed(
        self,
        key: Hashable,
        index: Tensor,
        box: Box,
        shape: torch.Size,
        solve: Solve,
        image: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of some elements of a box of groups of a value, `(N, h, w, s)` each."""
        count, width = index.shape[3], shape[1] if image else shape[1:].numel()
        rows = self.walk.region.lower.new_zeros(*index.shape, width)
        rows.scatter_(4, index.unsqueeze(4), 1)
        rows = torch.cat([rows, -rows], dim=3)
        if image:
            tiles = index.shape[1], index.shape[2]
            grid = Grid((box[0], box[2]), (1, 1), tiles, (1, 1), (shape[2], shape[3]))
            windows = Windowed(rows.flatten(1, 2)[..., None, None], grid, clean=True)
            found = solve(self.walk, key, windows)
        else:
            found = solve(self.walk, key, rows.view(len(rows), 2 * count, *shape[1:]))
        found = found.view(*index.shape[:3], 2 * count)
        return found[..., :count], -found[..., count:]


def _grouped(values: Tensor, image: bool) -> Tensor:
    """Return values by groups, `(N, h, w, elements)`: the places of images, or all in one."""
    return values.movedim(1, 3) if image else values.flatten(1)[:, None, None]


def _around(places: Tensor) -> Box:
    """Return the box around the places `(h, w)` that are meant."""
    ends: list[int] = []
    for axis in (1, 0):
        inside = places.any(axis).nonzero().flatten()
        first, last = torch.stack([inside[0], inside[-1]]).tolist()
        ends += [first, last + 1]
    return ends[0], ends[1], ends[2], ends[3]
