"""The relaxation of an operator with a kink at zero, whose lower line may be chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.relaxations import Carried, Slid, between, positive
from pytest_triguard.verification.windows import Windowed

_CACHED = 2**17
"""Coefficients that are overwritten together: they stay in the cache."""


@dataclass(frozen=True)
class Tunable:
    """An operator with a kink at zero: under its chord, above a line through zero.

    Slopes are shares, from 0 to 1, of what lies between the slope below zero and 1. That of the
    line below may be chosen for every element; every choice is sound.

    Attributes:
        input: Its argument.
        least: Slope of the operator below zero.
        chord: `(N, *shape)` share of the line above: 0 where only the part below zero counts, 1
            where only that above does.
        height: `(N, *shape)` offset above.
        reach: `(N, *shape)` the largest magnitude of the argument. None where what is rounded is
            paid for in the offsets.
        drop: `(N, *shape)` how far the offset above is over that below; None for the height, where
            the line below goes through zero.
    """

    piecewise: ClassVar[bool] = True

    input: Interval
    least: float
    chord: Tensor
    height: Tensor
    reach: Tensor | None
    drop: Tensor | None = None

    @property
    def rectifies(self) -> bool:
        """Whether it is the larger of its argument and zero."""
        return self.least == 0

    @property
    def error(self) -> Tensor | None:
        """What rounding in `back` costs per unit of a coefficient, whatever the choice.

        A carried coefficient is a sum of two products, whose slopes are off by a few units, and the
        offset above may be too low by as much; a constant is two dot products as long as the value
        has elements.
        """
        return None if self.reach is None else self._paid(self.reach, None, 1.0)

    def _paid(self, reach: Tensor, before: Tensor | None, growth: float) -> Tensor:
        """Return a bound on what is rounded, and on what is off in the argument, times a factor.

        Where the argument stays below a kink to a slope of zero, nothing counts.
        """
        unit = rounding.roundoff(reach.dtype)
        floor = 128 * rounding.tiny(reach.dtype)
        share = 32 * unit * growth
        if before is None:
            paid = (reach * share).add_(floor)
        else:
            paid = torch.add((before + floor) * growth, reach, alpha=share)
        if not self.least:
            # Zero or one: by truths, torch multiplies several times slower.
            paid.mul_(self.input.upper.clamp_min(0).sign_())
        return paid.add_(self.height, alpha=(self._dots + 16 * unit) * growth)

    @property
    def _dots(self) -> float:
        return 4 * rounding.gamma(self.height.shape[1:].numel(), self.height.dtype)

    @property
    def start(self) -> Tensor:
        """The choice that leaves the smaller triangle, `(N, *shape)`: the only one if not free."""
        return self.chord.round()

    @cached_property
    def free(self) -> Tensor:
        """Where the choice matters, `(N, *shape)` bool: the kink is inside."""
        return (self.input.lower < 0) & (self.input.upper > 0)

    def absorbing(self, before: Tensor | None, error: Tensor | None) -> Tunable:
        """Return the relaxation with offsets that pay for what is rounded.

        Args:
            before: What is off in the argument, `(N or 1, *shape)`, or None.
            error: What else is off in the result, likewise.
        """
        if self.reach is None:
            raise TypeError("what is rounded is paid for once")
        growth = 1 + self._dots + 8 * rounding.roundoff(self.reach.dtype)
        depth = self._paid(self.reach, before, growth)
        if error is not None:
            depth += error * growth
        height = self.height + depth
        return replace(self, height=height, drop=depth.add_(height), reach=None)

    def back(self, rows: Tensor, share: Tensor | None = None) -> tuple[Carried, Tensor | None]:
        """Carry rows back with the choice at the start, or with shares `(N, S, *shape)`."""
        above = positive(rows, 2)
        constant = _offsets(rows, above, _column(self.height), _column(self._drop))
        upper = self.chord.unsqueeze(1)
        lower = self.start.unsqueeze(1) if share is None else self._chosen(share, torch.unsqueeze)
        return [(self.input, self._joined(rows, above, lower, upper))], constant

    def overwrite(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows of a ReLU back in their own memory, a few samples at a time."""
        lower, upper = (self.start - self.chord).unsqueeze(1), self.chord.unsqueeze(1)
        values = (rows, lower, upper, _column(self.height), _column(self._drop))
        step = max(1, _CACHED // max(1, rows.shape[1:].numel()))
        parts: Iterable[tuple[Tensor, ...]] = [values]
        if step < rows.shape[0]:
            parts = zip(*(torch.split(each, step) for each in values), strict=True)
        room, constants = torch.empty_like(rows[:step]), []
        for some, less, more, *columns in parts:
            above = torch.clamp_min(some, 0, out=room[: some.shape[0]])
            constants.append(_offsets(some, above, *columns))
            some.mul_(more).addcmul_(above, less)
        return [(self.input, rows)], torch.cat(constants)

    def slide(self, rows: Windowed, share: Tensor | None = None) -> Slid:
        """Carry rows in windows back with the choice at the start, or with shares in windows."""
        above = positive(rows.rows, 3)
        constant = rows.dot(self.height) - replace(rows, rows=above).dot(self._drop)

        def cut(values: Tensor, dim: int) -> Tensor:
            return rows.grid.cut(values).unsqueeze(dim + 1)

        lower = cut(self.start, 1) if share is None else self._chosen(share, cut)
        carried = self._joined(rows.rows, above, lower, cut(self.chord, 1))
        return [(self.input, Windowed(carried, rows.grid, clean=True))], constant

    @property
    def _drop(self) -> Tensor:
        return self.height if self.drop is None else self.drop

    def _chosen(self, share: Tensor, placed: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return shares where they count, which is where the kink is inside."""
        return torch.where(placed(self.free, 1), share, placed(self.start, 1))

    def _joined(self, rows: Tensor, above: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the rows times the share below where they are positive, else that above.

        Where no derivatives are wanted, `above` and `lower` are overwritten.
        """
        if torch.is_grad_enabled():
            joined = between(rows, above, lower, upper)
        else:
            joined = above.mul_(lower.sub_(upper)).addcmul_(rows, upper)
        return joined if not self.least else self.least * rows + (1 - self.least) * joined


def _column(values: Tensor) -> Tensor:
    """Return values `(N, *shape)` as `(N, elements, 1)`.

    As transposes of rows: of columns, torch multiplies several at once by a slower kernel.
    """
    return values.flatten(1).unsqueeze(1).mT


def _offsets(rows: Tensor, above: Tensor, height: Tensor, drop: Tensor) -> Tensor:
    """Return the constant, `(n, S)`, for rows and their positive parts, `(n, S, *shape)`."""
    flat, positives = rows.flatten(2), above.flatten(2)
    return torch.baddbmm(torch.bmm(flat, height), positives, drop, alpha=-1).squeeze(2)
