"""How a number read off a map changes with the input: the derivative of a gradient.

A map that is a mean of gradients is described by `GradientMean`. `pull_back` differentiates any
function of such maps, in one pass where samples x copies fit a chunk. Where they do not, the maps
are computed first, without a graph, and then differentiated some copies at a time, which is exact
and bounded by the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pytest_triguard.engine.chunking import out_of_memory
from pytest_triguard.engine.estimators import Copies, Line, MakeCopies, points_of, repeated
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import ModelError, first_line


def as_it_is(values: Tensor, copies: Copies) -> Tensor:
    """Return gradients or contributions as they are: what most maps are a mean of."""
    return values


def the_samples(copies: Copies) -> Tensor:
    """Return the samples: the points at which most maps are taken."""
    return copies.inputs


@dataclass(frozen=True)
class GradientMean:
    """A map that is a weighted mean over copies of something computed from their gradients.

    Everything is differentiable in the samples, the context included.

    Attributes:
        objective: The output whose gradient is taken.
        copies: Number of copies of each sample.
        make: Makes the points at which the network is evaluated, or a `Line`.
        term: From gradients `(m, C, H, W)`, or the contributions of a line, and the copies they
            belong to, to what is averaged.
        weights: One per copy, summing to one, or None for equal weights.
        context: Tensors `(n, ...)` that `make` and `term` need beside the samples.
    """

    objective: Objective
    copies: int = 1
    make: MakeCopies = the_samples
    term: Callable[[Tensor, Copies], Tensor] = as_it_is
    weights: Sequence[float] | None = None
    context: tuple[Tensor, ...] = ()

    @property
    def at_samples(self) -> bool:
        """Whether the network is evaluated at each sample itself and nowhere else."""
        return self.copies == 1 and self.make is the_samples


Functional = Callable[[Tensor, slice], Tensor]
"""From maps or logits of some of the samples, and which of them, to one number each, `(n,)`."""


@dataclass(frozen=True)
class Pull:
    """The derivative of a function of maps.

    Attributes:
        gradient: `(n, C, H, W)` with respect to the samples.
        curvature: `(n,)` largest absolute value of the part that comes from derivatives of
            gradients; where it is 0, the network is linear there, as far as autograd can tell.
            A function of the logits, where there is one, takes part in it.
    """

    gradient: Tensor
    curvature: Tensor


def pull_back(
    model: Model,
    batch: Batch,
    describe: Callable[[Batch], GradientMean],
    functional: Functional,
    *,
    of_logits: Functional | None = None,
) -> Pull:
    """Differentiate a function of the maps of some samples with respect to the samples.

    Costs a forward pass, a gradient and the derivative of the gradient per copy, and a second
    forward pass and gradient where the copies of one sample do not fit a chunk.

    Args:
        model: The network; for anything to come of it, one with second derivatives.
        batch: Samples on the model's device, with targets.
        describe: What the maps are, for samples that are part of an autograd graph.
        functional: Differentiable, sample by sample.
        of_logits: Likewise, of the logits at the samples, which is added; it costs nothing more,
            but asks for maps that are taken at the samples.

    Raises:
        ModelError: If autograd cannot differentiate the module twice.
    """
    while True:
        rows = model.chunk.rows
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return _in_blocks(model, batch, describe, functional, of_logits)
        except (RuntimeError, MemoryError) as error:
            if rows == 1 or not out_of_memory(error):
                raise
            model.chunk.shrink(rows)


def _in_blocks(
    model: Model,
    batch: Batch,
    describe: Callable[[Batch], GradientMean],
    functional: Functional,
    of_logits: Functional | None,
) -> Pull:
    with torch.no_grad():
        mean = describe(batch.rows(slice(0, 1)))
    if of_logits is not None and not mean.at_samples:
        raise TypeError("a function of the logits goes with maps that are taken at the samples")
    copies = mean.copies
    size = max(1, model.chunk.rows // copies)
    pulls = []
    for start in range(0, len(batch), size):
        part = slice(start, min(start + size, len(batch)))
        logits = None if of_logits is None else partial(_of_rows, of_logits, part)
        job = _Job(model, batch.rows(part), describe, partial(_of_rows, functional, part), logits)
        pulls.append(job.pull(copies))
    if len(pulls) == 1:
        return pulls[0]
    return Pull(
        torch.cat([each.gradient for each in pulls]),
        torch.cat([each.curvature for each in pulls]),
    )


def _of_rows(functional: Functional, part: slice, values: Tensor) -> Tensor:
    return functional(values, part)


@dataclass(frozen=True)
class _Sum:
    """Maps as far as they are summed, and the points and logits of the copies summed last."""

    maps: Tensor
    points: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _Job:
    """Samples of which a chunk holds all copies of each, or one sample."""

    model: Model
    batch: Batch
    describe: Callable[[Batch], GradientMean]
    functional: Callable[[Tensor], Tensor]
    of_logits: Callable[[Tensor], Tensor] | None

    def pull(self, copies: int) -> Pull:
        per_pass = max(1, self.model.chunk.rows // len(self.batch))
        if copies <= per_pass:
            return self.differentiated(range(copies), self.functional)
        passes = [
            range(first, min(first + per_pass, copies)) for first in range(0, copies, per_pass)
        ]
        maps = torch.zeros_like(self.batch.inputs)
        for numbers in passes:
            maps += self.summed(self.leaf(), numbers, graph=False).maps.detach()
        maps.requires_grad_()
        (slope,) = torch.autograd.grad(self.functional(maps).sum(), maps)
        parts = [
            self.differentiated(numbers, lambda maps: (maps * slope).flatten(1).sum(1))
            for numbers in passes
        ]
        return Pull(
            torch.stack([each.gradient for each in parts]).sum(0),
            torch.stack([each.curvature for each in parts]).amax(0),
        )

    def leaf(self) -> Tensor:
        inputs = self.batch.inputs
        inputs = inputs.clone() if inputs.is_inference() else inputs.detach()
        return inputs.requires_grad_()

    def differentiated(self, numbers: range, functional: Callable[[Tensor], Tensor]) -> Pull:
        """Differentiate a function of the sum over some copies."""
        inputs = self.leaf()
        found = self.summed(inputs, numbers, graph=True)
        total = functional(found.maps).sum()
        if self.of_logits is not None:
            total = total + self.of_logits(found.logits).sum()
        flat = torch.zeros_like(inputs)
        if not total.requires_grad:
            return Pull(flat, flat.new_zeros(len(flat)))
        gradient, through = self.twice(total, inputs, found.points)
        self.model.passes.backward += len(found.points)
        rows = through.reshape(len(numbers), len(inputs), -1).abs()
        return Pull(gradient.detach(), rows.amax((0, 2)).detach())

    def summed(self, inputs: Tensor, numbers: range, *, graph: bool) -> _Sum:
        """Return the weighted sum of the terms of some copies."""
        batch = replace(self.batch, inputs=inputs)
        if batch.targets is None:
            raise TypeError("an attribution needs targets")
        mean = self.describe(batch)
        block = Copies(inputs, batch.keys, torch.zeros_like(batch.keys), mean.context)
        copies = repeated(block, numbers)
        # A copy, so that the derivative at the points is not that at the inputs.
        made = mean.make(copies)
        points = points_of(made).clone()
        classes = batch.targets.repeat(len(numbers))
        logits = self.model.logits(points)
        total = mean.objective(logits, classes).sum()
        gradients = torch.zeros_like(points)
        if total.requires_grad:
            (found,) = torch.autograd.grad(total, points, create_graph=graph, allow_unused=True)
            gradients = gradients if found is None else found
            self.model.passes.backward += len(points)
        if isinstance(made, Line):
            gradients = made.contributions(gradients, slice(None))
        terms = mean.term(gradients, copies).reshape(len(numbers), *inputs.shape)
        if mean.weights is None:
            return _Sum(terms.sum(0) / mean.copies, points, logits)
        weighted = [term * mean.weights[copy] for term, copy in zip(terms, numbers, strict=True)]
        return _Sum(torch.stack(weighted).sum(0), points, logits)

    def twice(self, total: Tensor, inputs: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivative with respect to the inputs, and the part through the points."""
        try:
            found = torch.autograd.grad(
                total, (inputs, points), allow_unused=True, materialize_grads=True
            )
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            reason = first_line(error)
            raise ModelError(
                f"the module {type(self.model.module).__name__} must be twice differentiable for "
                f"an attack on its explanations, but autograd says: {reason}"
            ) from error
        return found[0], found[1]
