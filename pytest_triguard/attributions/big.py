"""Integrated gradients from the nearest point of the decision boundary."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.attacks.bim import BIM
from pytest_triguard.attacks.cw import CW
from pytest_triguard.attacks.goals import LOSSES
from pytest_triguard.attributions.base import known_logits, with_logits
from pytest_triguard.attributions.integrated_gradients import RULES, quadrature
from pytest_triguard.attributions.lines import AlongLines, Lines
from pytest_triguard.engine.geometry import l2_norm, per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.second_order import GradientMean
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import describe, number, one_of, whole

_CW_EPS = 1.0
"""Radius in which a point found by C&W counts."""


@dataclass(frozen=True, kw_only=True)
class BIG(AlongLines):
    """The displacement from the nearest boundary point times the mean gradient on the way from it.

    The boundary is that of the prediction at the sample, whatever class is explained. It is looked
    for in L2 with growing radii, and by C&W; what is found is pulled towards the sample by
    bisection until it lies on the boundary, and the nearer point is taken. A sample for which
    nothing is found has no map: NaN all over, counted by checks as "no boundary found".

    Args:
        eps: Radii in input units, rising; a sample takes the first in which its prediction
            changes.
        steps: Steps in each ball, of 2 eps / steps.
        loss: What is ascended there. The margin does not fade where the prediction is certain, as
            the cross-entropy does.
        cw_steps: Steps of the attack `cw`, with one weight of the margin, or 0 to leave it out.
        halvings: Number of bisections; 0 starts where the search ended, as the published code
            does.
        points: Number of points on the way.
        rule: Quadrature: `"midpoint"` or `"gauss_legendre"`.

    References:
        Wang et al. 2022, "Robust Models Are More Interpretable Because Attributions Look Normal",
        ICML 2022, arXiv:2103.11257, definition 5 and appendix B.
    """

    name: ClassVar[str] = "big"
    facts: ClassVar[Facts] = Facts(
        cost=f"at most {PASSES}, and 40 forward",
        sign="signed",
        axioms=("complete between boundary and sample",),
    )
    undefined_reason: ClassVar[str] = "no boundary found"
    blocks_at_once: ClassVar[int] = 4

    eps: Sequence[float] = (36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.1)
    steps: int = 40
    loss: str = "margin"
    cw_steps: int = 100
    halvings: int = 20
    points: int = 50
    rule: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eps", _radii(self.eps))
        whole("steps", self.steps, low=1)
        one_of("loss", self.loss, LOSSES)
        whole("cw_steps", self.cw_steps)
        whole("halvings", self.halvings)
        whole("points", self.points, low=1)
        one_of("rule", self.rule, RULES)

    @property
    def passes_per_sample(self) -> int:
        """Those of the search, at most, and one per point."""
        return len(self.eps) * self.steps + self.cw_steps + self.points

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        return super().parameters() | {"eps": list(self.eps)}

    def lines(self, model: Model, batch: Batch) -> Lines:
        """Return the one line from the boundary; from the sample itself where there is none."""
        places, weights = quadrature(self.rule, self.points)
        start = self.boundary(model, batch)
        return Lines(1, places, weights, lambda copies: copies.context[0], context=(start,))

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`, NaN where no boundary was found."""
        lines = self.lines(model, batch)
        maps = self.along(model, batch, lines)
        lost = (lines.context[0] == batch.inputs).flatten(1).all(1)
        return maps.masked_fill(per_row(lost, maps), torch.nan)

    def gradient_mean(self, model: Model, batch: Batch) -> GradientMean:
        """Refuse to be one: the boundary moves with the sample.

        Raises:
            InputError: Always.
        """
        return super(AlongLines, self).gradient_mean(model, batch)

    def boundary(self, model: Model, batch: Batch) -> Tensor:
        """Return the nearest boundary point of each sample, or the sample where none was found.

        Returns:
            `(n, C, H, W)`; the prediction there is another than at the sample.
        """
        batch = with_logits(model, batch)
        labels = known_logits(batch).argmax(1)
        samples = replace(batch, labels=labels, targets=None)
        searches = [self._in_balls, self._by_cw] if self.cw_steps else [self._in_balls]
        found, without = zip(*(search(model, samples) for search in searches), strict=True)
        starts = self._bisected(model, batch.inputs, labels, torch.stack(found), without)
        near = starts[0]
        for other in starts[1:]:
            nearer = _distance(other, batch.inputs) < _distance(near, batch.inputs)
            near = torch.where(per_row(nearer, near), other, near)
        return near

    def _in_balls(self, model: Model, samples: Batch) -> tuple[Tensor, list[int]]:
        """Return where the prediction changes in the smallest ball, and the places of the others.

        Those stay where they are.
        """
        found, left = samples.inputs.clone(), samples
        places = {position: place for place, position in enumerate(samples.positions)}
        lost: list[int] = []
        for eps in self.eps:
            attack = BIM(
                eps=eps, norm="l2", step_size=2 * eps / self.steps, steps=self.steps, loss=self.loss
            )
            lost = _put(found, attack.stream(model, [left]), places)
            if not lost:
                break
            left = samples.pick(lost)
        return found, lost

    def _by_cw(self, model: Model, samples: Batch) -> tuple[Tensor, list[int]]:
        """Return what C&W finds, and the places of the samples where it finds nothing."""
        found = samples.inputs.clone()
        places = {position: place for place, position in enumerate(samples.positions)}
        attack = CW(eps=_CW_EPS, steps=self.cw_steps, searches=1, constant=1.0, stop="never")
        return found, _put(found, attack.stream(model, [samples]), places)

    @torch.no_grad()
    def _bisected(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        found: Tensor,
        without: Sequence[list[int]],
    ) -> Tensor:
        """Return the points nearest to the samples, on the lines to what was found, that cross.

        Args:
            model: The network.
            inputs: `(n, C, H, W)` samples.
            labels: `(n,)` their predictions.
            found: `(searches, n, C, H, W)` points; overwritten.
            without: For each search, the places of the samples for which it found nothing.
        """
        count, flat = len(inputs), found.flatten(0, 1)
        lost = {search * count + place for search, some in enumerate(without) for place in some}
        rows = [row for row in range(len(flat)) if row not in lost]
        if not rows or not self.halvings:
            return found
        which = torch.tensor(rows).to(found.device, non_blocking=True)
        inputs, labels = inputs[which % count], labels[which % count]
        ends = flat[which]
        crossed = torch.ones_like(inputs[:, 0, 0, 0])
        kept = torch.zeros_like(crossed)
        for _ in range(self.halvings):
            middle = (kept + crossed) / 2
            points = torch.lerp(inputs, ends, per_row(middle, inputs))
            stays = model.predict(points) == labels
            kept = torch.where(stays, middle, kept)
            crossed = torch.where(stays, crossed, middle)
        nearest = torch.lerp(inputs, ends, per_row(crossed, inputs))
        return flat.index_copy_(0, which, nearest).view(found.shape)


