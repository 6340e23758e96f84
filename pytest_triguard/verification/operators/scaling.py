"""Rules of scaling: a factor and an offset for each element, or for each channel.

On a centre and a radius a scaling costs two passes over memory. What it rounds is paid from the
room that the radius of a product has to spare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import ROOM, Ball, Interval, lengths
from pytest_triguard.verification.operators.rule import Keep, Unsupported
from pytest_triguard.verification.relaxations import Scale

_LARGEST_FACTOR = 2.0**60

_SCALING = 12
"""Roundings of the centre that a scaling takes of the room of its input."""

_ROUNDINGS = 16
"""Roundings that `scaled` makes at most, those in its factor included."""


@wraps(functional.batch_norm)
def batch_norm(input: Interval, *args: Any, keep: Keep | None = None, **kwargs: Any) -> Interval:
    """Bounds of `functional.batch_norm` with running statistics."""
    if input.ball is not None:
        return scaled(input, *_shaped(input, *args, **kwargs))

    def convert() -> _Scaling:
        return _Scaling.of(*statistics(input.dtype, *args, **kwargs))

    return (convert() if keep is None else keep(convert)).bounded(input)


@dataclass(frozen=True)
class _Scaling:
    """A factor and an offset for each channel, and what becomes of centres and radii.

    Attributes:
        factor: `(C,)` of centres.
        offset: `(C,)` of centres.
        growth: `(C,)` factor of radii.
        floor: `(C,)` offset of radii.
        zeros: `(C,)`.
        ones: `(C,)`.
    """

    factor: Tensor
    offset: Tensor
    growth: Tensor
    floor: Tensor
    size: ClassVar[int] = 0
    zeros: Tensor
    ones: Tensor

    @staticmethod
    def of(factor: Tensor, centre: Tensor, shift: Tensor) -> _Scaling:
        """Return the scaling `factor * (x - centre) + shift`, the factor known to 4 roundings."""
        unit, tiny = rounding.roundoff(factor.dtype), rounding.tiny(factor.dtype)
        moved, growth = factor * centre, factor.abs() * (1 + _ROUNDINGS * unit)
        floor = (moved.abs() + shift.abs()) * (2 * ROOM * unit)
        floor += (1 + growth) * (8 * tiny)
        zeros, ones = torch.zeros_like(factor), torch.ones_like(factor)
        return _Scaling(factor, shift - moved, growth, floor, zeros, ones)

    def bounded(self, input: Interval) -> Interval:
        """Bound the result over a box; the room of its radius pays for what is rounded."""
        centre, radius, room = input.centred()
        if room < 2 * _SCALING:
            centre, radius, room = Interval(input.lower, input.upper).centred()
        return Interval.around(
            self._run(centre, self.factor, self.offset),
            self._run(radius, self.growth, self.floor),
            room - _SCALING,
        )

    def _run(self, values: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
        """Return `factor * values + offset`: a mean of zero and a variance of one do nothing."""
        return functional.batch_norm(values, self.zeros, self.ones, factor, offset, False, 0.0, 0.0)


def batch_norm_relaxation(
    input: Interval, *args: Any, keep: Keep | None = None, **kwargs: Any
) -> Scale:
    """The scaling itself."""
    del keep
    return scaled_relaxation(input, *_shaped(input, *args, **kwargs))


def batch_norm_evaluation(input: Interval, *args: Any, unit: float, **kwargs: Any) -> Tensor:
    """Rounding of the module's own batch normalisation, merged into one product or not."""
    factor, centre, shift = _shaped(input, *args, **kwargs)
    # A factor beyond this comes from a variance so small that float32 may take it for zero.
    factor = torch.where(factor.abs() < _LARGEST_FACTOR, factor, torch.nan)
    return scaled_evaluation(input, factor, centre, shift, unit=unit)


