"""The largest of several values: where it is, what lies there, and the way back to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Sizes = int | tuple[int, ...]


class Maximum(ABC):
    """An operator that keeps the largest of some values, and knows which."""

    @abstractmethod
    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest values, and their places as int64 of the same shape."""

    @abstractmethod
    def at(self, values: Tensor, places: Tensor) -> Tensor:
        """Return what lies at some places."""

    @abstractmethod
    def spread(self, numbers: Tensor, like: Tensor, places: Tensor) -> Tensor:
        """Return zeros like some values, with numbers added at their places."""


class _Pool(Maximum):
    """Over windows of the last two dimensions, in which places are counted row by row."""

    def at(self, values: Tensor, places: Tensor) -> Tensor:
        """Return what lies at some places."""
        if places.ndim != 4 or places[:1].is_contiguous():  # one row may stand for all
            return values.flatten(-2).gather(-1, places.flatten(-2)).view_as(places)
        # Channels come last in memory, and so do they here.
        last = (each.permute(0, 2, 3, 1) for each in (values, places))
        table, index = (each.flatten(1, 2) for each in last)
        rows, channels, height, width = places.shape
        found = table.gather(1, index).view(rows, height, width, channels)
        return found.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class MaxPool(_Pool):
    """The arguments of `max_pool2d`, in their order; one that returns places has another name."""

    kernel_size: Sizes
    stride: Sizes | None = None
    padding: Sizes = 0
    dilation: Sizes = 1
    ceil_mode: bool = False
    return_indices: bool = False

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest of each window and its place."""
        return functional.max_pool2d_with_indices(values, *self._arguments())

    def spread(self, numbers: Tensor, like: Tensor, places: Tensor) -> Tensor:
        """Return zeros like some values, with numbers added at their places."""
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        result: Tensor = backward(numbers, like, *self._arguments(), places)
        return result

    def _arguments(self) -> tuple[Any, ...]:
        stride = self.stride or self.kernel_size
        return self.kernel_size, stride, self.padding, self.dilation, self.ceil_mode


@dataclass(frozen=True)
class AdaptiveMaxPool(_Pool):
    """The arguments of `adaptive_max_pool2d`, likewise."""

    output_size: Any
    return_indices: bool = False

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest of each window and its place."""
        return functional.adaptive_max_pool2d_with_indices(values, self.output_size)

    def spread(self, numbers: Tensor, like: Tensor, places: Tensor) -> Tensor:
        """Return zeros like some values, with numbers added at their places."""
        result: Tensor = torch.ops.aten.adaptive_max_pool2d_backward(numbers, like, places)
        return result


@dataclass(frozen=True)
class LargestAlong(Maximum):
    """The arguments of `amax`, in their order; places are counted through its dimensions.

    Of equals it is the first, which gets all that `amax` would split among them.
    """

    dim: Sizes = ()
    keepdim: bool = False

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest along the dimensions and its place."""
        found, places = self._lined_up(values).max(-1)
        if self.keepdim:
            shape = [1 if dim in self._dims(values) else n for dim, n in enumerate(values.shape)]
            found, places = found.view(shape), places.view(shape)
        return found, places

    def at(self, values: Tensor, places: Tensor) -> Tensor:
        """Return what lies at some places."""
        lines = self._lined_up(values)
        return lines.gather(-1, places.reshape(*lines.shape[:-1], 1)).view_as(places)

    def spread(self, numbers: Tensor, like: Tensor, places: Tensor) -> Tensor:
        """Return zeros like some values, with numbers added at their places."""
        lines = like.new_zeros(self._lined_up(like).shape)
        index = places.reshape(*lines.shape[:-1], 1)
        lines.scatter_(-1, index, numbers.reshape(index.shape))
        dims = self._dims(like)
        apart = lines.view(*lines.shape[:-1], *(like.shape[dim] for dim in dims))
        return apart.movedim(self._last(dims), dims)

    def _lined_up(self, values: Tensor) -> Tensor:
        """Return the values with the dimensions at the end, as one."""
        dims = self._dims(values)
        return values.movedim(dims, self._last(dims)).flatten(-len(dims))

    def _dims(self, values: Tensor) -> list[int]:
        given = [self.dim] if isinstance(self.dim, int) else self.dim or range(values.ndim)
        return [dim % values.ndim for dim in given]

    @staticmethod
    def _last(dims: list[int]) -> list[int]:
        return list(range(-len(dims), 0))


MAXIMA: dict[str, type[Maximum]] = {
    "max_pool2d": MaxPool,
    "adaptive_max_pool2d": AdaptiveMaxPool,
    "amax": LargestAlong,
}
"""By the name of the operator."""
