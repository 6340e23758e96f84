"""Triggers that are a rectangle of pixels at one place of the image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.backdoors.base import PerChannel, Trigger, check_per_channel, per_channel
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import describe, one_of, whole

POSITIONS = ("top_left", "top_right", "bottom_left", "bottom_right", "center")

Pattern = PerChannel | Tensor
Window = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class PatchTrigger(Trigger):
    """A rectangle of pixels that is mixed into every image at the same place.

    Args:
        pattern: What the rectangle shows, in the units of the images and inside the bounds: one
            number, or one per channel, for a solid rectangle; a tensor `(C, h, w)`, or
            `(1, h, w)` for all channels alike; or None for the method's own pattern.
        size: Side of the rectangle, or `(height, width)`; None for the pattern's own size, or the
            method's.
        position: Where it is: `"top_left"`, `"top_right"`, `"bottom_left"`, `"bottom_right"`,
            `"center"`, or `(row, column)` of its upper left pixel.
    """

    pattern: Pattern | None = None
    size: int | tuple[int, int] | None = None
    position: str | tuple[int, int] = "bottom_right"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size(self.size)
        _check_position(self.position)
        if self.pattern is None:
            return
        if isinstance(self.pattern, Tensor):
            self._check_tensor(self.pattern)
            patch = self.pattern.detach().cpu()
        else:
            values = check_per_channel("pattern", self.pattern)
            patch = per_channel(values, torch.empty(0, dtype=torch.float64))
        self._check_range(patch)
        self.check_patch(patch)

    @property
    @abstractmethod
    def opacity(self) -> float:
        """How much of a covered pixel is the pattern's, from 0 to 1."""

    @abstractmethod
    def default_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the rectangle in images of a size."""

    @abstractmethod
    def default_patch(self, inputs: Tensor, height: int, width: int) -> Tensor:
        """Return the method's own pattern, `(C or 1, h or 1, w or 1)`."""

    @abstractmethod
    def covered(self, patch: Tensor) -> Tensor:
        """Return the pixels of a patch `(C, h, w)` that belong to the trigger, `(h, w)` bool."""

    def check_patch(self, patch: Tensor) -> None:
        """Refuse a pattern the method cannot use; by default none is refused."""

    def apply(self, inputs: Tensor) -> Tensor:
        """Return the inputs with the pattern mixed in, in new memory."""
        window, patch = self._placed(inputs)
        mixed = (1 - self.opacity) * inputs[:, :, *window] + self.opacity * patch
        poisoned = inputs.clone()
        poisoned[:, :, *window] = torch.where(self.covered(patch), mixed, inputs[:, :, *window])
        return poisoned

    def touched(self, inputs: Tensor) -> Tensor:
        """Return the pixels of the pattern, `(N, 1, H, W)` bool."""
        window, patch = self._placed(inputs)
        mask = torch.zeros_like(inputs[:, :1], dtype=torch.bool)
        mask[:, :, *window] = self.covered(patch)
        return mask

    def _placed(self, inputs: Tensor) -> tuple[Window, Tensor]:
        """Return where the rectangle is, and what it shows, `(C, h, w)`."""
        channels, rows, columns = inputs.shape[1:]
        height, width = self._size(rows, columns)
        if self.pattern is None:
            patch = self.default_patch(inputs, height, width)
        elif isinstance(self.pattern, Tensor):
            patch = self.pattern.detach().to(inputs.device, inputs.dtype)
        else:
            patch = per_channel(self.pattern, inputs)
        if len(patch) not in (1, channels):
            raise InputError(
                f"inputs must have the {len(patch)} channels of the pattern, but "
                f"{describe(inputs)} came"
            )
        return self._window(rows, columns, height, width), patch.expand(channels, height, width)

    def _size(self, rows: int, columns: int) -> tuple[int, int]:
        if self.size is None:
            if isinstance(self.pattern, Tensor):
                return self.pattern.shape[1], self.pattern.shape[2]
            return self.default_size(rows, columns)
        if isinstance(self.size, Sequence):
            return self.size[0], self.size[1]
        return self.size, self.size

    def _window(self, rows: int, columns: int, height: int, width: int) -> Window:
        top, left = self._corner(rows - height, columns - width)
        if min(top, left) < 0 or top + height > rows or left + width > columns:
            raise InputError(
                f"inputs must hold the trigger of {height} x {width} pixels at {self.position!r}, "
                f"but images of {rows} x {columns} came"
            )
        return slice(top, top + height), slice(left, left + width)

    def _corner(self, lowest: int, rightmost: int) -> tuple[int, int]:
        if not isinstance(self.position, str):
            return self.position
        if self.position == "center":
            return lowest // 2, rightmost // 2
        top = 0 if self.position.startswith("top") else lowest
        return top, 0 if self.position.endswith("left") else rightmost

    def _check_tensor(self, pattern: Tensor) -> None:
        if not pattern.dtype.is_floating_point:
            raise InputTypeError(f"pattern must be floating, but {describe(pattern)} came")
        if pattern.ndim != 3 or not pattern.numel():
            raise InputError(f"pattern must have shape (C, h, w), but {describe(pattern)} came")
        if self.size is not None and self._size(0, 0) != tuple(pattern.shape[1:]):
            raise InputError(
                f"size must be left out or agree with the pattern, but {self.size!r} came with "
                f"{describe(pattern)}"
            )

    def _check_range(self, patch: Tensor) -> None:
        low, high = (per_channel(end, patch) for end in self.bounds)
        if len({len(each) for each in (low, high, patch)} - {1}) > 1:
            raise InputError(
                f"pattern must have the {max(len(low), len(high))} channels that bounds name, but "
                f"{len(patch)} came"
            )
        if not bool(((patch >= low) & (patch <= high)).all()):
            raise InputError(
                f"pattern must lie inside bounds {self.bounds!r}, but values from "
                f"{float(patch.min()):g} to {float(patch.max()):g} came"
            )


def _check_size(size: Any) -> None:
    for side in _pair("size", size) if isinstance(size, Sequence) else (size,):
        if side is not None:
            whole("size", side, low=1)


def _check_position(position: Any) -> None:
    if isinstance(position, str) or not isinstance(position, Sequence):
        one_of("position", position, POSITIONS)
    else:
        for place in _pair("position", position):
            whole("position", place)


def _pair(name: str, value: Sequence[Any]) -> Sequence[Any]:
    if len(value) != 2 or isinstance(value, str):
        raise InputError(f"{name} must have two whole numbers, but {describe(value)} came")
    return value