def _shaped(input: Interval, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return factor, centre and shift of a batch normalisation, shaped to go with its input."""
    shape = (1, -1, *[1] * (len(input.shape) - 2))
    factor, centre, shift = statistics(input.dtype, *args, **kwargs)
    return factor.view(shape), centre.view(shape), shift.view(shape)


def statistics(
    dtype: torch.dtype,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return factor, centre and shift of a batch normalisation, `(C,)` each, in a dtype.

    The factor is known up to four roundings.

    Raises:
        Unsupported: If it has no running statistics, or does not use them.
    """
    del momentum
    if training or running_mean is None or running_var is None:
        raise Unsupported("batch normalisation without running statistics")
    mean = running_mean.to(dtype)
    factor = (running_var.to(dtype) + eps).sqrt().reciprocal()
    if weight is not None:
        factor = factor * weight.to(dtype)
    return factor, mean, torch.zeros_like(mean) if bias is None else bias.to(dtype)


def batch_norm_arguments(module: nn.BatchNorm2d) -> dict[str, Any]:
    """Return the arguments of a batch normalisation module."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "eps")
    return {name: getattr(module, name) for name in names}


def scaled(input: Interval, factor: Tensor, centre: Tensor, shift: Tensor) -> Interval:
    """Bounds of `factor * (input - centre) + shift`, element by element.

    Args:
        input: The value.
        factor: Factor, known up to four roundings.
        centre: Subtracted first, exact.
        shift: Added last, exact.
    """

    def run(values: Tensor) -> tuple[Tensor, Tensor]:
        product = (values - centre) * factor
        size = product.abs() + shift.abs()
        error = size.mul_(_ROUNDINGS * rounding.roundoff(input.dtype))
        return product + shift, error.add_(rounding.tiny(input.dtype))

    (low, low_error), (high, high_error) = run(input.lower), run(input.upper)
    lower = torch.minimum(low - low_error, high - high_error)
    upper = torch.maximum(low + low_error, high + high_error)
    if input.ball is None or lower.shape != input.shape:  # copies of an element add up in a ball
        return Interval(lower, upper)
    return Interval(lower, upper, _scaled_ball(input.ball, factor, run))


def scaled_relaxation(input: Interval, factor: Tensor, centre: Tensor, shift: Tensor) -> Scale:
    """The scaling itself, as a factor and one offset."""
    factor, centre, shift = (_aligned(each, input) for each in (factor, centre, shift))
    offset = shift - factor * centre
    unit = rounding.roundoff(input.dtype)
    size = (factor * centre).abs() + shift.abs()
    terms = input.magnitude[0].numel()
    error = _ROUNDINGS * unit * factor.abs() * input.magnitude
    return Scale(input, factor, offset, error + 2 * rounding.gamma(terms, input.dtype) * size)


def _aligned(constant: Tensor, input: Interval) -> Tensor:
    """Return a constant with as many dimensions as a value that it is broadcast with."""
    missing = len(input.shape) - constant.ndim
    if missing < 0:
        raise Unsupported("a constant of more dimensions than the value")
    return constant.reshape(*[1] * missing, *constant.shape)


def scaled_evaluation(
    input: Interval, factor: Tensor, centre: Tensor, shift: Tensor, *, unit: float
) -> Tensor:
    """Rounding of the module's own scaling, whichever way it orders the operations."""
    reach = input.magnitude + centre.abs()
    size = factor.abs() * reach + shift.abs()
    error = (_ROUNDINGS * unit) * size + rounding.lost(reach + factor.abs(), 2)
    return rounding.unless_overflow(error, torch.maximum(size, reach))


def _scaled_ball(
    ball: Ball, factor: Tensor, run: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Ball | None:
    """Scale a ball; what was rounded in its centre widens its radius.

    No radius widens it where it has no extent, as in a padding: then there is no ball left, unless
    the factor is zero, which makes the result exact.
    """
    centre, error = run(ball.centre)
    unit = rounding.roundoff(centre.dtype)
    scale = (ball.scale * factor.abs()).expand_as(centre) * (1 + _ROUNDINGS * unit)
    if bool(((scale == 0) & (factor != 0)).any()):
        return None
    moved = torch.where(scale == 0, torch.zeros_like(error), error / scale)
    growth = 1 + rounding.gamma(centre[0].numel(), centre.dtype)
    return Ball(centre, scale, (ball.radius + lengths(moved, ball.norm)) * growth, ball.norm)
