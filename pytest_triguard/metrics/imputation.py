"""What stands in for pixels that are taken away: a baseline, or what their neighbours suggest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.engine import draws
from pytest_triguard.engine.baselines import (
    BASELINES,
    Baseline,
    baseline_inputs,
    check_baseline,
)
from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.engine.samples import Batch
from pytest_triguard.validation import one_of

ROAD = "road"
"""Name of the imputation from neighbours."""

_NOISE = 0.01
"""Standard deviation of the noise on imputed pixels, as a share of the valid range."""

_TOLERANCE = 1e-6
"""How far, as a share of the valid range, an imputed pixel may be from its neighbours' mean."""

_EVERY = 8
"""Iterations between two looks at which states are done, where looking costs nothing."""


class Imputation(Protocol):
    """Stands in for the pixels that are gone."""

    def changes(self, inputs: Tensor) -> Tensor:
        """Return which pixels can be told from what stands in for them, `(n, P)` bool."""

    def fill(self, inputs: Tensor, shown: Tensor, samples: Tensor) -> Tensor:
        """Return some samples of which some pixels are shown.

        Args:
            inputs: `(m, C, H, W)` the samples.
            shown: `(m, 1, H, W)` bool.
            samples: `(m,)` int64 their places in the batch.

        Returns:
            `(m, C, H, W)`.
        """


@dataclass(frozen=True)
class Fixed:
    """A baseline that does not depend on what is shown.

    Attributes:
        baseline: `(n, C, H, W)`.
    """

    baseline: Tensor

    def changes(self, inputs: Tensor) -> Tensor:
        """Return where the samples differ from the baseline."""
        return (inputs != self.baseline).any(1).flatten(1)

    def fill(self, inputs: Tensor, shown: Tensor, samples: Tensor) -> Tensor:
        """Put the baseline where nothing is shown."""
        return torch.where(shown, inputs, self.baseline[samples])


@dataclass(frozen=True)
class FromNeighbours:
    """Noisy linear imputation: each pixel that is gone is the mean of its neighbours, and noise.

    Neighbours beside a pixel weigh twice as much as diagonal ones; those outside the image weigh
    nothing. Neighbours that are gone too are imputed with it, as one linear system for each state.
    Where no pixel is shown, each channel is its mean over the sample.

    Attributes:
        low: Lower end of the valid range, `(1, C or 1, 1, 1)`.
        high: Upper end.
        noise: `(n, C, H, W)` noise of each sample, the same for all its states.
    """

    low: Tensor
    high: Tensor
    noise: Tensor

    def changes(self, inputs: Tensor) -> Tensor:
        """Return that all pixels can be told."""
        return inputs.new_ones(len(inputs), inputs[0, 0].numel(), dtype=torch.bool)

    def fill(self, inputs: Tensor, shown: Tensor, samples: Tensor) -> Tensor:
        """Solve for the pixels that are gone, add noise to them, and clip to the valid range."""
        solved = harmonic(inputs, shown, tolerance=_TOLERANCE * (self.high - self.low))
        noisy = solved + self.noise[samples]
        return torch.where(shown, inputs, noisy.clamp(self.low, self.high))


def imputation(chosen: Baseline, model: Model, batch: Batch, *, seed: int) -> Imputation:
    """Return what stands in for the pixels of a batch.

    Args:
        chosen: `"road"`, or a baseline as `baseline_inputs` takes it.
        model: The network; its bounds are the range.
        batch: Samples on the model's device.
        seed: Seed of what is drawn.
    """
    if isinstance(chosen, str) and chosen == ROAD:
        inputs = batch.inputs
        low, high = model.bounds(inputs.dtype)
        keys = draws.row_keys(batch.keys, seed=seed, method=ROAD)
        noise = draws.normal(keys, inputs.shape[1:], dtype=inputs.dtype)
        return FromNeighbours(low, high, noise * (_NOISE * (high - low)))
    return Fixed(baseline_inputs(chosen, model, batch, seed=seed))


def check_imputation(name: str, chosen: object) -> None:
    """Refuse what `imputation` does not take.

    Raises:
        InputTypeError: If the type is wrong.
        InputError: If the name is unknown, or the tensor has no usable shape or is not finite.
    """
    if isinstance(chosen, str):
        one_of(name, chosen, (*BASELINES, ROAD))
    else:
        check_baseline(name, chosen)


def harmonic(inputs: Tensor, shown: Tensor, *, tolerance: Tensor) -> Tensor:
    """Return images in which each pixel that is gone is the mean of its neighbours.

    The system is symmetric and positive definite, so conjugate gradients solve it in place, all
    images and channels at once, without a matrix. Each stops when no pixel is farther from the
    mean of its neighbours than the tolerance, which is told on the device, so that none depends on
    others; and all after `2 (H + W)` iterations.

    Args:
        inputs: `(m, C, H, W)`.
        shown: `(m, 1, H, W)` bool, the pixels that are known.
        tolerance: Broadcast to `(m, C, 1, 1)`.

    Returns:
        `(m, C, H, W)`; pixels that are shown are as they were.
    """
    values = at_least_single(inputs)
    gone, known = (~shown).to(values.dtype), shown.to(values.dtype)
    weight = _around(torch.ones_like(values[:1, :1]))
    some = shown.flatten(1).any(1).view(-1, 1, 1, 1)
    seen = torch.where(some, known, torch.ones_like(known))
    mean = (values * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
    solved = torch.where(shown, values, mean)
    residual = gone * (_around(solved) - weight * solved)
    direction, energy = torch.zeros_like(solved), torch.ones_like(mean)
    for step in range(2 * sum(inputs.shape[2:])):
        scaled = residual / weight
        active = scaled.abs().amax((2, 3), keepdim=True) > tolerance
        if step % _EVERY == 0 and is_host(inputs.device) and not bool(active.any()):
            break
        before, energy = energy, (residual * scaled).sum((2, 3), keepdim=True)
        direction = torch.where(active, scaled + energy / before * direction, 0.0)
        moved = gone * (weight * direction - _around(direction))
        size = energy / (direction * moved).sum((2, 3), keepdim=True)
        size = torch.where(active, size, 0.0)
        solved = solved + size * direction
        residual = residual - size * moved
    return solved.to(inputs.dtype)


def _around(values: Tensor) -> Tensor:
    """Return the sum of the neighbours of each pixel, 1/6 beside it and 1/12 diagonally.

    Slices do it several times faster than a convolution of one channel.
    """
    padded = functional.pad(values, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + padded[:, :, 2:]
    rows.add_(padded[:, :, 1:-1], alpha=2)
    total = rows[..., :-2] + rows[..., 2:]
    total.add_(rows[..., 1:-1], alpha=2)
    return total.sub_(values, alpha=4).div_(12)
