"""What insertion and deletion share: ranking, baseline, curve and area."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine.baselines import Baseline
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.sifting import require_finite
from pytest_triguard.metrics.imputation import check_imputation, imputation
from pytest_triguard.metrics.model_metric import OutputMetric
from pytest_triguard.metrics.removal import (
    Direction,
    Removal,
    area,
    cut_points,
    random_ranks,
    ranks,
    shares,
)
from pytest_triguard.validation import flag, one_of, whole

RANKINGS = ("map", "reversed", "random")


@dataclass(frozen=True)
class Curve:
    """The output of each sample against the share of its pixels that were exchanged.

    Attributes:
        shares: `(J,)` shares of the pixels, from 0 to 1.
        values: `(N, J)` the output, NaN where the map ranks nothing.
    """

    shares: Tensor
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class RemovalCurve(OutputMetric):
    """Area under the output of the explained class while pixels are exchanged in order.

    Pixels are ordered by their attribution summed over channels; of equal ones the first in
    reading order comes first. All channels of a pixel are exchanged together. A zero map ranks
    nothing and is undefined.

    Args:
        output: As for every metric that asks the network; the probability by default, of which
            the area lies in [0, 1].
        steps: Number of equal steps at which the output is read; with more steps than pixels, it
            is read after each pixel.
        baseline: What pixels are exchanged for: `"zero"`, `"blur"`, `"noise"`, `"uniform"`,
            `"midpoint"`, or a tensor `(C, H, W)` or `(N, C, H, W)`; or `"road"`: each pixel that
            is gone becomes the mean of its neighbours, those beside it weighing 1/6 and the
            diagonal ones 1/12, with noise of a hundredth of the valid range, clipped to it.
        absolute: Whether pixels are ordered by absolute attribution or by signed.
        ranking: `"map"`, most important first (MoRF); `"reversed"`, least important first (LeRF);
            or `"random"`: the control, a random order that ignores the map.
    """

    direction: ClassVar[Direction]

    output: str = "probability"
    steps: int = 100
    baseline: Baseline = "zero"
    absolute: bool = True
    ranking: str = "map"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, low=1)
        check_imputation("baseline", self.baseline)
        flag("absolute", self.absolute)
        one_of("ranking", self.ranking, RANKINGS)

    @property
    def title(self) -> str:
        """What reports call the number."""
        control = "" if self.ranking == "map" else f" of a {self.ranking} ranking"
        return f"area under the {self.direction} curve of the {self.output}{control}"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "" if self.ranking == "random" else "zero map"

    @property
    def passes_per_sample(self) -> int:
        """One per step, at most."""
        return self.steps + 1

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(0, 1)` for the probability; other outputs are not bounded."""
        if self.output == "probability":
            return 0.0, 1.0
        return -math.inf, 0.0 if self.output == "log_probability" else math.inf

    def measure(self, model: Model, batch: Batch, maps: Tensor) -> Tensor:
        """Return the area of each sample, `(n,)`."""
        return self.areas(model, batch, maps, (self.direction,))[self.direction]

    def areas(
        self, model: Model, batch: Batch, maps: Tensor, directions: Sequence[Direction]
    ) -> dict[Direction, Tensor]:
        """Return the areas in several directions at once, each `(n,)`; they share their ends."""
        cuts = self._cuts(maps)
        curves = self._curves(model, batch, maps, directions)
        return {direction: area(curve, cuts) for direction, curve in curves.items()}

    def trace(self, model: Model, batch: Batch, maps: Tensor) -> Curve:
        """Return the curves of maps of samples with targets, on the model's device."""
        found = self._curves(model, batch, maps, (self.direction,))[self.direction]
        return Curve(self._shares(maps, found), found)

    def _curves(
        self, model: Model, batch: Batch, maps: Tensor, directions: Sequence[Direction]
    ) -> dict[Direction, Tensor]:
        """Return the curves, `(n, cuts)`, NaN where the map ranks nothing.

        Where the map ranks something and the output is NaN, as that of a network that divides by
        the norm of a black image, they are infinite: such a sample is not undefined for its map.
        """
        maps = at_least_single(maps)
        pixels = (maps.abs() if self.absolute else maps).sum(1).flatten(1)
        if self.ranking == "random":
            order = random_ranks(batch.keys, pixels.shape[1], seed=self.drawn_seed)
            ranked = torch.ones_like(pixels[:, 0], dtype=torch.bool)
        else:
            order = ranks(pixels)
            if self.ranking == "reversed":
                order = pixels.shape[1] - 1 - order
            ranked = (maps != 0).flatten(1).any(1) & pixels.isfinite().all(1)
        instead = imputation(self.baseline, model, batch, seed=self.drawn_seed)
        removal = Removal(batch, instead, order, self._cuts(maps), ranked)
        curves = removal.curves(model, self.objective, directions)
        return {
            direction: curve.masked_fill(curve.isnan(), math.inf).masked_fill(
                ~ranked.unsqueeze(1), math.nan
            )
            for direction, curve in curves.items()
        }

    def require_finite(self, values: Tensor, ids: Sequence[Hashable] | None = None) -> None:
        """Refuse areas or curves of a network whose outputs are not finite on the way.

        Args:
            values: `(N,)` or `(N, J)`, infinity where an output was not finite.
            ids: Sample ids, or None for their places.

        Raises:
            ModelError: If there is one; the first sample is named.
        """
        finite = ~values.isposinf().flatten(1).any(1) if values.ndim > 1 else ~values.isposinf()
        names = list(range(len(finite))) if ids is None else list(ids)
        require_finite(names, finite.cpu().numpy(), "outputs while pixels are exchanged")

    def curve(
        self,
        maps: Tensor,
        classifier: Any,
        inputs: Any,
        targets: Any = None,
        *,
        ids: Sequence[Hashable] | None = None,
    ) -> Curve:
        """Return the curve of each map; the arguments are those of a call.

        Returns:
            The output against the share of exchanged pixels.
        """

        def measure(model: Model, batch: Batch, some: Tensor) -> Tensor:
            return self.trace(model, batch, some).values

        values = self.over_blocks(measure, maps, classifier, inputs, targets, ids)
        return Curve(self._shares(maps, values), values)

    def _shares(self, maps: Tensor, like: Tensor) -> Tensor:
        """Return the shares of the pixels at which the output is read, `(J,)`."""
        return shares(self._cuts(maps), like)

    def _cuts(self, maps: Tensor) -> list[int]:
        return cut_points(maps.shape[2] * maps.shape[3], self.steps)
