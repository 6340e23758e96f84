"""The gradient relevance attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks.momentum_steps import MomentumSteps
from pytest_triguard.engine.geometry import ascent
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.momentum import accumulated
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.transforms.base import Transform, copies_of
from pytest_triguard.engine.transforms.neighbourhood import Neighbourhood
from pytest_triguard.facts import Facts
from pytest_triguard.validation import number


@dataclass(frozen=True, kw_only=True)
class GRA(MomentumSteps):
    """MIM along `s * G + (1 - s) * G'`, with smaller steps where the direction keeps turning.

    `G` is the gradient at the iterate, `G'` its mean over the neighbourhood, and `s` the cosine
    of the two. Each element's step is multiplied by `decay` whenever the sign of its accumulated
    gradient changes.

    Args:
        copies: Number of neighbours.
        beta: Half a side of the neighbourhood, in units of eps.
        decay: Factor of an element's step each time its sign changes.

    References:
        Zhu et al. 2023, "Boosting Adversarial Transferability via Gradient Relevance Attack",
        ICCV, algorithm 1.
    """

    name: ClassVar[str] = "gra"
    facts: ClassVar[Facts] = Facts()

    copies: int = 20
    beta: float = 3.5
    decay: float = 0.94

    def __post_init__(self) -> None:
        super().__post_init__()
        number("decay", self.decay, low=0, high=1, low_open=True)

    @property
    def own(self) -> tuple[Transform, ...]:
        """The neighbourhood."""
        return (Neighbourhood(copies=self.copies, beta=self.beta),)

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""
        return super().passes(steps) + steps * copies_of(self.added)

    def begin(self, model: Model, rows: Rows) -> None:
        """Start without momentum, and so that the first signs count as unchanged."""
        rows["momentum"] = torch.zeros_like(rows["clean"])
        rows["share"] = torch.full_like(rows["clean"], 1 / self.decay)

    def gradient(self, model: Model, rows: Rows) -> Tensor:
        """Return the gradient weighed with that of the neighbourhood, `(n, C, H, W)`."""
        here = self.averaged(model, rows, rows["points"], self.added)
        around = self.averaged(model, rows, rows["points"], self.applied)
        units = ascent(here, "l2") * ascent(around, "l2")
        return torch.lerp(around, here, units.sum((1, 2, 3), keepdim=True))

    def direction(self, rows: Rows, gradient: Tensor) -> Tensor:
        """Return the direction of the accumulated gradient, shorter where it keeps turning."""
        before = rows["momentum"]
        after = accumulated(before, gradient, self.momentum)
        share = rows["share"]
        rows["share"] = torch.where(after.sign() == before.sign(), share, share * self.decay)
        rows["momentum"] = after
        return rows["share"] * ascent(after, self.norm)
