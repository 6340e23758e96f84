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


class Tightening:
    """Tightens values of a walk.

    Only elements whose bounds would make a relaxation tighter are bounded again, each once; rows
    on the result of an operator that slides over images are carried back in windows, those of all
    places together.

    Args:
        walk: The walk.
    """

    def __init__(self, walk: Substitution) -> None:
        self.walk = walk
        self._done: dict[Hashable, Tensor] = {}

    def arguments(self, call: Call, solve: Solve) -> None:
        """Tighten the arguments that an operator wants tighter, unless they are exact."""
        wanted = call.rule.open(*call.bound.args, **call.bound.kwargs) if call.rule.open else []
        for value, mask in wanted:
            key = self.walk.key_of(value)
            if not self.walk.is_loose(key):
                continue
            known = self._done.get(key)
            todo = mask if known is None else mask & ~known
            self._done[key] = mask if known is None else mask | known
            self._value(key, todo, solve)

    def _value(self, key: Hashable, mask: Tensor, solve: Solve) -> None:
        """Tighten the masked elements of a value, by groups: the places of images, or all."""
        before = self.walk.bounds[key]
        image = len(before.shape) == 4 and self.walk.slides(key)
        grouped = mask.flatten(2).transpose(1, 2) if image else mask.flatten(1).unsqueeze(1)
        most = int(grouped.sum(2).amax())
        if not most:
            return
        order = grouped.to(torch.uint8).argsort(dim=2, descending=True, stable=True)[:, :, :most]
        lower, upper = (_grouped(each, image).clone() for each in (before.lower, before.upper))
        for index in self._parts(key, order, image):
            low, high = self._enclosed(key, index, before.shape, solve, image)
            open_ = grouped.gather(2, index)
            for ends, found, better in ((lower, low, torch.gt), (upper, high, torch.lt)):
                known = ends.gather(2, index)
                kept = open_ & better(found, known)  # never where the bound is NaN
                ends.scatter_(2, index, torch.where(kept, found, known))
        shape = before.shape
        lower, upper = (
            (each.transpose(1, 2) if image else each).reshape(shape) for each in (lower, upper)
        )
        self.walk.register(key, Interval(lower, upper, before.ball))

    def _parts(self, key: Hashable, order: Tensor, image: bool) -> Iterator[Tensor]:
        """Hand out elements of each group that are tightened together, `(N, G, s)`.

        How much a row in windows holds on its way is seen on the first one.
        """
        if image and key not in self.walk.row_sizes:
            yield order[:, :, :1]
            order = order[:, :, 1:]
        if order.shape[2]:
            size = self.walk.row_sizes[key] if image else self.walk.widest
            step = max(1, self.walk.held // (2 * order.shape[:2].numel() * size))
            yield from torch.split(order, step, dim=2)

    def _enclosed(
        self, key: Hashable, index: Tensor, shape: torch.Size, solve: Solve, image: bool
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of some elements of each group of a value, `(N, G, s)` each."""
        count, width = index.shape[2], shape[1] if image else shape[1:].numel()
        rows = self.walk.region.lower.new_zeros(*index.shape, width)
        rows.scatter_(3, index.unsqueeze(3), 1)
        rows = torch.cat([rows, -rows], dim=2)
        if image:
            high, wide = shape[2:]
            grid = Grid((0, 0), (1, 1), (high, wide), (1, 1), (high, wide))
            found = solve(self.walk, key, Windowed(rows[..., None, None], grid, clean=True))
        else:
            found = solve(self.walk, key, rows.view(len(rows), 2 * count, *shape[1:]))
        found = found.view(*index.shape[:2], 2 * count)
        return found[:, :, :count], -found[:, :, count:]


def _grouped(values: Tensor, image: bool) -> Tensor:
    """Return values by groups, `(N, G, elements)`: the places of images, or all in one."""
    return values.flatten(2).transpose(1, 2) if image else values.flatten(1).unsqueeze(1)
