"""What comes of a search."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pytest_triguard.engine.samples import Batch


@dataclass(frozen=True)
class Outcome:
    """Samples whose search is over.

    Attributes:
        positions: Place of each sample in the data.
        ids: Sample ids.
        points: `(n, C, H, W)` where the search ended, on the model's device.
        clean: `(n, C, H, W)` where it began.
        labels: `(n,)` int64 labels.
        keys: `(n,)` int64 keys of the samples, for random draws.
        success: Whether the goal is reached at `points`, judged by the prediction there; of a
            single start with an integrand, whether that ended the search.
        passes: Gradient passes each sample needed, all starts together.
        steps: Steps taken since the last start.
        path: Recorded tensors by name, `(n, steps + 1, C, H, W)`; empty where none is kept.
        broken: Whether the search met a NaN, which leaves open what it did not find; all False
            unless that is to be told.
        targets: `(n,)` int64 classes to reach, or None.
        rising: Whether the loss was still rising when the last step was taken.
        by: Name of the attack, where several took part.
        integral: `(n, C, H, W)` sum of the terms of an integrand, or None where there is none.
    """

    positions: list[int]
    ids: list[Hashable]
    points: Tensor
    clean: Tensor
    labels: Tensor
    keys: Tensor
    success: list[bool]
    passes: list[int]
    steps: list[int]
    path: dict[str, Tensor]
    broken: list[bool]
    targets: Tensor | None = None
    rising: list[bool] = field(default_factory=list)
    by: str = ""
    integral: Tensor | None = None

    def samples(self) -> Batch:
        """Return the samples as they were, for another search."""
        return Batch(
            tuple(self.positions), tuple(self.ids), self.keys, self.clean, self.labels, self.targets
        )

    def pick(self, places: list[int]) -> Outcome:
        """Return the samples at some places, without their path and integral."""
        index = torch.tensor(places, dtype=torch.int64).to(self.points.device, non_blocking=True)
        points, clean, labels, keys = (
            each.index_select(0, index)
            for each in (self.points, self.clean, self.labels, self.keys)
        )
        passes, steps = (
            [values[place] for place in places] for values in (self.passes, self.steps)
        )
        return replace(
            self,
            positions=[self.positions[place] for place in places],
            ids=[self.ids[place] for place in places],
            points=points,
            clean=clean,
            labels=labels,
            keys=keys,
            success=[self.success[place] for place in places],
            passes=passes,
            steps=steps,
            path={},
            integral=None,
            targets=None if self.targets is None else self.targets.index_select(0, index),
            broken=[self.broken[place] for place in places],
            rising=[self.rising[place] for place in places],
        )
