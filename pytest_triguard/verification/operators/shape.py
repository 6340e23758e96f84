"""Interval rules of operators that move elements and compute nothing: the bounds move along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported


def identity(input: Interval) -> Interval:
    """Bounds of a value that is passed on, or copied."""
    return input


def dropout(
    input: Interval, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Interval:
    """Bounds of dropout that is switched off."""
    del p, inplace
    if training:
        raise Unsupported("dropout that is active")
    return input


def flatten(input: Interval, start_dim: int = 0, end_dim: int = -1) -> Interval:
    """Bounds of `torch.flatten`."""
    return input.rearranged(lambda values: values.flatten(start_dim, end_dim))


def reshape(input: Interval, *shape: Any) -> Interval:
    """Bounds of `Tensor.reshape` and `Tensor.view`."""
    sizes = _listed(shape)
    if any(isinstance(size, torch.dtype) for size in sizes):
        raise Unsupported("a view as another dtype")
    return input.rearranged(lambda values: values.reshape(sizes))


def permute(input: Interval, *dims: Any) -> Interval:
    """Bounds of `Tensor.permute`."""
    order = _listed(dims)
    return input.rearranged(lambda values: values.permute(order))


def transpose(input: Interval, dim0: int, dim1: int) -> Interval:
    """Bounds of `torch.transpose`."""
    return input.rearranged(lambda values: values.transpose(dim0, dim1))


def unsqueeze(input: Interval, dim: int) -> Interval:
    """Bounds of `torch.unsqueeze`."""
    return input.rearranged(lambda values: values.unsqueeze(dim))


def squeeze(input: Interval, dim: Any) -> Interval:
    """Bounds of `torch.squeeze` of named dimensions."""
    return input.rearranged(lambda values: values.squeeze(dim))


def cat(tensors: Any, dim: int = 0) -> Interval:
    """Bounds of `torch.cat`; parts that do not depend on the input are their own bounds."""
    dtype = next(part.dtype for part in tensors if isinstance(part, Interval))
    lower = [_end(part, "lower", dtype) for part in tensors]
    upper = [_end(part, "upper", dtype) for part in tensors]
    return Interval(torch.cat(lower, dim), torch.cat(upper, dim))


def _end(part: Interval | Tensor, name: str, dtype: torch.dtype) -> Tensor:
    end: Tensor = getattr(part, name) if isinstance(part, Interval) else part.to(dtype)
    return end


def _listed(sizes: tuple[Any, ...]) -> list[Any]:
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else list(sizes)
