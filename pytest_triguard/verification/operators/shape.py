"""Rules of operators that move elements and compute nothing: bounds and rows move along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.relaxations import Affine, Carried, dot

Change = Callable[[Tensor], Tensor]


def exact(input: Interval, *args: Any, unit: float, **kwargs: Any) -> Tensor:
    """Nothing is rounded."""
    del args, unit, kwargs
    return input.lower.new_zeros(())


def identity(input: Interval) -> Interval:
    """Bounds of a value that is passed on, or copied."""
    return input


def identity_relaxation(input: Interval, *args: Any, **kwargs: Any) -> Affine:
    """The value itself."""
    del args, kwargs
    return Affine(input, lambda rows: rows, sliding=lambda rows: rows)


def dropout(
    input: Interval, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Interval:
    """Bounds of dropout that is switched off."""
    del p, inplace
    if training:
        raise Unsupported("dropout that is active")
    return input


def stochastic_depth(input: Interval, p: float, mode: str, training: bool = True) -> Interval:
    """Bounds of torchvision's stochastic depth that is switched off."""
    del mode
    return dropout(input, p, training)


def _flatten(input: Interval, start_dim: int = 0, end_dim: int = -1) -> Change:
    return lambda values: values.flatten(start_dim, end_dim)


def _reshape(input: Interval, *shape: Any) -> Change:
    sizes = listed(shape)
    if any(isinstance(size, torch.dtype) for size in sizes):
        raise Unsupported("a view as another dtype")
    return lambda values: values.reshape(sizes)


def _permute(input: Interval, *dims: Any) -> Change:
    order = listed(dims)
    return lambda values: values.permute(order)


def _transpose(input: Interval, dim0: int, dim1: int) -> Change:
    return lambda values: values.transpose(dim0, dim1)


def _unsqueeze(input: Interval, dim: int) -> Change:
    return lambda values: values.unsqueeze(dim)


def _squeeze(input: Interval, dim: Any) -> Change:
    return lambda values: values.squeeze(dim)


def moving(change: Callable[..., Change], *, ordered: bool = False) -> dict[str, Any]:
    """Return the rules of an operator that only moves elements, all with its arguments.

    Args:
        change: From the arguments to what it does with a tensor.
        ordered: Whether the elements stay in their order, so that the transpose is a view.
    """

    @wraps(change)
    def interval(input: Interval, *args: Any, **kwargs: Any) -> Interval:
        move = change(input, *args, **kwargs)
        if input.ball is not None and _moves_samples(move, input.shape):
            # A ball has a radius for each sample, and is about all of its elements together.
            input = Interval(input.lower, input.upper, positive=input.positive)
        return input.rearranged(move)

    @wraps(change)
    def relaxation(input: Interval, *args: Any, **kwargs: Any) -> Affine:
        move = change(input, *args, **kwargs)
        if ordered and move(input.known).shape[:1] == input.shape[:1]:
            return Affine(input, lambda rows: rows.reshape(*rows.shape[:2], *input.shape[1:]))
        refuse_moved_samples(move, input.shape)
        return Affine(input, put_back(move, input))

    return {
        "interval": interval,
        "relaxation": relaxation,
        "evaluation": exact,
        "aliases": True,
        "mixing": "none",
    }


def put_back(move: Change, input: Interval) -> Change:
    """Return the transpose of a change that moves elements or drops some.

    Args:
        move: The change, under which samples stay where they are.
        input: What it changes.
    """
    count = input.shape[1:].numel()
    places = torch.arange(count, device=input.lower.device).view(1, *input.shape[1:])
    index = move(places.expand(input.shape))[0].flatten()

    def back(rows: Tensor) -> Tensor:
        carried = rows.new_zeros(*rows.shape[:2], count).index_add(2, index, rows.flatten(2))
        return carried.view(*rows.shape[:2], *input.shape[1:])

    return back


