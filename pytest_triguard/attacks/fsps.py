"""The frequency-based stationary point search."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks.ssa import SSA
from pytest_triguard.engine.geometry import ascent, stepped
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.transforms.base import Transform
from pytest_triguard.engine.transforms.kernel import Kernel
from pytest_triguard.facts import Facts
from pytest_triguard.validation import number, whole


@dataclass(frozen=True, kw_only=True)
class FSPS(SSA):
    """SSA with smoothed gradients, taken in later steps near a point where the loss is lowest.

    From the iterate the loss is descended with half the step, inside a smaller ball around the
    sample; the gradient estimated there moves the iterate.

    Args:
        search_steps: Steps of the descent.
        search_after: Share of the steps after which there is a descent.
        search_radius: Radius of the ball it stays in, in units of eps.
        size: Side of the Gaussian kernel that smoothes the gradient, in pixels, odd.

    References:
        Zhu et al. 2023, "Improving Adversarial Transferability via Frequency-based Stationary
        Point Search", CIKM, algorithm 1.
    """

    name: ClassVar[str] = "fsps"
    facts: ClassVar[Facts] = Facts()

    search_steps: int = 50
    search_after: float = 0.5
    search_radius: float = 0.5
    size: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("search_steps", self.search_steps)
        number("search_after", self.search_after, low=0, high=1)
        number("search_radius", self.search_radius, low=0)

    @property
    def own(self) -> tuple[Transform, ...]:
        """The spectrum and the kernel."""
        return (*super().own, Kernel(size=self.size))

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""
        late = sum(self._late(step) for step in range(steps))
        return super().passes(steps) + self.search_steps * late

    def _late(self, step: int) -> bool:
        """Return whether the gradient of a step, counted from 0, is taken after a descent."""
        return step > int(self.search_after * self.steps)

    def evaluated(self, model: Model, rows: Rows) -> Tensor:
        """Return the points around which the gradient is estimated, `(n, C, H, W)`."""
        parts, start = [], 0
        for late, run in groupby(self._late(step) for step in rows.steps):
            part = slice(start, start + len(list(run)))
            parts.append(self.lowered(model, rows.part(part)) if late else rows["points"][part])
            start = part.stop
        return torch.cat(parts)

    def lowered(self, model: Model, rows: Rows) -> Tensor:
        """Return where the descents from the iterates end, `(n, C, H, W)`."""
        points, clean = rows["points"], rows["clean"]
        length, radius = -0.5 * self.step_length(rows["eps"]), self.search_radius * rows["eps"]
        bounds = model.bounds(clean.dtype)
        for _ in range(self.search_steps):
            gradient, _ = input_gradient(
                model, points, rows["labels"], lambda logits, _: self.ascended(logits, rows)
            )
            way = ascent(gradient, self.norm)
            points = stepped(points, way, length, clean, radius, self.norm, bounds)
        return points
