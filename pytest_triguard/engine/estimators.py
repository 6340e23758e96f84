"""The gradient of an objective, reduced over copies of each sample.

SmoothGrad, integrated gradients and their relatives differ in how copies are made, at which
point the gradient is taken, and how the copies are reduced; the pass over samples x copies is
one and the same, and is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.engine.precision import single_or_finer


@dataclass(frozen=True)
class Copies:
    """Some copies of some samples, flattened copy by copy; row `i` of every tensor is one copy.

    Attributes:
        inputs: `(m, C, H, W)` the samples they are copies of.
        keys: `(m,)` int64 keys of those samples.
        numbers: `(m,)` int64, which copy of its sample each row is.
        context: Whatever else goes along with the samples, each `(m, ...)`.
    """

    inputs: Tensor
    keys: Tensor
    numbers: Tensor
    context: tuple[Tensor, ...] = ()

    def part(self, part: slice) -> Copies:
        """Return some rows, without a copy."""
        context = tuple(each[part] for each in self.context)
        return Copies(self.inputs[part], self.keys[part], self.numbers[part], context)


@dataclass(frozen=True)
class Line:
    """Points on straight lines that end at the samples; what is reduced are contributions.

    Attributes:
        points: `(m, C, H, W)` where the network is evaluated.
        displacement: `(m, C, H, W)` what the gradient at each point is multiplied by.
        power: Power of the gradient before that, elementwise.
    """

    points: Tensor
    displacement: Tensor
    power: int = 1

    def contributions(self, gradients: Tensor, part: slice) -> Tensor:
        """Return the displacement times the gradients of some points."""
        powers = gradients if self.power == 1 else gradients**self.power
        return powers * self.displacement[part]


MakeCopies = Callable[[Copies], Tensor | Line]
"""Makes the points at which the gradient is taken, `(m, C, H, W)`."""

SeeCopies = Callable[[Copies], Tensor]
"""Makes what the network sees of such points, `(m, C, H, W)`."""

_MADE = 2**17
"""Elements made in one go, where memory allows no less: enough to outweigh the calls themselves."""


class Reduction(Protocol):
    """Folds the gradients of the copies into one map per sample.

    The state is held in float32 at least: in lower precision, a sum of some hundred terms takes in
    no more of them.
    """

    def start(self, inputs: Tensor) -> Tensor:
        """Return the state before the first copy."""

    def add(self, state: Tensor, gradients: Tensor, points: Tensor, copies: range) -> Tensor:
        """Fold in the gradients of some copies, `(len(copies), n, C, H, W)`, and their points."""

    def finish(self, state: Tensor, copies: int) -> Tensor:
        """Return the reduced map, `(n, C, H, W)`."""


@dataclass(frozen=True)
class Mean:
    """Weighted mean of the gradients, or of their powers.

    Attributes:
        weights: One per copy, summing to one, or None for equal weights.
        power: 1 for the mean, 2 for the mean of squares.
    """

    weights: Sequence[float] | None = None
    power: int = 1

    def start(self, inputs: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(inputs, dtype=single_or_finer(inputs.dtype))

    def add(self, state: Tensor, gradients: Tensor, points: Tensor, copies: range) -> Tensor:
        """Add the weighted gradients, one copy after the other."""
        for place, copy in enumerate(copies):
            term = gradients[place]
            if self.power != 1:
                term = term.to(state.dtype) ** self.power
            if self.weights is None:
                state += term
            else:
                state.add_(term, alpha=self.weights[copy])
        return state

    def finish(self, state: Tensor, copies: int) -> Tensor:
        """Divide equal weights by their number."""
        return state.div_(copies) if self.weights is None else state


@dataclass(frozen=True)
class NonNegativeMean:
    """Mean over those groups of copies whose own mean is not negative, element by element.

    Groups are copies that follow each other; an element that no group keeps is zero.

    Attributes:
        within: Weights of the copies in a group, summing to one.
        across: Weights of the groups, of any positive sum.
    """

    within: Sequence[float]
    across: Sequence[float]

    def start(self, inputs: Tensor) -> Tensor:
        """Return zeros for what is kept, for its weight, and for the group being read."""
        return inputs.new_zeros((3, *inputs.shape), dtype=single_or_finer(inputs.dtype))

    def add(self, state: Tensor, gradients: Tensor, points: Tensor, copies: range) -> Tensor:
        """Add to the group; when it is complete, keep its mean where that is not negative."""
        kept, weight, group = state
        for place, copy in enumerate(copies):
            number, member = divmod(copy, len(self.within))
            group.add_(gradients[place], alpha=self.within[member])
            if member == len(self.within) - 1:
                weight.add_(group >= 0, alpha=self.across[number])
                kept.add_(group.relu_(), alpha=self.across[number])
                group.zero_()
        return state

    def finish(self, state: Tensor, copies: int) -> Tensor:
        """Divide what was kept by its weight."""
        kept, weight, _ = state
        return torch.where(weight > 0, kept / weight, kept)


MEAN = Mean()
MEAN_SQUARE = Mean(power=2)


def expected_gradient(
    model: Model,
    inputs: Tensor,
    classes: Tensor,
    keys: Tensor,
    objective: Objective,
    *,
    copies: int,
    make: MakeCopies | None = None,
    through: SeeCopies | None = None,
    context: tuple[Tensor, ...] = (),
    reduction: Reduction = MEAN,
) -> Tensor:
    """Return the gradient of an objective reduced over copies of each sample.

    A pass holds as many rows as the model's chunk: full blocks of samples go copy by copy, and a
    few samples take several copies at once, so that the chunk is filled either way.

    Args:
        model: The network.
        inputs: `(n, C, H, W)` on the model's device.
        classes: `(n,)` int64.
        keys: `(n,)` int64 keys of the samples, for random copies.
        objective: From logits and classes to one number per row.
        copies: Number of copies of each sample.
        make: Makes the points at which the gradient is taken, or None for the samples themselves;
            for a `Line`, contributions are reduced in place of gradients.
        through: Makes what the network sees of those points, or None for the points themselves;
            the gradient is taken through it, which brings its chain factor.
        context: Tensors `(n, ...)` that both need beside the samples, such as a baseline.
        reduction: How the copies are folded into one map.

    Returns:
        `(n, C, H, W)`.
    """
    job = _Job(model, objective, copies, make, through, reduction)
    chunk = model.chunk.rows
    maps = []
    for start in range(0, len(inputs), chunk):
        rows = slice(start, start + chunk)
        numbers = torch.zeros_like(keys[rows])
        block = Copies(inputs[rows], keys[rows], numbers, tuple(each[rows] for each in context))
        maps.append(job.reduced(block, classes[rows]))
    return maps[0] if len(maps) == 1 else torch.cat(maps)


@dataclass(frozen=True)
class _Job:
    model: Model
    objective: Objective
    copies: int
    make: MakeCopies | None
    through: SeeCopies | None
    reduction: Reduction

    def reduced(self, block: Copies, classes: Tensor) -> Tensor:
        """Return the reduced map of each sample of a block."""
        rows = len(block.inputs)
        per_pass = max(1, self.model.chunk.rows // rows)
        made = per_pass * max(1, _MADE // (per_pass * block.inputs.numel()))
        state = self.reduction.start(block.inputs)
        for first in range(0, self.copies, made):
            numbers = range(first, min(first + made, self.copies))
            state = self.folded(state, block, classes, numbers, per_pass)
        return self.reduction.finish(state, self.copies).to(block.inputs.dtype)

    def folded(
        self, state: Tensor, block: Copies, classes: Tensor, numbers: range, per_pass: int
    ) -> Tensor:
        """Make the copies with these numbers and fold them in, some in each pass."""
        rows = len(block.inputs)
        copies = repeated(block, numbers)
        made = copies.inputs if self.make is None else self.make(copies)
        points, classes = points_of(made), classes.repeat(len(numbers))
        for start in range(0, len(numbers), per_pass):
            some = numbers[start : start + per_pass]
            part = slice(start * rows, (start + len(some)) * rows)
            gradients = self.gradients(copies.part(part), points[part], classes[part])
            if isinstance(made, Line):
                gradients = made.contributions(gradients, part)
            shape = (len(some), *block.inputs.shape)
            state = self.reduction.add(state, gradients.view(shape), points[part].view(shape), some)
            del gradients  # or it would be held during the next pass
        return state

    def gradients(self, copies: Copies, points: Tensor, classes: Tensor) -> Tensor:
        def run(part: slice) -> Tensor:
            through = self.through and self.seen(self.through, copies.part(part))
            return input_gradient(
                self.model, points[part], classes[part], self.objective, through=through
            )[0]

        parts = self.model.chunk.attempt(run, len(points))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def seen(self, through: SeeCopies, copies: Copies) -> Callable[[Tensor], Tensor]:
        return lambda points: through(replace(copies, inputs=points))


def points_of(made: Tensor | Line) -> Tensor:
    """Return the points at which the network is evaluated."""
    return made.points if isinstance(made, Line) else made


def repeated(block: Copies, numbers: range) -> Copies:
    """Return the copies of a block that carry these numbers, copy by copy."""
    rows, times = len(block.inputs), len(numbers)
    which = torch.arange(numbers.start, numbers.stop, device=block.keys.device)
    if times == 1:
        return replace(block, numbers=which.expand(rows))

    def repeat(values: Tensor) -> Tensor:
        return values.repeat(times, *[1] * (values.ndim - 1))

    return Copies(
        repeat(block.inputs),
        repeat(block.keys),
        which.repeat_interleave(rows),
        tuple(repeat(each) for each in block.context),
    )
