"""Square attack: random search with squares, without gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks.base import Attack
from pytest_triguard.attacks.goals import ascended
from pytest_triguard.attacks.searching import Searching
from pytest_triguard.engine import draws
from pytest_triguard.engine.geometry import l2_norm, per_row
from pytest_triguard.engine.iteration import STOPS, Stop, search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.windows import bump, corner, inside, placed
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import number, one_of, whole

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the area of the squares is halved."""

_TILES = 5
"""Tiles along the shorter side, with which the search in L2 starts."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search: squares of random place and colour, kept where they lower the margin.

    It needs no gradient. For L-inf a square is set to a corner of the ball; for L2 the budget of
    one window is moved to another, and a bump added there. Towards a target the cross-entropy
    is lowered.

    Args:
        queries: Squares tried per start, beside the start itself.
        restarts: Number of starts.
        share: Area of the first squares as a share of the image.
        stop: `"success"` lets a sample leave at its first success, `"never"` makes all queries.

    References:
        Andriushchenko et al. 2020, "Square Attack: a Query-efficient Black-box Adversarial Attack
        via Random Search", arXiv:1912.00049, algorithms 1 to 3; `share` is 0.8 and the schedule
        is not rescaled to the number of queries, as in AutoAttack.
    """

    name: ClassVar[str] = "square"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES} forward", checked="torchattacks")

    queries: int = 5000
    restarts: int = 1
    share: float = 0.8
    stop: Stop = "success"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("queries", self.queries, low=1)
        whole("restarts", self.restarts, low=1)
        number("share", self.share, low=0, high=1, low_open=True)
        one_of("stop", self.stop, STOPS)

    @property
    def steps(self) -> int:
        """Steps per start: one query each."""
        return self.queries

    @property
    def needs_gradients(self) -> bool:
        """No: it looks at logits alone."""
        return False

    @property
    def passes_per_sample(self) -> int:
        """Most forward passes a sample can take."""
        return self.queries * self.restarts

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        starts = "one random start" if self.restarts == 1 else f"{self.restarts} random starts"
        leaves = "until the first success" if self.stop == "success" else "all made"
        return (
            f"{self.name}: {starts}, {self.queries} queries without gradients, {leaves}, "
            f"seed {self.drawn_seed}"
        )

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        return search(model, batches, (_Squares if self.norm == "linf" else _Bumps)(self, model))

    def sizes(self, height: int, width: int, smallest: int, *, odd: bool = False) -> list[int]:
        """Return the side of the square of every query.

        Args:
            height: Height of the image.
            width: Width of the image.
            smallest: Smallest side, where the image is no smaller.
            odd: Whether sides are odd, where the image is no smaller.
        """
        sides = []
        for query in range(self.queries):
            share = self.share / 2 ** sum(query > bound for bound in _HALVINGS)
            side = max(round(math.sqrt(share * height * width)), smallest)
            sides.append(min(side + (odd and side % 2 == 0), height, width))
        return sides


class _Random(Searching[Square]):
    """What both searches share."""

    @torch.no_grad()
    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        logits = model.logits(rows["points"])
        return logits, logits

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        return ascended("cross_entropy" if "targets" in rows else "margin", logits, rows)

    def drawn(self, rows: Rows, what: str, *shape: int) -> Tensor:
        """Return uniform draws from [0, 1), `(n, *shape)`, of the step that rows are at."""
        keys = draws.row_keys(
            rows["keys"],
            seed=self.attack.drawn_seed,
            method=f"{self.attack.name}/{what}",
            restart=rows["restart"],
            step=rows["step"],
        )
        return draws.uniform(keys, shape, dtype=rows["clean"].dtype)


class _Squares(_Random):
    """The search in the L-inf ball."""

    @cached_property
    def _sides(self) -> dict[tuple[int, int], Tensor]:
        return {}

    def sides(self, rows: Rows) -> Tensor:
        """Return the side of the next square, `(n,)` int64."""
        _, _, height, width = rows["clean"].shape
        shape = height, width
        if shape not in self._sides:
            sides = self.attack.sizes(height, width, 1)
            self._sides[shape] = torch.tensor(sides).to(self.model.device)
        return self._sides[shape][rows["step"].clamp_max(self.steps - 1)]

    def begin(self, model: Model, rows: Rows) -> None:
        _, channels, _, width = rows["clean"].shape
        signs = _sign(self.drawn(rows, "stripes", channels, 1, width))
        rows["points"] = self.moved(model, rows, signs.expand_as(rows["clean"]))

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        clean, best, side = rows["clean"], rows["best_points"], self.sides(rows)
        _, channels, height, width = clean.shape
        drawn = self.drawn(rows, "square", 2 + channels)
        top, left = corner(drawn[:, 0], side, height), corner(drawn[:, 1], side, width)
        colour = self.moved(model, rows, _sign(drawn[:, 2:].view(-1, channels, 1, 1)))
        points = torch.where(inside(top, left, side, clean.shape), colour, best)
        return points, points - best

    def moved(self, model: Model, rows: Rows, signs: Tensor) -> Tensor:
        """Return the samples moved by eps along signs, inside the range."""
        clean = rows["clean"]
        low, high = model.bounds(clean.dtype)
        return (clean + signs * per_row(rows["eps"], clean)).clamp(low, high)


