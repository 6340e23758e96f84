"""Metrics that ask the network: maps are held against what it predicts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.attributions.base import with_targets
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective, explained
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import InputError
from pytest_triguard.metrics.base import Metric, check_maps
from pytest_triguard.running import Run, running
from pytest_triguard.settings import current_settings
from pytest_triguard.validation import describe, whole


@dataclass(frozen=True, kw_only=True)
class ModelMetric(Metric):
    """A number for each map, its sample, and the network that was explained.

    Args:
        seed: Seed of random draws, or None for the session's.
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        if self.seed is not None:
            whole("seed", self.seed)

    @property
    @abstractmethod
    def passes_per_sample(self) -> int:
        """Most forward passes a sample takes; the chunk is chosen by it."""

    @abstractmethod
    def measure(self, model: Model, batch: Batch, maps: Tensor) -> Tensor:
        """Return the numbers, `(n,)`, of maps of samples with targets, on the model's device."""

    @property
    def drawn_seed(self) -> int:
        """The seed in force: the metric's own, else the session's."""
        return current_settings().seed if self.seed is None else self.seed

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        return super().parameters() | {"seed": self.drawn_seed}

    def __call__(
        self,
        maps: Tensor,
        classifier: Any,
        inputs: Any,
        targets: Any = None,
        *,
        ids: Sequence[Hashable] | None = None,
    ) -> Tensor:
        """Return the number of each map.

        Args:
            maps: `(N, C, H, W)` floating, in the order of the inputs.
            classifier: The `Classifier` that was explained.
            inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
            targets: Class that was explained, one for all or `(N,)`; None for the labels a loader
                brings, else the prediction.
            ids: One unique id per sample, which random draws are keyed with; default: its place.

        Returns:
            `(N,)` in the dtype and on the device of the maps, NaN where undefined.

        Raises:
            InputTypeError: If something has the wrong type.
            InputError: If a value is refused, or the maps do not go with the inputs.
            ModelError: If the module breaks what a classifier promises.
        """
        return self.over_blocks(self.measure, maps, classifier, inputs, targets, ids)

    def over_blocks(
        self,
        measure: Callable[[Model, Batch, Tensor], Tensor],
        maps: Tensor,
        classifier: Any,
        inputs: Any,
        targets: Any,
        ids: Sequence[Hashable] | None,
    ) -> Tensor:
        """Return what is measured of each map, block by block; the rest is as for a call.

        Args:
            measure: From the network, samples with targets and their maps to `(n, ...)`.
            maps: As for a call.
            classifier: Likewise.
            inputs: Likewise.
            targets: Likewise.
            ids: Likewise.

        Returns:
            `(N, ...)` in the dtype and on the device of the maps.
        """
        maps = check_maps("maps", maps)
        with running(classifier, inputs, ids=ids, targets=targets) as run:
            parts = [measure(run.model, batch, some) for batch, some in self.blocks(run, maps)]
        values = torch.cat(parts)
        self.require_finite(values)
        return values.to(maps.device, maps.dtype)

    def require_finite(self, values: Tensor) -> None:
        """Refuse what the network's outputs made of the numbers, `(N, ...)`; nothing by default.

        Raises:
            ModelError: If outputs that the metric asked for are not finite.
        """

    def blocks(self, run: Run, maps: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """Yield samples on the device, their targets filled in, and their maps.

        Raises:
            InputError: If the maps do not go with the inputs.
        """
        if maps.shape[1:] != run.like.shape[1:]:
            raise InputError(
                f"maps must have shape (N, {', '.join(map(str, run.like.shape[1:]))}) to go with "
                f"the inputs, but {describe(maps)} came"
            )
        run.tune(self.passes_per_sample)
        seen = 0
        for block in Feed(run.samples, run.model.device).blocks(run.model.chunk.rows):
            seen += len(block)
            if seen > len(maps):
                break
            rows = torch.tensor(block.positions, device=maps.device)
            some = maps.index_select(0, rows).to(run.model.device, block.inputs.dtype)
            yield with_targets(run.model, block), some
        if seen != len(maps):
            raise InputError(
                f"maps must hold one map per sample, but {len(maps)} came and the samples are "
                f"{'more' if seen > len(maps) else seen}"
            )


@dataclass(frozen=True, kw_only=True)
class OutputMetric(ModelMetric):
    """A number that holds a map against an output of the network.

    Args:
        output: The output that is followed: `"logit"`, `"probability"`, `"log_probability"` or
            `"contrast"` (the logit against the others, weighted by their softmax).
    """

    output: str = "logit"

    def __post_init__(self) -> None:
        super().__post_init__()
        explained(self.output)

    @property
    def objective(self) -> Objective:
        """The output that is followed."""
        return explained(self.output)


@torch.no_grad()
def over_copies(
    model: Model, batch: Batch, copies: int, evaluate: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return what is found for some copies of each sample, a chunk of copies at a time.

    Args:
        model: The network; its chunk is how many copies are made at once.
        batch: The samples.
        copies: Copies of each sample.
        evaluate: From the places of samples in the batch and the numbers of copies, both `(m,)`
            int64, to `(m, ...)`.

    Returns:
        `(n, copies, ...)`.
    """
    rows = torch.arange(len(batch) * copies, device=model.device)
    found = model.chunk.map(lambda some: evaluate(some // copies, some % copies), rows)
    return found.view(len(batch), copies, *found.shape[1:])
