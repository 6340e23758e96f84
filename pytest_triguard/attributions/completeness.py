"""How far maps are from summing to what they explain."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.attributions.base import Attribution
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.running import running


@dataclass(frozen=True, kw_only=True)
class Summing(Attribution):
    """A method whose maps, or the parts they are made of, sum to something known."""

    @abstractmethod
    def completeness_errors(self, model: Model, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Yield the errors of batches block by block, each `(n,)`: see `completeness_error`."""

    def completeness_error(
        self,
        classifier: Any,
        inputs: Any,
        targets: Any = None,
        *,
        ids: Sequence[Hashable] | None = None,
    ) -> Tensor:
        """Return how far each sum is from what it should be, as a fraction of that.

        Maps of methods with a baseline should sum to the change of the output from there; the
        parts of FullGrad, before they are rescaled, to the output.

        Args:
            classifier: As for the attribution itself.
            inputs: Likewise.
            targets: Likewise.
            ids: Likewise.

        Returns:
            `(N,)`, on the device of the inputs; NaN where it should be 0.
        """
        with running(classifier, inputs, ids=ids, targets=targets) as run:
            run.tune(self.passes_per_sample)
            errors = torch.cat(list(self.completeness_errors(run.model, run.samples)))
            return errors.to(run.like.device)


def shortfall(total: Tensor, expected: Tensor) -> Tensor:
    """Return the distance of each sum from what is expected, as a fraction of that, `(n,)`.

    NaN where nothing is expected: there is no fraction of 0, and no error of 0 either.
    """
    return ((total - expected).abs() / expected.abs()).masked_fill(expected == 0, math.nan)
