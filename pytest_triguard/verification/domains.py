"""Branch and bound: what is left to prove, part by part, over all samples together."""

from __future__ import annotations

from collections.abc import Callable
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

    Args:
        bounds: `(N, S)` bounds of the rows over whole regions; infinite where nothing is to be
            proven.
        threshold: `(N,)` what a bound has to exceed.
        shape: Shape of a sample.
        width: Domains bounded at once.
        limit: Domains per sample, or None.
        clock: The limit in time.
        keep: Whether what is proven is kept.

    Attributes:
        margin: `(N,)` lower bound of the least row of each sample, as far as the search went.
        points: `(N, C, H, W)` points that may break the property; NaN for none.
        bounded: Domains bounded so far, all samples together.
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
        keep: bool = False,
    ) -> None:
        self.threshold = threshold
        self.width = width
        self.limit = limit
        self.clock = clock
        self.bounded = 0
        self.proven: list[Domains] | None = [] if keep else None
        self.points = bounds.new_full((len(bounds), *shape), torch.nan)
        self._closed = torch.where(bounds > threshold[:, None], bounds, torch.inf).amin(1)
        self._count = torch.zeros_like(threshold, dtype=torch.int64)
        self._open: Domains | None = None

    @property
    def margin(self) -> Tensor:
        """Lower bound of the least row of each sample, `(N,)`."""
        least = self._closed.clone()
        if self._open is not None:
            least.scatter_reduce_(0, self._open.owner, self._open.bound, "amin")
        return least

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
        self._open = root
        try:
            self._work(root, root.pick(slice(0, 0)), bound)
            while len(self._open):
                chosen, rest = self._next(self._open)
                if not len(chosen):
                    return
                self._work(split(self._open.pick(chosen)), self._open.pick(rest), bound)
        except BudgetSpent:
            return

    def _work(self, parts: Domains, rest: Domains, bound: Callable[[Domains], Bounded]) -> None:
        """Bound parts; what they are parts of stays open until all are bounded."""
        found = [
            bound(parts.pick(slice(begin, begin + self.width)))
            for begin in range(0, len(parts), self.width)
        ]
        self._open = rest
        for each in found:
            self._take(each)

    def _next(self, open_: Domains) -> tuple[Tensor, Tensor]:
        """Return the domains to split now, the loosest first, and the others."""
        self.clock.check()
        alive = self.points.flatten(1).isnan().any(1)
        if self.limit is not None:
            alive &= self._count < self.limit
        key = torch.where(alive[open_.owner], open_.bound, torch.inf)
        order = key.argsort(stable=True)
        count = min(int(alive[open_.owner].sum()), max(1, self.width // 2))
        return order[:count], order[count:]

    def _take(self, found: Bounded) -> None:
        """Keep what is still open, and note the rest."""
        domains = found.domains
        self.bounded += len(domains)
        self._count.index_add_(0, domains.owner, torch.ones_like(domains.owner))
        broken = (found.margins <= 0).nonzero().flatten()
        self.points.index_copy_(
            0, domains.owner[broken], found.points[broken].to(self.points.dtype)
        )
        proven = domains.bound > self.threshold[domains.owner]
        finite = proven & torch.isfinite(domains.bound)
        self._closed.scatter_reduce_(0, domains.owner[finite], domains.bound[finite], "amin")
        if self.proven is not None:
            self.proven.append(domains.pick(proven.nonzero().flatten()))
        stuck = ~proven & found.last
        self._closed.scatter_reduce_(0, domains.owner[stuck], domains.bound[stuck], "amin")
        left = domains.pick((~proven & ~found.last).nonzero().flatten())
        self._open = left if self._open is None else self._open.joined(left)


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    if first.ndim == 2:
        columns = max(first.shape[1], second.shape[1])
        first, second = (
            functional.pad(each, (0, columns - each.shape[1])) for each in (first, second)
        )
    return torch.cat([first, second])
