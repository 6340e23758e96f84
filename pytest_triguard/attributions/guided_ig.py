"""Gradients along a path that moves the features of low gradient first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pytest_triguard.attributions.base import known_targets
from pytest_triguard.attributions.baselined import Complete
from pytest_triguard.attributions.lines import MODES
from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import number, one_of, whole


class _Line:
    """The straight line from the baseline to the sample.

    Args:
        start: `(n, C, H, W)` baselines.
        end: `(n, C, H, W)` samples.
    """

    def __init__(self, start: Tensor, end: Tensor) -> None:
        self.start, self.end, self.span = start, end, end - start
        self.length = self.span.abs().sum((1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class GuidedIG(Complete):
    """Steps times gradients on a path from the baseline along which low gradients move first.

    With every step the distance from the sample falls by the same amount. The features whose
    gradient is smallest move, as far as a band around the straight line lets them; if that is not
    enough, the smallest of the others do. The sum comes close to the change of the output as the
    steps become many.

    Args:
        steps: Number of steps, each with one gradient.
        fraction: Share of the features that move together.
        max_distance: Half width of the band, as a share of the line.
        mode: `"canonical"` takes the share of the features that can still move; `"reference"` of
            all features, as the published code does.

    References:
        Kapishnikov et al. 2021, "Guided Integrated Gradients: an Adaptive Path Method for Removing
        Noise", arXiv:2106.09788, section 4 and algorithm 1.
    """

    name: ClassVar[str] = "guided_ig"
    kind: ClassVar[str] = "integration"
    facts: ClassVar[Facts] = Facts(
        cost=f"{PASSES}, one after the other",
        sign="signed",
        axioms=("complete as steps become many",),
    )

    steps: int = 200
    fraction: float = 0.25
    max_distance: float = 0.02
    mode: str = "canonical"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, low=1)
        number("fraction", self.fraction, low=0, high=1, low_open=True)
        number("max_distance", self.max_distance, low=0, high=1)
        one_of("mode", self.mode, MODES)

    @property
    def passes_per_sample(self) -> int:
        """One per step."""
        return self.steps

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        start, targets = self.start(model, batch), known_targets(batch)

        def run(part: slice) -> Tensor:
            return self._integrated(model, start[part], batch.inputs[part], targets[part])

        parts = model.chunk.attempt(run, len(batch))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _integrated(self, model: Model, start: Tensor, end: Tensor, targets: Tensor) -> Tensor:
        point, maps, line = start, torch.zeros_like(end), _Line(start, end)
        for step in range(1, self.steps + 1):
            gradient, _ = input_gradient(model, point, targets, self.objective)
            moved = self._moved(point, gradient, line, step / self.steps)
            maps.addcmul_(moved - point, gradient)
            point = moved
        return maps

    def _moved(self, point: Tensor, gradient: Tensor, line: _Line, place: float) -> Tensor:
        """Return the point after the step to a place on the line, from 0 to 1."""
        low, high = (
            torch.lerp(line.start, line.end, bound)
            for bound in (max(place - self.max_distance, 0.0), min(place + self.max_distance, 1.0))
        )
        point = torch.where((point - low).mul_(line.span) < 0, low, point)
        needed = (line.end - point).abs_().sum((1, 2, 3)) - line.length * (1 - place)
        slopes = gradient.abs().masked_fill_(point == high, torch.inf)
        room = high - point
        wholly, partly, share = self._groups(slopes.flatten(1), room.abs().flatten(1), needed)
        # What moves wholly must be where it is told to be, to the last bit.
        wholly = torch.where(share == 1, partly, wholly)
        moved = point.addcmul(room, per_row(share, room))
        moved = torch.where(slopes <= per_row(partly, slopes), moved, point)
        return torch.where(slopes <= per_row(wholly, slopes), high, moved)

    def _groups(
        self, slopes: Tensor, room: Tensor, needed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return who moves so that all together move as far as is needed.

        Args:
            slopes: `(n, d)` absolute gradients, infinite for features that cannot move.
            room: `(n, d)` how far each feature can move.
            needed: `(n,)` how far all together shall move.

        Returns:
            The slope up to which features use all their room, the slope up to which features use
            a share of it, and that share, each `(n,)`.
        """
        size, tiny = slopes.shape[1], torch.finfo(slopes.dtype).tiny
        ranked = _Ranked(slopes)
        movable = ranked.below(torch.full_like(needed, torch.inf))
        done = needed <= 0
        before, moved, taken = torch.full_like(needed, -1.0), needed * 0, movable * 0
        wholly, partly, share = before, before, moved
        for _ in range(_most_groups(size, self.fraction)):
            if is_host(slopes.device) and bool(done.all()):
                break
            pool = movable - taken if self.mode == "canonical" else torch.full_like(taken, size)
            ranks = taken + ((pool - 1) * self.fraction).floor().to(taken.dtype)
            bound = ranked.at(torch.minimum(ranks, movable - 1).clamp_min(0))
            chosen = slopes <= bound.unsqueeze(1)
            reached = (room * chosen).sum(1)
            part = ((needed - moved) / (reached - moved).clamp_min(tiny)).clamp_max(1.0)
            wholly = torch.where(done, wholly, before)
            partly = torch.where(done, partly, bound)
            share = torch.where(done, share, part)
            taken = ranked.up_to(bound)
            done = done | (reached >= needed) | (taken >= movable)
            before, moved = bound, reached
        return wholly, partly, share


class _Ranked:
    """Values in rising order, row by row.

    Args:
        values: `(n, d)`.
    """

    def __init__(self, values: Tensor) -> None:
        if is_host(values.device) and values.dtype != torch.bfloat16:
            # Several times faster than torch's own, and numpy has all other dtypes.
            self._ordered = torch.from_numpy(np.sort(values.numpy(), axis=1))
        else:
            self._ordered = values.sort(1).values

    def at(self, ranks: Tensor) -> Tensor:
        """Return the values of some ranks, counted from 0, one for each row, `(n,)`."""
        return self._ordered.gather(1, ranks.unsqueeze(1)).squeeze(1)

    def below(self, bounds: Tensor) -> Tensor:
        """Return how many values lie below a bound of each row, `(n,)` int64."""
        return torch.searchsorted(self._ordered, bounds.unsqueeze(1)).squeeze(1)

    def up_to(self, bounds: Tensor) -> Tensor:
        """Return how many values are not above a bound of each row, `(n,)` int64."""
        return torch.searchsorted(self._ordered, bounds.unsqueeze(1), right=True).squeeze(1)


def _most_groups(size: int, fraction: float) -> int:
    """Return how many groups there are if each takes a fraction of what is left, and one more."""
    groups = 0
    while size > 0:
        size -= int(fraction * (size - 1)) + 1
        groups += 1
    return groups