class _Bumps(_Random):
    """The search in the L2 ball."""

    @cached_property
    def _tables(self) -> dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]]:
        return {}

    @cached_property
    def _tile(self) -> dict[int, Tensor]:
        return {}

    def windows(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the side of the next windows, `(n,)` int64, and their bumps, `(n, S, S)`."""
        clean = rows["clean"]
        _, _, height, width = clean.shape
        shape = height, width
        if shape not in self._tables:
            self._tables[shape] = self._table(height, width, clean)
        sides, kinds, bumps = self._tables[shape]
        step = rows["step"].clamp_max(self.steps - 1)
        return sides[step], bumps[kinds[step]]

    def _table(self, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sides, which bump goes with each, and the bumps, `(k, S, S)`."""
        sides = self.attack.sizes(height, width, 3, odd=True)
        known = sorted(set(sides))
        bumps = torch.zeros(len(known), known[-1], known[-1], dtype=like.dtype)
        for place, side in enumerate(known):
            bumps[place, :side, :side] = bump(side)
        kinds = torch.tensor([known.index(side) for side in sides])
        device = like.device
        return torch.tensor(sides).to(device), kinds.to(device), bumps.to(device)

    def begin(self, model: Model, rows: Rows) -> None:
        clean = rows["clean"]
        _, channels, height, width = clean.shape
        side = max(min(height, width) // _TILES, 1)
        if side not in self._tile:
            self._tile[side] = bump(side).to(clean.dtype).to(clean.device)
        pattern = self._tile[side]
        down, across = height // side, width // side
        signs = _sign(self.drawn(rows, "tiles", channels, down, across))
        turned = self.drawn(rows, "turned", 1, down, across) < 0.5
        one = pattern.repeat(down, across)
        other = pattern.T.repeat(down, across)
        signs, turned = (
            each.repeat_interleave(side, 2).repeat_interleave(side, 3) for each in (signs, turned)
        )
        offset = torch.zeros_like(clean)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        middle = offset[:, :, top : top + down * side, left : left + across * side]
        middle.copy_(torch.where(turned, other, one) * signs)
        rows["points"] = self.scaled(model, rows, offset)

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        clean, best = rows["clean"], rows["best_points"]
        _, channels, height, width = shape = clean.shape
        side, bumps = self.windows(rows)
        drawn = self.drawn(rows, "windows", 5 + channels)
        top, left, other_top, other_left = (
            corner(drawn[:, place], side, height if place % 2 == 0 else width) for place in range(4)
        )
        here = inside(top, left, side, shape)
        there = inside(other_top, other_left, side, shape)
        bumps = torch.where((drawn[:, 4] < 0.5).view(-1, 1, 1), bumps, bumps.transpose(1, 2))
        signs = _sign(drawn[:, 5:].view(-1, channels, 1, 1))
        offset = best - clean
        added = placed(bumps, top, left, side, shape) * signs
        added = added + _unit(offset * here)
        unused = (per_row(rows["eps"], clean) ** 2 - l2_norm(offset) ** 2).clamp_min(0) / channels
        budget = (unused + _squared(offset * (here | there))).sqrt()
        offset = torch.where(here, _unit(added) * budget, offset * ~there)
        points = self.scaled(model, rows, offset)
        return points, points - best

    def scaled(self, model: Model, rows: Rows, offset: Tensor) -> Tensor:
        """Return the samples moved by an offset of length eps, inside the range."""
        clean = rows["clean"]
        low, high = model.bounds(clean.dtype)
        tiny = torch.finfo(clean.dtype).tiny
        offset = offset * (per_row(rows["eps"], clean) / l2_norm(offset).clamp_min(tiny))
        return (clean + offset).clamp(low, high)


def _sign(uniform: Tensor) -> Tensor:
    """Return 1 or -1, each as often, from draws from [0, 1)."""
    return 1 - 2 * (uniform < 0.5).to(uniform.dtype)


def _squared(values: Tensor) -> Tensor:
    """Return the squared norm of each channel, `(N, C, 1, 1)`."""
    return (values**2).sum((2, 3), keepdim=True)


def _unit(values: Tensor) -> Tensor:
    """Return each channel at norm 1, or 0 where it is 0."""
    return values / _squared(values).sqrt().clamp_min(torch.finfo(values.dtype).tiny)
