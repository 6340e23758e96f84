"""Rules of operators that pick a part of a value, or cut it into parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.operators.shape import Change, exact, moving, put_back
from pytest_triguard.verification.relaxations import Affine

Cut = Callable[[Tensor], Sequence[Tensor]]


def getitem(input: Any, index: Any) -> Any:
    """Bounds of a part of a value, or the member of a tuple of values."""
    if not isinstance(input, Interval):
        return input[index]
    return input.rearranged(_picked(input, index))


def getitem_relaxation(input: Interval, index: Any) -> Affine:
    """The part itself."""
    return Affine(input, put_back(_picked(input, index), input))


def _picked(input: Interval, index: Any) -> Change:
    """Return the change that indexing makes, which must leave all samples where they are."""
    entries = index if isinstance(index, tuple) else (index,)
    for entry in entries:
        if not (entry is None or entry is Ellipsis or isinstance(entry, int | slice)):
            raise Unsupported(f"an index of type {type(entry).__name__}")
    taken = sum(entry is not None and entry is not Ellipsis for entry in entries)
    spared = entries[:1] == (Ellipsis,) and taken < len(input.shape)
    if not spared and entries[:1] != (slice(None),):
        raise Unsupported("an index that picks samples")
    return lambda values: values[index]


def _chunk(input: Interval, chunks: int, dim: int = 0) -> Cut:
    _refuse_samples(input, dim)
    return lambda values: values.chunk(chunks, dim)


def _split(input: Interval, split_size_or_sections: Any, dim: int = 0) -> Cut:
    _refuse_samples(input, dim)
    return lambda values: torch.split(values, split_size_or_sections, dim)


def _tensor_split(input: Interval, indices_or_sections: Any, dim: int = 0) -> Cut:
    _refuse_samples(input, dim)
    return lambda values: values.tensor_split(indices_or_sections, dim)


def _unbind(input: Interval, dim: int = 0) -> Cut:
    _refuse_samples(input, dim)
    return lambda values: values.unbind(dim)


def _refuse_samples(input: Interval, dim: int) -> None:
    if dim % len(input.shape) == 0:
        raise Unsupported("samples that are taken apart")


def _cutting(cut: Callable[..., Cut]) -> dict[str, Any]:
    """Return the rules of an operator that cuts a value into several, all with its arguments."""

    @wraps(cut)
    def interval(input: Interval, *args: Any, **kwargs: Any) -> tuple[Interval, ...]:
        parts = cut(input, *args, **kwargs)
        return tuple(input.rearranged(_part(parts, place)) for place in _places(input, parts))

    @wraps(cut)
    def relaxation(input: Interval, *args: Any, **kwargs: Any) -> tuple[Affine, ...]:
        parts = cut(input, *args, **kwargs)
        return tuple(
            Affine(input, put_back(_part(parts, place), input)) for place in _places(input, parts)
        )

    return {
        "interval": interval,
        "relaxation": relaxation,
        "evaluation": exact,
        "aliases": True,
        "mixing": "none",
    }


def _places(input: Interval, parts: Cut) -> range:
    return range(len(parts(input.lower)))


def _part(parts: Cut, place: int) -> Change:
    return lambda values: parts(values)[place]


def _select(input: Interval, dim: int, index: int) -> Change:
    _refuse_samples(input, dim)
    return lambda values: values.select(dim, index)


def _narrow(input: Interval, dim: int, start: int, length: int) -> Change:
    _refuse_samples(input, dim)
    return lambda values: values.narrow(dim, start, length)


GETITEM: dict[str, Any] = {
    "interval": getitem,
    "relaxation": getitem_relaxation,
    "evaluation": exact,
    "aliases": True,
    "many": True,
    "mixing": "none",
}
CHUNK = _cutting(_chunk)
SPLIT = _cutting(_split)
TENSOR_SPLIT = _cutting(_tensor_split)
UNBIND = _cutting(_unbind)
SELECT = moving(_select)
NARROW = moving(_narrow)
