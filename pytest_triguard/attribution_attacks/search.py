"""The search for a map that has moved: stepped on a smooth stand-in, judged on the network."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pytest_triguard.attributions.base import known_logits, with_logits, with_targets
from pytest_triguard.engine import draws
from pytest_triguard.engine.geometry import Norm, ascent, per_row, project, random_offset, stepped
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.second_order import Functional, pull_back
from pytest_triguard.engine.smoothing import Surrogate

if TYPE_CHECKING:
    from pytest_triguard.attribution_attacks.base import AttributionAttack

Aim = dict[str, Tensor]
"""What an attack goes by, fixed by the maps of the samples; `maps` are those maps."""


@dataclass(frozen=True)
class Outcome:
    """A block of samples whose attack is over; all tensors on the model's device.

    Attributes:
        batch: The samples, with targets and logits.
        maps: `(n, C, H, W)` their maps.
        points: `(n, C, H, W)` the worst iterates that keep the prediction, or the samples.
        success: `(n,)` bool.
        measure: `(n,)` criterion between the maps of samples and points.
        kept: `(n,)` bool, whether any iterate kept the prediction.
        flat: `(n,)` bool, whether no gradient had a derivative.
        distance: `(n,)` distance of the points from the samples.
        broken: `(n,)` bool, whether the search met NaN.
    """

    batch: Batch
    maps: Tensor
    points: Tensor
    success: Tensor
    measure: Tensor
    kept: Tensor
    flat: Tensor
    distance: Tensor
    broken: Tensor

    @property
    def targets(self) -> Tensor:
        """The class whose explanation was attacked, `(n,)`."""
        if self.batch.targets is None:
            raise TypeError("a sample that was explained has a target")
        return self.batch.targets

    @property
    def stuck(self) -> Tensor:
        """Whether the attack had nothing to go by and found nothing, `(n,)` bool."""
        return self.flat & ~self.success


@dataclass
class Steps:
    """How iterates move: by steps of steepest ascent, projected into ball and range.

    Attributes:
        clean: `(n, C, H, W)` the samples.
        eps: `(n,)` radii.
        norm: Norm of the ball.
        bounds: Valid range.
        length: `(n,)` length of a step.
    """

    clean: Tensor
    eps: Tensor
    norm: Norm
    bounds: tuple[Tensor, Tensor]
    length: Tensor

    def move(self, points: Tensor, gradient: Tensor) -> Tensor:
        """Return the next iterates."""
        direction = ascent(gradient, self.norm)
        return stepped(points, direction, self.length, self.clean, self.eps, self.norm, self.bounds)


@dataclass
class Adam(Steps):
    """Steps of Adam, element by element, projected into ball and range.

    References:
        Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980,
        algorithm 1, with its defaults.
    """

    taken: int = 0
    moments: list[Tensor] = field(default_factory=list)

    def move(self, points: Tensor, gradient: Tensor) -> Tensor:
        """Return the next iterates."""
        first, second, tiny = 0.9, 0.999, 1e-8
        if not self.taken:
            self.moments = [torch.zeros_like(points), torch.zeros_like(points)]
        self.taken += 1
        mean, square = self.moments
        mean.mul_(first).add_(gradient, alpha=1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = (square / (1 - second**self.taken)).sqrt().add_(tiny)
        direction = mean / (1 - first**self.taken) / scale
        return stepped(points, direction, self.length, self.clean, self.eps, self.norm, self.bounds)


def shares(maps: Tensor) -> Tensor:
    """Return the share of each pixel in a map, `(n, H, W)` of mean 1; of a zero map zeros.

    Args:
        maps: `(n, C, H, W)`; the absolute values are summed over channels. Differentiable.
    """
    pixels = maps.abs().sum(1)
    total = pixels.mean((1, 2), keepdim=True)
    return pixels / torch.where(total > 0, total, torch.ones_like(total))


def share_of(shares: Tensor, pixels: Tensor) -> Tensor:
    """Return the sum of the shares of some pixels, `(n,)`; differentiable.

    All pixels have the same sum whatever the map, so that theirs has no derivative, not even that
    of its rounding, whose sign a step would follow.

    Args:
        shares: `(n, ...)` from `shares`.
        pixels: Bool of that shape.
    """
    total = (shares * pixels).flatten(1).sum(1)
    return torch.where(pixels.flatten(1).all(1), total.detach(), total)


def attacked(model: Model, block: Batch, attack: AttributionAttack, eps: Tensor) -> Outcome:
    """Attack a block of samples on the model's device, without a read from it.

    Args:
        model: The network.
        block: The samples.
        attack: The attack, with a seed of its own.
        eps: `(n,)` radii on the device.
    """
    search = _Search(model, with_logits(model, with_targets(model, block)), attack, eps)
    for restart in range(attack.restarts):
        points = search.start(restart)
        steps = attack.steps_of(model, search.batch, eps)
        for step in range(attack.steps):
            points = steps.move(points, search.gradient(points, step))
            search.judge(points)
    return search.outcome()


class _Search:
    """One block of samples, what is known of their maps, and the worst iterates so far."""

    def __init__(self, model: Model, batch: Batch, attack: AttributionAttack, eps: Tensor) -> None:
        self.model, self.batch, self.attack, self.eps = model, batch, attack, eps
        self.explained = attack.explained
        self.before = known_logits(batch)
        self.predicted = self.before.argmax(1)
        self.maps = self.explained.explain(model, batch)
        self.together = attack.weighs_outputs and self.at_samples()
        self.aim: Aim = attack.aim(self.maps, batch) | {"maps": self.maps}
        self.original = attack.measure(self.maps, self.aim)
        self.points = batch.inputs.clone()
        self.measure = self.original.clone()
        self.kept = torch.zeros_like(self.predicted, dtype=torch.bool)
        self.broken = torch.zeros_like(self.kept)
        self.curvature = torch.zeros_like(self.original)

    @torch.no_grad()
    def at_samples(self) -> bool:
        """Return whether the maps are gradients at the samples themselves."""
        return self.explained.gradient_mean(self.model, self.batch.rows(slice(0, 1))).at_samples

    def start(self, restart: int) -> Tensor:
        """Return the points a start begins with."""
        clean, attack = self.batch.inputs, self.attack
        if not attack.random_start:
            return clean
        keys = draws.row_keys(
            self.batch.keys,
            seed=attack.drawn_seed,
            method=f"attribution_attacks/{attack.name}/start",
            restart=restart,
        )
        offset = random_offset(keys, clean, self.eps, attack.norm)
        bounds = self.model.bounds(clean.dtype)
        return project(clean + offset, clean, self.eps, attack.norm, bounds)

    def gradient(self, points: Tensor, step: int) -> Tensor:
        """Return the derivative of what the attack ascends, on the smooth stand-in."""
        surrogate = Surrogate(self.model, self.attack.beta_at(step))
        batch = replace(self.batch, inputs=points, logits=None)

        def of_maps(maps: Tensor, part: slice) -> Tensor:
            aim = {name: values[part] for name, values in self.aim.items()}
            return self.attack.objective(shares(maps), aim)

        def of_logits(logits: Tensor, part: slice) -> Tensor:
            return self.attack.on_outputs(logits, self.before[part])

        # One pass for both does not tell the curvature, which the first step has told by then.
        together = self.together and step > 0
        pull = pull_back(
            surrogate,
            batch,
            lambda rows: self.explained.gradient_mean(surrogate, rows),
            of_maps,
            of_logits=of_logits if together else None,
        )
        gradient = pull.gradient
        if not together:
            self.curvature = torch.maximum(self.curvature, pull.curvature)
            if self.attack.weighs_outputs:
                gradient = gradient + self.through_outputs(surrogate, points, of_logits)
        self.broken |= gradient.isnan().flatten(1).any(1)
        return gradient

    def through_outputs(self, surrogate: Model, points: Tensor, of_logits: Functional) -> Tensor:
        """Return the gradient of what the attack ascends of the logits, in passes of its own."""

        def run(part: slice) -> Tensor:
            return input_gradient(
                surrogate,
                points[part],
                self.predicted[part],
                lambda logits, _: of_logits(logits, part),
            )[0]

        return torch.cat(self.model.chunk.attempt(run, len(points)))

    def judge(self, points: Tensor) -> None:
        """Keep the points whose map is the worst so far and whose prediction is unchanged."""
        batch = replace(self.batch, inputs=points, logits=None)
        maps, logits = self.explained.explain_and_predict(self.model, batch)
        measure = self.attack.measure(maps, self.aim)
        larger = self.attack.worse_is_larger
        worse = measure > self.measure if larger else measure < self.measure
        unchanged = logits.argmax(1) == self.predicted
        better = unchanged & worse
        self.points = torch.where(per_row(better, points), points, self.points)
        self.measure = torch.where(better, measure, self.measure)
        self.kept |= unchanged
        self.broken |= logits.isnan().any(1)

    def outcome(self) -> Outcome:
        """Return what came of it."""
        change = (self.measure - self.original).abs()
        # A change within rounding is none.
        slack = 64 * torch.finfo(change.dtype).eps * (1 + self.original.abs())
        offset = (self.points - self.batch.inputs).flatten(1)
        order = torch.inf if self.attack.norm == "linf" else 2
        return Outcome(
            self.batch,
            self.maps,
            self.points,
            change > self.attack.least_change + slack,
            self.measure,
            self.kept,
            self.curvature == 0,
            torch.linalg.vector_norm(offset, order, dim=1),
            self.broken,
        )
