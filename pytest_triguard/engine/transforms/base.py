"""The three kinds of transform, and the gradient that any of them take part in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import MEAN, Copies, Reduction, expected_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.validation import whole


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """One ingredient of a gradient estimator."""

    name: ClassVar[str]

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"transform": self.name} | values


@dataclass(frozen=True, kw_only=True)
class CopyTransform(Transform):
    """A transform of copies of each sample, over which the gradient is averaged.

    Args:
        copies: Number of copies; with several transforms, the numbers multiply.
    """

    copies: int = 1

    def __post_init__(self) -> None:
        whole("copies", self.copies, low=1)

    @abstractmethod
    def apply(self, model: Model, copies: Copies) -> Tensor:
        """Return the transformed inputs, `(m, C, H, W)`.

        Args:
            model: The network; its bounds are the valid range.
            copies: The copies; their numbers count this transform's own, and their keys are
                keys of the copies. The first tensor of their context is the radius of the ball.
        """


class PointTransform(CopyTransform):
    """Moves the point at which the gradient is taken."""

    def shared(self, inputs: Tensor) -> Tensor:
        """Return the part of the work that the copies of a sample share: what `apply` takes.

        Args:
            inputs: `(n, C, H, W)` samples, or copies that another transform moved.

        Returns:
            One row per sample, here the samples themselves.
        """
        return inputs


class InputTransform(CopyTransform):
    """Stands between the point and the network: the gradient is taken through it."""


class GradientTransform(Transform):
    """Acts on the averaged gradient."""

    @abstractmethod
    def apply(self, gradient: Tensor) -> Tensor:
        """Return the transformed gradient, `(n, C, H, W)`."""


def copies_of(transforms: Sequence[Transform]) -> int:
    """Return how many copies of each sample some transforms make together."""
    return math.prod(each.copies for each in transforms if isinstance(each, CopyTransform))


def transformed_gradient(
    model: Model,
    points: Tensor,
    classes: Tensor,
    keys: Tensor,
    objective: Objective,
    transforms: Sequence[Transform],
    *,
    context: tuple[Tensor, ...],
    reduction: Reduction = MEAN,
) -> Tensor:
    """Return the gradient of an objective averaged over transformed copies.

    Whatever their order, transforms that move the point come first, those between the point and
    the network second, and those of the gradient last, each kind in the order given.

    Args:
        model: The network.
        points: `(n, C, H, W)` on the model's device.
        classes: `(n,)` int64, handed to the objective.
        keys: `(n,)` int64 keys of the samples, seed, restart and step mixed in.
        objective: From logits and classes to one number per row.
        transforms: What is applied.
        context: Tensors `(n, ...)` that transforms need: the radius of the ball, `(n,)`, first.
        reduction: How the copies are folded into one map.

    Returns:
        `(n, C, H, W)`.
    """
    moving = [each for each in transforms if isinstance(each, PointTransform)]
    seeing = [each for each in transforms if isinstance(each, InputTransform)]
    move, see = _Chain(model, moving), _Chain(model, seeing, copies_of(moving))
    gradient = expected_gradient(
        model,
        moving[0].shared(points) if moving else points,
        classes,
        keys,
        objective,
        copies=copies_of(transforms),
        make=move if moving else None,
        through=see if seeing else None,
        context=context,
        reduction=reduction,
    )
    return shaped(gradient, transforms)


def shaped(gradient: Tensor, transforms: Sequence[Transform]) -> Tensor:
    """Return a gradient after the transforms that act on it."""
    for each in transforms:
        if isinstance(each, GradientTransform):
            gradient = each.apply(gradient)
    return gradient


@dataclass(frozen=True)
class _Chain:
    """Transforms of copies one after the other; each counts its own copies, the first fastest.

    The first is given what copies share of its work.
    """

    model: Model
    transforms: Sequence[CopyTransform]
    stride: int = 1

    def __call__(self, copies: Copies) -> Tensor:
        numbers, stride = copies.numbers, self.stride
        for place, each in enumerate(self.transforms):
            if place and isinstance(each, PointTransform):
                copies = replace(copies, inputs=each.shared(copies.inputs))
            own = torch.remainder(torch.div(numbers, stride, rounding_mode="floor"), each.copies)
            # Keyed with the number among all, so that no two copies share a draw.
            keys = draws.row_keys(copies.keys, seed=0, method=each.name, copy=numbers)
            moved = each.apply(self.model, replace(copies, keys=keys, numbers=own))
            copies = replace(copies, inputs=moved)
            stride *= each.copies
        return copies.inputs
