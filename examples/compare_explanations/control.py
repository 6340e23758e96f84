"""The control: a map that knows neither the image nor the network."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attributions import Attribution
from pytest_triguard.engine import draws


@dataclass(frozen=True, kw_only=True)
class RandomRanking(Attribution):
    """Pixels in random order; whatever explains anything has to beat it."""

    name: ClassVar[str] = "random"
    kind: ClassVar[str] = "difference"

    @property
    def passes_per_sample(self) -> int:
        """None."""
        return 0

    def explain(self, model: object, batch: object) -> Tensor:
        """Return normal numbers, drawn anew for every sample."""
        inputs = batch.inputs
        keys = draws.row_keys(batch.keys, seed=self.drawn_seed, method=self.name)
        return draws.normal(keys, inputs.shape[1:], dtype=inputs.dtype)