def _put(found: Tensor, outcomes: Iterable[Outcome], places: dict[int, int]) -> list[int]:
    """Overwrite the samples whose prediction changed; return the places of the others, rising."""
    lost = []
    for outcome in outcomes:
        own = [places[position] for position in outcome.positions]
        won = [place for place, success in enumerate(outcome.success) if success]
        lost += [own[place] for place, success in enumerate(outcome.success) if not success]
        if won:
            index = torch.tensor([[own[place] for place in won], won], dtype=torch.int64)
            to, which = index.to(found.device, non_blocking=True)
            found.index_copy_(0, to, outcome.points.index_select(0, which))
    return sorted(lost)


def _distance(points: Tensor, inputs: Tensor) -> Tensor:
    """Return how far points are from the samples, `(n,)`, infinity where they are the samples."""
    distance = l2_norm(points - inputs).flatten()
    return torch.where(distance > 0, distance, torch.inf)


def _radii(eps: Any) -> tuple[float, ...]:
    """Return radii if there are any, greater than 0 and rising.

    Raises:
        InputTypeError: If it is no sequence of numbers.
        InputError: If there are none, or they are not positive or do not rise.
    """
    if not isinstance(eps, Sequence) or isinstance(eps, str):
        raise InputTypeError(f"eps must be a sequence of radii, but {describe(eps)} came")
    radii = tuple(number("eps", each, low=0, low_open=True) for each in eps)
    if not radii or any(far <= near for near, far in itertools.pairwise(radii)):
        raise InputError(f"eps must be radii that rise, one at least, but {describe(eps)} came")
    return radii
