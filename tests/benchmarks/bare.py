"""The limit: a bare loop of forward and input-gradient passes, at its best batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_triguard.engine.objectives import Objective
from tests.benchmarks.timing import timed

SIZES = (16, 32, 64, 128, 256)
_ROUNDS = 5


@dataclass(frozen=True)
class Bare:
    """Passes over images and nothing else: no noise, no step, no projection, no check."""

    module: nn.Module
    inputs: Tensor
    classes: Tensor
    objective: Objective

    def run(self, passes: int, batch: int) -> None:
        """Pass every image so many times."""
        for inputs, classes in zip(
            self.inputs.split(batch), self.classes.split(batch), strict=True
        ):
            for _ in range(passes):
                points = inputs.detach().requires_grad_()
                total = self.objective(self.module(points), classes).sum()
                torch.autograd.grad(total, points)

    @torch.no_grad()
    def predict(self, batch: int) -> None:
        """Pass every image forward once."""
        for inputs in self.inputs.split(batch):
            self.module(inputs)

    def best_batch(self, sizes: Sequence[int] = SIZES) -> int:
        """Return the batch size with the shortest time per image, found in interleaved rounds."""
        best, fewest = dict.fromkeys(sizes, float("inf")), min(64, max(sizes))
        for _ in range(_ROUNDS):
            for size in sizes:
                some = Bare(self.module, *self._rows(max(size, fewest)), self.objective)
                seconds = timed(lambda size=size, some=some: some.run(1, size))[1]
                best[size] = min(best[size], seconds / len(some.inputs))
        return min(best, key=lambda size: best[size])

    def _rows(self, count: int) -> tuple[Tensor, Tensor]:
        times = -(-count // len(self.inputs))
        return self.inputs.repeat(times, 1, 1, 1)[:count], self.classes.repeat(times)[:count]
