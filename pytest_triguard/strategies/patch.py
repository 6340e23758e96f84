"""Patches: what may stand where a mask is True."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pytest_triguard.backdoors.base import per_channel
from pytest_triguard.classifier import PerChannel, read_bounds
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.strategies.strokes import LEVELS, Stroke, capped, paint, paintings
from pytest_triguard.validation import describe, whole


class Patch:
    """Content for some pixels, and which pixels; call it to put it on images.

    Args:
        content: `(C or 1, H, W)` on the host, inside the bounds.
        mask: `(N or 1, 1, H, W)` bool on the host.
        plain: The solid colour of the content, one number per channel.
        strokes: What is painted on it, in the coordinates of the mask's bounding box.
    """

    def __init__(
        self, content: Tensor, mask: Tensor, plain: tuple[float, ...], strokes: tuple[Stroke, ...]
    ) -> None:
        self.content = content
        self.mask = mask
        self.plain = plain
        self.strokes = strokes

    def __repr__(self) -> str:
        return f"Patch(plain={self.plain}, strokes={self.strokes})"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs with the patch in the place of what was there.

        Args:
            inputs: `(N, C, H, W)`, or one sample `(C, H, W)`; floating, left as they are.

        Returns:
            The same shape, dtype and device, in new memory.

        Raises:
            InputTypeError: If `inputs` is no floating tensor.
            InputError: If its shape does not go with mask and content.
        """
        self._check(inputs)
        content = self.content.to(inputs.dtype).to(inputs.device)
        mask = self.mask.to(inputs.device)
        return torch.where(mask if inputs.ndim == 4 else mask[0], content, inputs)

    def _check(self, inputs: Any) -> None:
        if not isinstance(inputs, Tensor) or not inputs.dtype.is_floating_point:
            raise InputTypeError(f"inputs must be a floating tensor, but {describe(inputs)} came")
        count, _, *size = self.mask.shape
        rows = "N" if count == 1 else count
        channels = len(self.content) if len(self.content) > 1 else "C"
        batch = inputs if inputs.ndim == 4 else inputs.unsqueeze(0)
        fits = inputs.ndim in (3, 4) and list(batch.shape[2:]) == size
        if not fits or count not in (1, len(batch)) or len(self.content) not in (1, batch.shape[1]):
            raise InputError(
                f"inputs must have shape ({rows}, {channels}, {size[0]}, {size[1]}) to go with the "
                f"patch, but {describe(inputs)} came"
            )


def patches(
    mask: Tensor,
    *,
    channels: int | None = None,
    bounds: tuple[PerChannel, PerChannel] = (0.0, 1.0),
) -> st.SearchStrategy[Patch]:
    """Return a strategy for patches, functions that put something on images where a mask is True.

    A draw is a `Patch`: `patch(inputs)` are the patched inputs, whatever their dtype, device and
    number, so one patch can be tried on several batches. `patch.content` is what it shows.

    It is a solid colour with up to four strokes on it. It shrinks to the solid colour, and that
    to the lower end of the bounds. A third of the colours are at each end of the bounds.

    Args:
        mask: Where the patch is: bool, `(H, W)`, `(1, H, W)`, or `(N, 1, H, W)` for a place of
            its own in each of N samples, as `trigger.mask(inputs)` gives it.
        channels: Channels of the content; None for as many as the bounds name. Content of one
            channel goes on images of any number, the same in each.
        bounds: Lower and upper end of the valid range, each one number or one per channel.

    Returns:
        A strategy for patches.

    Raises:
        InputTypeError: If an argument has the wrong type.
        InputError: If a value is refused, or the arguments do not go together.

    Example:
        >>> import torch
        >>> from hypothesis import given
        >>> corner = torch.zeros(4, 4, dtype=torch.bool)
        >>> corner[2:, 2:] = True
        >>> @given(patches(corner))
        ... def test_the_rest_is_left_alone(patch):
        ...     assert (patch(torch.ones(3, 1, 4, 4))[:, :, :2] == 1).all()
        >>> test_the_rest_is_left_alone()
    """
    low, high = read_bounds(bounds)
    if channels is None:
        channels = len(low)
    elif len(low) not in (1, whole("channels", channels, low=1)):
        raise InputError(f"channels must be the {len(low)} that bounds name, but {channels} came")
    placed = _checked(mask)
    place = _Place(placed, _box(placed), channels, low, high)
    return _patches(place)


@dataclass(frozen=True)
class _Place:
    """Where patches are, and what range they have."""

    mask: Tensor
    box: tuple[slice, slice]
    channels: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    def patch(self, shares: tuple[float, ...], strokes: Sequence[Stroke]) -> Patch:
        """Return a patch of a solid colour, from 0 to 1 per channel, with strokes on it."""
        rows, columns = self.box
        shape = (1, self.channels, rows.stop - rows.start, columns.stop - columns.start)
        canvas = paint(strokes, shape)[0]
        ground = per_channel(shares, canvas)
        low, high = per_channel(self.low, canvas), per_channel(self.high, canvas)
        # A stroke leads from the solid colour to an end of the range, as far as it is strong.
        share = ground + canvas * torch.where(canvas > 0, 1 - ground, ground)
        painted = torch.minimum(torch.maximum(low + (high - low) * share, low), high)
        content = torch.zeros(self.channels, *self.mask.shape[2:], dtype=torch.float64)
        content[:, rows, columns] = painted
        plain = (low + (high - low) * ground).flatten().tolist()
        return Patch(content * self.mask.any(0), self.mask, tuple(plain), tuple(strokes))


@st.composite
def _patches(draw: st.DrawFn, place: _Place) -> Patch:
    shares = tuple(
        capped(draw, LEVELS, before=LEVELS, after=LEVELS) / LEVELS for _ in range(place.channels)
    )
    rows, columns = place.box
    height, width = rows.stop - rows.start, columns.stop - columns.start
    with torch.device("cpu"):
        return place.patch(shares, draw(paintings((1, place.channels, height, width))))


def _checked(mask: Any) -> Tensor:
    """Return a copy of a mask on the host, `(N or 1, 1, H, W)`.

    Raises:
        InputTypeError: If it is no bool tensor.
        InputError: If its shape is wrong, or it is True nowhere.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise InputTypeError(f"mask must be a bool tensor, but {describe(mask)} came")
    if mask.ndim not in (2, 3, 4) or (mask.ndim > 2 and mask.shape[-3] != 1):
        raise InputError(
            f"mask must have shape (H, W), (1, H, W) or (N, 1, H, W), but {describe(mask)} came"
        )
    if not bool(mask.any()):
        raise InputError("mask must be True somewhere, but it is False everywhere")
    placed = mask.detach().cpu().clone()
    return placed.view(-1, 1, *placed.shape[-2:])


def _box(mask: Tensor) -> tuple[slice, slice]:
    """Return the smallest rectangle that holds a mask, of all samples together."""
    anywhere = mask.any(0)[0]
    rows, columns = anywhere.any(1).nonzero(), anywhere.any(0).nonzero()
    return (
        slice(int(rows.min()), int(rows.max()) + 1),
        slice(int(columns.min()), int(columns.max()) + 1),
    )
