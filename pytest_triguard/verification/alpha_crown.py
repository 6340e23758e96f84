"""Linear bounds with optimised relaxations."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.verification.crown import HELD, CrownIBP
from pytest_triguard.verification.intervals import Interval, per_sample
from pytest_triguard.verification.methods import Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.relaxations import peak
from pytest_triguard.verification.substitution import Substitution, Tuning, plainly
from pytest_triguard.verification.tightening import Solve
from pytest_triguard.verification.tunable import Tunable
from pytest_triguard.verification.windows import NOISE, Windowed

RATE = 0.5
"""Step of the optimiser, in shares."""
_DECAY = 0.98
_STEP = 6
"""How many back-substitutions a step of the optimiser takes the time of, about."""
GRAPH = 16
"""How many times the rows the derivatives of a back-substitution hold, about."""


@dataclass(frozen=True)
class AlphaCrown(CrownIBP):
    """Back-substitution with the slopes below ReLUs chosen by gradient ascent on each bound.

    Every bound has choices of its own, those of intermediate values too: each of them is ascended
    before what rests on it is bounded. Each step yields a sound bound, and the best is kept.

    References:
        Xu et al. 2021, "Fast and Complete: Enabling Complete Neural Network Verification with
        Rapid and Massively Parallel Incomplete Verifiers", arXiv:2011.13824.
    """

    name: ClassVar[str] = "alpha_crown"
    ascends: ClassVar[bool] = True

    def samples(self, network: Network) -> int:
        """Return how many samples may be bounded at once."""
        return graphs(network)

    def walked(self, network: Network, region: Interval, effort: Effort) -> Substitution:
        """Return the network with all bounds and relaxations over a set of inputs."""
        return walked(network, region, effort)

    def solve(self, effort: Effort) -> Solve:
        """Return how rows on the logits are bounded."""
        return Ascent(effort.budget.steps)


def graphs(network: Network) -> int:
    """Return how many samples may be ascended at once, one row each."""
    return max(1, HELD // (GRAPH * network.widest))


def walked(network: Network, region: Interval, effort: Effort) -> Substitution:
    """Return the network with all bounds and relaxations, over a set of inputs.

    Intermediate bounds are ascended where the time that is left is enough for all of them; else
    they are those of a plain back-substitution, and the time goes to what rests on them.
    """
    start = time.perf_counter()
    plain = Substitution(network, region, HELD, effort.clock)
    with torch.no_grad():
        plain.forward(plainly)
        cost = (time.perf_counter() - start) * _STEP * effort.budget.steps
        left = effort.clock.left
        plain.held = HELD // GRAPH
        if left is not None and cost > left:
            return plain
        walk = Substitution(network, region, HELD // GRAPH, effort.clock, known=plain.bounds)
        walk.forward(Ascent(effort.budget.steps))
    walk.carried += plain.carried
    return walk


@dataclass(frozen=True)
class Ascent:
    """Chooses relaxations by gradient ascent, for each row on its own.

    Args:
        steps: Steps of the optimiser.
    """

    steps: int

    def __call__(self, walk: Substitution, key: Hashable, rows: Tensor | Windowed) -> Tensor:
        """Return lower bounds of rows on a value, `(N, S)`."""
        return self.best(walk, key, rows)[0]

    def best(
        self, walk: Substitution, key: Hashable, rows: Tensor | Windowed
    ) -> tuple[Tensor, dict[Hashable, Tensor]]:
        """Return the bounds, and the choices that led to each."""
        plan = Tuning(begin=_start)
        with torch.enable_grad():
            found = walk.lowest(key, rows, plan)
        best, choices = found.detach(), plan.choices
        if not choices:
            return best, {}
        kept = {each: values.detach().clone() for each, values in choices.items()}
        optimiser = torch.optim.Adam(choices.values(), lr=RATE, maximize=True)
        for _ in range(self.steps):
            ascend(optimiser, found)
            with torch.enable_grad():
                found = walk.lowest(key, rows, plan)
            better = found.detach() > best
            best = torch.where(better, found.detach(), best)
            for each, values in choices.items():
                kept[each] = torch.where(wide(better, values), values.detach(), kept[each])
        return best, kept


def wide(mask: Tensor, values: Tensor) -> Tensor:
    """Return a mask over rows, `(N, S)`, shaped to go with `(N, S, *shape)` or windows."""
    lead = 2 if values.shape[:2] == mask.shape else 3
    return mask.view(*values.shape[:lead], *[1] * (values.ndim - lead))


def _start(tunable: Tunable, rows: Tensor | Windowed) -> Tensor:
    """Return the choices at their start for rows on the operator's result."""
    if isinstance(rows, Windowed) and rows.grid.pays:
        start = rows.grid.cut(tunable.start).unsqueeze(2)
        start = start.expand(*start.shape[:2], rows.rows.shape[2], *start.shape[3:])
    else:
        count = _rows(rows)
        start = tunable.start.unsqueeze(1).expand(-1, count, *tunable.start.shape[1:])
    return start.detach().clone().requires_grad_()


def _rows(rows: Tensor | Windowed) -> int:
    """Return the number of rows of a sample."""
    return rows.rows.shape[1:3].numel() if isinstance(rows, Windowed) else rows.shape[1]


def ascend(optimiser: torch.optim.Optimizer, found: Tensor) -> None:
    """Take a step up the bounds, and stay among the choices; what is not finite stands still."""
    optimiser.zero_grad(set_to_none=True)
    with torch.enable_grad():
        torch.autograd.backward(torch.where(torch.isfinite(found), found, 0.0).sum())
    with torch.no_grad():
        every = (each.grad for group in optimiser.param_groups for each in group["params"])
        _clean([each for each in every if each is not None and each.numel()])
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] *= _DECAY
            for each in group["params"]:
                each.clamp_(*group.get("range", (0.0, 1.0)))


def _clean(gradients: list[Tensor]) -> None:
    """Set to zero what is not finite, and what is noise beside a sample's largest element.

    The optimiser divides by the size of what it gets, so that noise would count like a slope.
    """
    sizes = [peak(each.nan_to_num_(0.0, 0.0, 0.0), 1) for each in gradients]
    if not sizes:
        return
    noise = torch.stack(sizes).amax(0) * NOISE[sizes[0].dtype]
    for each in gradients:
        each.masked_fill_(each.abs() <= per_sample(noise, each), 0.0)
