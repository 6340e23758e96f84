"""Gradients along straight lines from references to the sample, times the displacement."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.base import Attribution, known_targets
from pytest_triguard.engine.estimators import (
    Copies,
    Line,
    Mean,
    NonNegativeMean,
    Reduction,
    expected_gradient,
)
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.second_order import GradientMean
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import describe, one_of

KEPT = ("all", "valid_references", "valid_points")
MODES = ("canonical", "reference")


@dataclass(frozen=True)
class Lines:
    """Lines to each sample, and where on them gradients are taken.

    Attributes:
        count: Number of references of each sample; each is the start of a line.
        places: Place of each point on a line, from 0 at the reference to 1 at the sample, or a
            function that draws one for each copy.
        weights: Weight of each point on a line, summing to one.
        start: Returns the reference of each copy, whose number is that of the line.
        context: Tensors `(n, ...)` that `start` needs beside the samples.
        power: Power of the gradient.
        share: Returns what the contribution of each copy is multiplied by, `(m,)`, whose number is
            that of the line, or None for one.
    """

    count: int
    places: list[float] | Callable[[Copies], Tensor]
    weights: list[float]
    start: Callable[[Copies], Tensor]
    context: tuple[Tensor, ...] = ()
    power: int = 1
    share: Callable[[Copies], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class AlongLines(Attribution):
    """The displacement from references times the mean gradient on the lines from them.

    Args:
        keep: Which contributions are averaged: `"all"`; `"valid_references"`, those references
            whose contribution to an element is not negative; `"valid_points"`, those points. Maps
            of the last two are never negative, and sum to nothing in particular.
        mode: `"reference"` weights the points that `"valid_points"` keeps by what is left of the
            line behind them, divided by the number of points, as published code does;
            `"canonical"` weights them like all points, so that nothing changes where all are
            valid. Elsewhere both are one.

    References:
        Yang et al. 2023, "Re-calibrating Feature Attributions for Model Interpretation", ICLR
        2023, section 4, for the choice of contributions.
    """

    kind: ClassVar[str] = "integration"

    keep: str = "all"
    mode: str = "canonical"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("keep", self.keep, KEPT)
        one_of("mode", self.mode, MODES)

    @abstractmethod
    def lines(self, model: Model, batch: Batch) -> Lines:
        """Return the lines to the samples of a batch."""

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        return self.along(model, batch, self.lines(model, batch))

    def along(self, model: Model, batch: Batch, lines: Lines) -> Tensor:
        """Return the maps that integrate along some lines, `(n, C, H, W)`."""
        return expected_gradient(
            model,
            batch.inputs,
            known_targets(batch),
            batch.keys,
            self.objective,
            copies=lines.count * len(lines.weights),
            make=self._maker(lines, batch),
            context=lines.context,
            reduction=self._reduction(lines),
        )

    def gradient_mean(self, model: Model, batch: Batch) -> GradientMean:
        """Return the mean of the contributions of all points.

        Raises:
            InputError: If only valid contributions are kept: what is kept changes by jumps.
        """
        if self.keep != "all":
            raise InputError(
                f"keep must be 'all' for an attack through the map, but {self.keep!r} came"
            )
        lines = self.lines(model, batch)
        weights = [weight / lines.count for weight in lines.weights] * lines.count
        return GradientMean(
            self.objective,
            len(weights),
            self._maker(lines, batch),
            weights=weights if len(set(weights)) > 1 else None,
            context=lines.context,
        )

    def _maker(self, lines: Lines, batch: Batch) -> Callable[[Copies], Line]:
        points, inputs = len(lines.weights), batch.inputs
        places = lines.places
        if isinstance(places, list):
            along = torch.tensor(places, dtype=inputs.dtype).to(inputs.device)
        shrinks = self.keep == "valid_points" and self.mode == "reference"

        def make(copies: Copies) -> Line:
            # The points of a line follow each other, so that line and place are never mixed up.
            line = copies.numbers // points
            own = along[copies.numbers % points] if isinstance(places, list) else places(copies)
            of_line = Copies(copies.inputs, copies.keys, line, copies.context)
            start = lines.start(of_line)
            place = per_row(own, start)
            displacement = copies.inputs - start
            made = torch.addcmul(start, displacement, place)
            if lines.share is not None:
                displacement = displacement * per_row(lines.share(of_line), displacement)
            if shrinks:
                displacement = displacement * ((1 - place) / points)
            return Line(made, displacement, lines.power)

        return make

    def _reduction(self, lines: Lines) -> Reduction:
        points, count = lines.weights, lines.count
        if self.keep == "valid_references":
            return NonNegativeMean(within=points, across=[1.0] * count)
        if self.keep == "valid_points":
            return NonNegativeMean(within=[1.0], across=points * count)
        return Mean([weight / count for weight in points] * count)


def recalibrated(
    method: Attribution, *, keep: str = "valid_references", mode: str = "canonical"
) -> Attribution:
    """Return a method that averages valid contributions only.

    Args:
        method: A method that integrates from references: `integrated_gradients`, `ig_uniform`,
            `ig_sg`, `ig_sq` or `expected_gradients`.
        keep: `"valid_references"`, the mean over those references whose contribution to an element
            is not negative, or `"valid_points"`, over those points.
        mode: `"reference"` weights valid points as published code does; see the methods.

    Returns:
        The method with these hyperparameters; its maps are never negative.

    Raises:
        InputTypeError: If the method is another.
        InputError: If `keep` or `mode` is unknown.

    References:
        Yang et al. 2023, "Re-calibrating Feature Attributions for Model Interpretation", ICLR
        2023, section 4.
    """
    if not isinstance(method, AlongLines):
        raise InputTypeError(
            "method must integrate from references, such as integrated_gradients, but "
            f"{describe(getattr(method, 'name', method))} came"
        )
    one_of("keep", keep, KEPT[1:])
    return replace(method, keep=keep, mode=mode)
