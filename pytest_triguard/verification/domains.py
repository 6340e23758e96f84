"""Branch and bound: what is left to prove, part by part, over all samples together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification.budget import BudgetSpent, Clock


@dataclass(frozen=True)
class Domains:
    """Parts of regions over each of which one row is to be proven.

    Attributes:
        owner: `(D,)` int64, the sample.
        row: `(D,)` int64, the row of the specification.
        bound: `(D,)` lower bound of the row over the part.
        state: What defines a part, and what its bound started from, `(D, ...)` each by name.
    """

    owner: Tensor
    row: Tensor
    bound: Tensor
    state: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.owner)

    def pick(self, index: Tensor | slice) -> Domains:
        """Return some of the domains."""
        return Domains(
            self.owner[index],
            self.row[index],
            self.bound[index],
            {name: values[index] for name, values in self.state.items()},
        )

    def joined(self, other: Domains) -> Domains:
        """Return these domains and others; what one of them has fewer columns of is zero there."""
        return Domains(
            torch.cat([self.owner, other.owner]),
            torch.cat([self.row, other.row]),
            torch.cat([self.bound, other.bound]),
            {name: _stacked(values, other.state[name]) for name, values in self.state.items()},
        )


@dataclass(frozen=True)
class Bounded:
    """Domains after they were bounded.

    Attributes:
        domains: The domains with their bounds; infinite where a domain is empty.
        last: `(D,)` bool, whether a domain cannot be split any more.
        points: `(D, C, H, W)` where each bound is attained on the relaxation.
        margins: `(D,)` the margin of the network itself at these points.
    """

    domains: Domains
    last: Tensor
    points: Tensor
    margins: Tensor

    def pick(self, index: Tensor) -> Bounded:
        """Return some of the domains."""
        last, points, margins = self.last[index], self.points[index], self.margins[index]
        return Bounded(self.domains.pick(index), last, points, margins)

    def joined(self, other: Bounded) -> Bounded:
        """Return these domains and others."""
        return Bounded(
            self.domains.joined(other.domains),
            torch.cat([self.last, other.last]),
            torch.cat([self.points, other.points]),
            torch.cat([self.margins, other.margins]),
        )


class Search:
    """Splits domains until every one of a sample's is proven, or a point breaks the property.

    It goes in rounds, in each of which so many of every sample's loosest domains are split. Which
    these are, and where a sample stops, depends on nothing but the sample, time aside.

    Args:
        bounds: `(N, S)` bounds of the rows over whole regions; infinite where nothing is to be
            proven.
        threshold: `(N,)` what a bound has to exceed.
        shape: Shape of a sample.
        width: Domains bounded at once.
        limit: Domains per sample, or None.
        clock: The limit in time of all samples together.
        seconds: What each sample may be charged, or None for no limit.
        keep: Whether what is proven is kept.

    Attributes:
        points: `(N, C, H, W)` points that may break the property; NaN for none.
        bounded: Domains bounded so far, all samples together.
        spent: What each sample was charged: its share of the domains that were bounded together.
        proven: The domains that were proven, or None where they are not kept.
    """

    def __init__(
        self,
        bounds: Tensor,
        threshold: Tensor,
        shape: torch.Size,
        width: int,
        limit: int | None,
        clock: Clock,
        *,
        seconds: Sequence[float] | None = None,
        keep: bool = False,
    ) -> None:
        self.threshold = threshold
        self.width = width
        self.limit = limit
        self.clock = clock
        self.seconds = seconds
        self.bounded = 0
        self.spent = [0.0] * len(bounds)
        self.proven: list[Domains] | None = [] if keep else None
        self.points = bounds.new_full((len(bounds), *shape), torch.nan)
        self._least = torch.full_like(threshold, torch.inf)
        self._closed = torch.where(bounds > threshold[:, None], bounds, torch.inf).amin(1)
        self._count = torch.zeros_like(threshold, dtype=torch.int64)
        self._open: Domains | None = None

    @property
    def margin(self) -> Tensor:
        """Lower bound of the least row of each sample, as far as the search went, `(N,)`."""
        least = self._closed.clone()
        if self._open is not None:
            least.scatter_reduce_(0, self._open.owner, self._open.bound, "amin")
        return least

    @property
    def cut(self) -> list[bool]:
        """Whether the budget alone kept each sample from being decided."""
        left = torch.zeros_like(self.threshold, dtype=torch.bool)
        if self._open is not None:
            left[self._open.owner] = True
        stuck = self._closed <= self.threshold
        found: list[bool] = (left & ~stuck & self.points.flatten(1).isnan().any(1)).tolist()
        return found

    def run(
        self,
        root: Domains,
        split: Callable[[Domains], Domains],
        bound: Callable[[Domains], Bounded],
    ) -> None:
        """Search from whole regions; what time leaves open stays open, with its bound.

        Args:
            root: Whole regions, each with a row that is not proven, not bounded yet.
            split: From domains to parts that cover them, each with its parent's bound.
            bound: From domains to their bounds.
        """
        half = max(1, self.width // 2)
        try:
            self._round(root, root.pick(slice(0, 0)), self.width, bound)
            while self._open is not None and len(self._open):
                self.clock.check()
                chosen, rest = self._next(self._open, half)
                if not len(chosen):
                    return
                parents, rest_ = self._open.pick(chosen), self._open.pick(rest)
                self._round(parents, rest_, half, lambda part: bound(split(part)))
        except BudgetSpent:
            return

    def _round(
        self,
        domains: Domains,
        rest: Domains,
        step: int,
        bound: Callable[[Domains], Bounded],
    ) -> None:
        """Bound domains, or their parts, a few at a time; what is not bounded stays open."""
        self._open, done = rest, 0
        try:
            for begin in range(0, len(domains), step):
                part = domains.pick(slice(begin, begin + step))
                alive = self._in_time()[part.owner]
                late = part.pick((~alive).nonzero().flatten())
                part = part.pick(alive.nonzero().flatten())
                if len(part):
                    with self._charged(part.owner):
                        found = bound(part)
                    self._take(found)
                self._open, done = self._open.joined(late), begin + step
        finally:
            self._open = self._open.joined(domains.pick(slice(done, None)))

    @contextmanager
    def _charged(self, owner: Tensor) -> Iterator[None]:
        """Charge samples with the time that goes by, by the number of their domains."""
        start = time.perf_counter()
        try:
            yield
        finally:
            share = (time.perf_counter() - start) / len(owner)
            for each, count in Counter(owner.tolist()).items():
                self.spent[each] += share * count

    def _in_time(self) -> Tensor:
        """Return which samples may be charged more, `(N,)` bool."""
        if self.seconds is None:
            return torch.ones_like(self.threshold, dtype=torch.bool)
        left = [spent < most for spent, most in zip(self.spent, self.seconds, strict=True)]
        return torch.tensor(left).to(self.threshold.device)

    def _next(self, open_: Domains, most: int) -> tuple[Tensor, Tensor]:
        """Return the domains to split now, at most so many of each sample, and the others.

        The loosest of every sample come first.
        """
        alive = self.points.flatten(1).isnan().any(1) & self._in_time()
        room = torch.full_like(self._count, most)
        if self.limit is not None:
            room = torch.minimum(room, (self.limit - self._count + 1) // 2)
        room = torch.where(alive, room, 0)
        # In few digits, so that what is alike up to noise keeps its order.
        order = open_.bound.float().argsort(stable=True)
        order = order[open_.owner[order].argsort(stable=True)]
        owner = open_.owner[order]
        sizes = torch.zeros_like(self._count).index_add_(0, owner, torch.ones_like(owner))
        rank = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner]
        chosen = rank < room[owner]
        order = order[torch.where(chosen, rank, len(owner)).argsort(stable=True)]
        count = int(chosen.sum())
        return order[:count], order[count:]

    def _take(self, found: Bounded) -> None:
        """Keep what is still open, and note the rest."""
        domains = found.domains
        self.bounded += len(domains)
        self._count.index_add_(0, domains.owner, torch.ones_like(domains.owner))
        self._note(found)
        proven = domains.bound > self.threshold[domains.owner]
        finite = proven & torch.isfinite(domains.bound)
        self._closed.scatter_reduce_(0, domains.owner[finite], domains.bound[finite], "amin")
        if self.proven is not None:
            self.proven.append(domains.pick(proven.nonzero().flatten()))
        stuck = ~proven & found.last
        self._closed.scatter_reduce_(0, domains.owner[stuck], domains.bound[stuck], "amin")
        left = domains.pick((~proven & ~found.last).nonzero().flatten())
        self._open = left if self._open is None else self._open.joined(left)

    def _note(self, found: Bounded) -> None:
        """Keep the point of each sample that breaks the property most."""
        owner, margins = found.domains.owner, found.margins
        broken = torch.where(margins <= 0, margins, torch.inf)  # never where it is NaN
        self._least.scatter_reduce_(0, owner, broken.to(self._least.dtype), "amin")
        place = ((broken <= self._least[owner]) & (broken <= 0)).nonzero().flatten()
        self.points.index_copy_(0, owner[place], found.points[place].to(self.points.dtype))


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    if first.ndim == 2:
        columns = max(first.shape[1], second.shape[1])
        first, second = (
            functional.pad(each, (0, columns - each.shape[1])) for each in (first, second)
        )
    return torch.cat([first, second])
