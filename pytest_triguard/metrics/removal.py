"""The output of the network while pixels leave an image, or enter its baseline, in order.

Deletion replaces the first pixels of an order by the baseline; insertion puts the first pixels
into the baseline. In place of a baseline, pixels can be imputed from those that are left.

Most states of an image need no pass: exchanging a pixel that equals its baseline changes nothing,
and the two ends are the sample and the baseline, which both directions share. Only states that
differ are evaluated, so the curves are exact and cost what is new in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.attributions.base import known_logits, known_targets, with_logits
from pytest_triguard.engine import draws
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.engine.samples import Batch
from pytest_triguard.metrics.imputation import Imputation

Direction = Literal["deletion", "insertion"]


def ranks(importance: Tensor) -> Tensor:
    """Return the place of each pixel in the order of importance, 0 for the most important.

    Args:
        importance: `(N, P)` floating; of equal pixels the first in reading order comes first.

    Returns:
        `(N, P)` int64.
    """
    order = importance.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def random_ranks(keys: Tensor, pixels: int, *, seed: int) -> Tensor:
    """Return a random order of the pixels of each sample, as `ranks` does.

    Args:
        keys: `(N,)` int64 keys of the samples.
        pixels: Number of pixels.
        seed: Seed of the order.
    """
    drawn = draws.row_keys(keys, seed=seed, method="ranking")
    return ranks(draws.uniform(drawn, (pixels,), dtype=torch.float64))


def cut_points(pixels: int, steps: int) -> list[int]:
    """Return the numbers of pixels at which the output is read: `floor(j pixels / steps + 1/2)`.

    Both ends are among them; where there are more steps than pixels, every number is.
    """
    return sorted({(2 * step * pixels + steps) // (2 * steps) for step in range(steps + 1)})


@dataclass(frozen=True)
class Removal:
    """Samples, what their pixels are exchanged for, and in which order.

    Attributes:
        batch: Samples on the model's device, with targets.
        imputation: What stands in for removed pixels.
        ranks: `(n, P)` int64 place of each pixel in the order.
        cuts: Increasing numbers of pixels, from 0 to P.
        counted: `(n,)` bool, samples whose curves are wanted; the others are not evaluated.
    """

    batch: Batch
    imputation: Imputation
    ranks: Tensor
    cuts: Sequence[int]
    counted: Tensor

    @torch.no_grad()
    def curves(
        self, model: Model, objective: Objective, directions: Sequence[Direction]
    ) -> dict[Direction, Tensor]:
        """Return the output at each cut, `(n, len(cuts))`, in each direction.

        One value is read from the device: how many states there are to evaluate.
        """
        exchanged = self._exchanged()
        all_of_them = exchanged[:, -1:]
        # A state is new where a pixel was exchanged since the cut before, and it is no end.
        fresh = exchanged.diff(dim=1, prepend=exchanged[:, :1]) > 0
        fresh &= (exchanged < all_of_them) & self.counted.unsqueeze(1)
        samples, cuts = fresh.nonzero(as_tuple=True)
        latest = (fresh * torch.arange(len(self.cuts), device=fresh.device)).cummax(1).values
        ends = self._ends(model, objective)
        between = self._between(model, objective, samples, cuts, directions)
        found = {}
        for direction, values in zip(directions, between, strict=True):
            first, last = ends if direction == "deletion" else ends[::-1]
            curve = first.unsqueeze(1).repeat(1, len(self.cuts))
            curve = curve.index_put((samples, cuts), values).gather(1, latest)
            found[direction] = torch.where(exchanged < all_of_them, curve, last.unsqueeze(1))
        return found

    def _exchanged(self) -> Tensor:
        """Return how many of the first pixels make a difference when exchanged, at each cut."""
        differs = self.imputation.changes(self.batch.inputs)
        in_order = torch.zeros_like(differs).scatter_(1, self.ranks, differs)
        count = functional.pad(in_order.cumsum(1), (1, 0))
        return count.index_select(1, self._cut_points())

    def _cut_points(self) -> Tensor:
        return torch.tensor(self.cuts).to(self.ranks.device, non_blocking=True)

    def _ends(self, model: Model, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return the output of the samples and of what is left without a pixel, each `(n,)`."""
        inputs, targets = self.batch.inputs, known_targets(self.batch)
        clean = objective(known_logits(with_logits(model, self.batch)), targets)
        every = torch.arange(len(inputs), device=inputs.device)
        nothing = torch.zeros_like(inputs[:, :1], dtype=torch.bool)

        def last(samples: Tensor) -> Tensor:
            empty = self.imputation.fill(inputs[samples], nothing[samples], samples)
            return model.logits(empty)

        return clean, objective(model.chunk.map(last, every), targets)

    def _between(
        self,
        model: Model,
        objective: Objective,
        samples: Tensor,
        cuts: Tensor,
        directions: Sequence[Direction],
    ) -> tuple[Tensor, ...]:
        """Return the output of some samples at some cuts, one tensor for each direction."""
        count, targets = len(samples), known_targets(self.batch)
        ranks, exchanged = self.ranks.to(torch.int32), self._cut_points()[cuts].to(torch.int32)

        def values(rows: Tensor) -> Tensor:
            state = rows % count
            sample = samples[state]
            early = ranks[sample] < exchanged[state].unsqueeze(1)
            inserting = (rows >= count).unsqueeze(1)
            inputs = self.batch.inputs[sample]
            shown = (early == inserting).view(-1, 1, *inputs.shape[2:])
            logits = model.logits(self.imputation.fill(inputs, shown, sample))
            return objective(logits, targets[sample])

        if not count:
            return (self.batch.inputs.new_empty(0),) * len(directions)
        first = {"deletion": 0, "insertion": count}
        rows = torch.arange(2 * count, device=samples.device)
        rows = torch.cat([rows[first[each] : first[each] + count] for each in directions])
        return torch.split(model.chunk.map(values, rows), count)


def area(curve: Tensor, cuts: Sequence[int]) -> Tensor:
    """Return the area under each curve over the share of pixels, by trapezoids.

    Args:
        curve: `(n, len(cuts))`.
        cuts: Increasing numbers of pixels, from 0 to all.

    Returns:
        `(n,)`: the mean of the curve over the share of pixels, from 0 to 1.
    """
    curve = at_least_single(curve)
    return torch.trapezoid(curve, shares(cuts, curve), dim=1)


def shares(cuts: Sequence[int], like: Tensor) -> Tensor:
    """Return numbers of pixels as shares of the last, `(len(cuts),)`."""
    # Divided first: the pixels of a photograph are more than float16 can count.
    places = torch.tensor([cut / cuts[-1] for cut in cuts], dtype=like.dtype)
    return places.to(like.device, non_blocking=True)