def refuse_moved_samples(move: Change, shape: torch.Size) -> None:
    """Refuse a change after which samples are not the first dimension, whatever its length."""
    if _moves_samples(move, shape):
        raise Unsupported("samples that are no longer the first dimension")


def _moves_samples(move: Change, shape: torch.Size) -> bool:
    """Return whether samples are no longer the first dimension after a change."""
    sample = torch.arange(shape[0])
    moved = move(sample.view(-1, *[1] * (len(shape) - 1)).expand(shape))
    return moved.shape[:1] != sample.shape or bool((sample != moved.flatten(1).T).any())


FLATTEN = moving(_flatten, ordered=True)
RESHAPE = moving(_reshape, ordered=True)
UNSQUEEZE = moving(_unsqueeze, ordered=True)
SQUEEZE = moving(_squeeze, ordered=True)
PERMUTE = moving(_permute)
TRANSPOSE = moving(_transpose)


def cat(tensors: Any, dim: int = 0) -> Interval:
    """Bounds of `torch.cat`; parts that do not depend on the input are their own bounds."""
    values = [part for part in tensors if isinstance(part, Interval)]
    dtype = values[0].dtype
    if len(values) == len(tensors) and any(part.is_centred for part in values):
        centres, radii, rooms = zip(*(part.centred() for part in values), strict=True)
        return Interval.around(torch.cat(centres, dim), torch.cat(radii, dim), min(rooms))
    lower = [_end(part, "lower", dtype) for part in tensors]
    upper = [_end(part, "upper", dtype) for part in tensors]
    positive = len(values) == len(tensors) and all(part.positive for part in values)
    return Interval(torch.cat(lower, dim), torch.cat(upper, dim), positive=positive)


def exact_parts(tensors: Any, dim: int = 0, *, unit: float) -> Tensor:
    """Nothing is rounded."""
    del dim, unit
    first = next(part for part in tensors if isinstance(part, Interval))
    return first.lower.new_zeros(())


def cat_relaxation(tensors: Any, dim: int = 0) -> Parts:
    """The parts, side by side."""
    first = next(part for part in tensors if isinstance(part, Interval))
    along = dim % len(first.shape)
    if along == 0:
        raise Unsupported("samples side by side")
    fixed = torch.cat(
        [
            torch.zeros_like(part.lower) if isinstance(part, Interval) else part.to(first.dtype)
            for part in tensors
        ],
        along,
    )
    error = fixed.abs() * (2 * rounding.gamma(fixed[0].numel(), first.dtype))
    return Parts(tuple(tensors), along, fixed, error)


@dataclass(frozen=True)
class Parts:
    """Values side by side, as a relaxation.

    Attributes:
        parts: Values, and tensors that do not depend on the input.
        dim: The dimension along which they lie.
        fixed: The result with zeros in place of the values, `(N, *shape)`.
        error: Per unit of a coefficient, `(N, *shape)`.
    """

    piecewise: ClassVar[bool] = True

    parts: tuple[Interval | Tensor, ...]
    dim: int
    fixed: Tensor
    error: Tensor

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Hand each part its own rows."""
        sizes = [part.shape[self.dim] for part in self.parts]
        pieces = torch.split(rows, sizes, self.dim + 1)
        carried = [
            (part, piece)
            for part, piece in zip(self.parts, pieces, strict=True)
            if isinstance(part, Interval)
        ]
        constant = None if len(carried) == len(sizes) else dot(rows, self.fixed.unsqueeze(1))
        return carried, constant


def _end(part: Interval | Tensor, name: str, dtype: torch.dtype) -> Tensor:
    end: Tensor = getattr(part, name) if isinstance(part, Interval) else part.to(dtype)
    return end


def pair(size: Any) -> tuple[int, int]:
    """Return rows and columns of what is given as one number, or as one or two of them."""
    if isinstance(size, int):
        return size, size
    first, *rest = size
    return first, (rest[0] if rest else first)


def listed(sizes: tuple[Any, ...]) -> list[Any]:
    """Return sizes that are given one by one, or as one list of them."""
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else list(sizes)
