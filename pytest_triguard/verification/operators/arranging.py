"""Rules of operators that move, repeat or surround elements."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.operators.shape import (
    Change,
    listed,
    moving,
    refuse_moved_samples,
)
from pytest_triguard.verification.relaxations import Affine, transposed


def _movedim(input: Interval, source: Any, destination: Any) -> Change:
    return lambda values: values.movedim(source, destination)


def _unflatten(input: Interval, dim: int, sizes: Any) -> Change:
    return lambda values: torch.unflatten(values, dim, tuple(sizes))


def _roll(input: Interval, shifts: Any, dims: Any = None) -> Change:
    _refuse_samples(input, [0] if dims is None else dims)
    return lambda values: values.roll(shifts, dims)


def _flip(input: Interval, *dims: Any) -> Change:
    _refuse_samples(input, listed(dims))
    return lambda values: values.flip(listed(dims))


def _pixel_shuffle(input: Interval, upscale_factor: int) -> Change:
    return lambda values: functional.pixel_shuffle(values, upscale_factor)


def _pixel_unshuffle(input: Interval, downscale_factor: int) -> Change:
    return lambda values: functional.pixel_unshuffle(values, downscale_factor)


def _channel_shuffle(input: Interval, groups: int) -> Change:
    return lambda values: functional.channel_shuffle(values, groups)


def _expand(input: Interval, *sizes: Any) -> Change:
    return lambda values: values.expand(listed(sizes))


def _repeat(input: Interval, *repeats: Any) -> Change:
    if len(listed(repeats)) != len(input.shape) or listed(repeats)[0] != 1:
        raise Unsupported("samples that are repeated")
    return lambda values: values.repeat(listed(repeats))


def _refuse_samples(input: Interval, dims: Any) -> None:
    along = [dims] if isinstance(dims, int) else dims
    if any(dim % len(input.shape) == 0 for dim in along):
        raise Unsupported("samples that are moved")


def _copying(change: Callable[..., Change]) -> dict[str, Any]:
    """Return the rules of an operator that repeats elements, all with its arguments."""
    rules = moving(change)

    @wraps(change)
    def interval(input: Interval, *args: Any, **kwargs: Any) -> Interval:
        return repeated(input, change(input, *args, **kwargs))

    @wraps(change)
    def relaxation(input: Interval, *args: Any, **kwargs: Any) -> Affine:
        move = change(input, *args, **kwargs)
        refuse_moved_samples(move, input.shape)
        return copied(input, move)

    # Copies do not vary independently: what is made of them may be looser than it need be.
    return rules | {"interval": interval, "relaxation": relaxation, "mixing": "sum"}


def repeated(input: Interval, move: Change) -> Interval:
    """Return bounds of a value whose elements are repeated; a ball is lost, as copies add up."""
    return Interval(move(input.lower), move(input.upper))


def copied(input: Interval, move: Change, back: Change | None = None) -> Affine:
    """Return the relaxation of a change that may repeat elements: its transpose makes sums.

    Args:
        input: The argument.
        move: The change.
        back: Its transpose, if it is known.
    """
    back = transposed(move, input) if back is None else back
    size = input.magnitude
    copies = int(back(move(torch.ones_like(size)).unsqueeze(1)).amax())
    return Affine(input, back, None, move(size) * (2 * rounding.gamma(copies, input.dtype)))


def pad(input: Interval, pad: Any, mode: str = "constant", value: float | None = None) -> Interval:
    """Bounds of `functional.pad`."""
    if mode != "constant" or not value:
        change = _padded(input, pad, mode, value)
        return input.rearranged(change) if mode == "constant" else repeated(input, change)
    stored = torch.tensor(value, dtype=input.dtype)
    exact = float(stored) == value
    ends = (stored, stored) if exact else (rounding.down(stored, 1), rounding.up(stored, 1))
    low, high = (_padded(input, pad, mode, float(end)) for end in ends)
    return Interval(low(input.lower), high(input.upper))


def pad_relaxation(
    input: Interval, pad: Any, mode: str = "constant", value: float | None = None
) -> Affine:
    """The padding itself: rows on what surrounds the value meet a constant."""
    found = copied(input, _padded(input, pad, mode, None))
    if mode != "constant" or not value:
        return found
    offset = functional.pad(torch.zeros_like(input.lower[:1]), pad, mode, value)
    gamma = rounding.gamma(offset.numel(), input.dtype)
    error = offset.abs() * (2 * gamma) + (0 if found.error is None else found.error)
    return Affine(input, found.transpose, offset[0], error)


def pad_evaluation(
    input: Interval, pad: Any, mode: str = "constant", value: float | None = None, *, unit: float
) -> Tensor:
    """Rounding of the number that the module puts around the value."""
    if mode != "constant" or not value:
        return input.lower.new_zeros(())
    offset = functional.pad(torch.zeros_like(input.lower[:1]), pad, mode, value)
    return offset.abs() * (2 * unit) + rounding.lost(torch.zeros_like(offset))


def _padded(input: Interval, pad: Any, mode: str, value: float | None) -> Change:
    touched = (len(pad) + 1) // 2
    if touched >= len(input.shape):
        raise Unsupported("padding of samples")
    return lambda values: functional.pad(values, list(pad), mode, value)


def unflatten_arguments(module: nn.Unflatten) -> dict[str, Any]:
    """Return the arguments of a module that cuts one dimension into several."""
    return {"dim": module.dim, "sizes": module.unflattened_size}


def zero_pad_arguments(module: nn.ZeroPad2d) -> dict[str, Any]:
    """Return the arguments of a module that surrounds images, with zeros unless it was changed."""
    return {"pad": module.padding, "value": module.value}


MOVEDIM = moving(_movedim)
UNFLATTEN = moving(_unflatten, ordered=True)
ROLL = moving(_roll)
FLIP = moving(_flip)
PIXEL_SHUFFLE = moving(_pixel_shuffle)
PIXEL_UNSHUFFLE = moving(_pixel_unshuffle)
CHANNEL_SHUFFLE = moving(_channel_shuffle)
EXPAND = _copying(_expand)
REPEAT = _copying(_repeat)
PAD: dict[str, Any] = {
    "interval": pad,
    "relaxation": pad_relaxation,
    "evaluation": pad_evaluation,
}
