"""The set of inputs a sample is verified over: a ball around it, or a box, inside the valid range.

An attack that runs in the module's dtype rounds the points it tries. The set is widened by that
rounding, so that every point such an attack may call inside lies in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pytest_triguard.attacks.base import check_eps
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import beyond, describe, one_of
from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import (
    BALL_NORMS,
    Ball,
    BallNorm,
    Interval,
    lengths,
    per_sample,
)

_PROJECTION_ROUNDINGS = 256
"""Roundings, in the module's dtype, that the length of an offset is computed with at most."""


class Region(Protocol):
    """Where each sample is verified."""

    @property
    def ball(self) -> tuple[float | Tensor, BallNorm] | None:
        """Radius and norm, for attacks; None where there is no ball."""

    def around(self, model: Model, block: Batch, dtype: torch.dtype) -> Interval:
        """Return the set of each sample in a block on the model's device, bounds in a dtype."""


@dataclass(frozen=True)
class BallRegion:
    """A ball around each sample, cut by the valid range.

    Args:
        eps: Radius in input units, one for all samples or `(N,)` on the host.
        norm: `"linf"`, `"l2"` or `"l1"`.
    """

    eps: float | Tensor
    norm: BallNorm

    @property
    def ball(self) -> tuple[float | Tensor, BallNorm]:
        """Radius and norm."""
        return self.eps, self.norm

    def around(self, model: Model, block: Batch, dtype: torch.dtype) -> Interval:
        """Return the set of each sample in a block on the model's device, bounds in a dtype."""
        clean, unit = block.inputs.to(dtype), rounding.roundoff(block.inputs.dtype)
        eps = self._radius(block, dtype).to(model.device)
        rounded = (clean.abs() + per_sample(eps, clean)).mul_(4 * unit)
        rounded = rounded * per_sample(eps > 0, clean)
        ball = None
        if self.norm != "linf":
            eps = eps * (1 + _PROJECTION_ROUNDINGS * unit) + lengths(rounded, self.norm)
            ball = Ball(clean, torch.ones_like(clean[:1]), eps, self.norm)
        reach = per_sample(eps, clean) + rounded
        box = _cut(clean, clean - reach, clean + reach, model, block)
        return Interval(box.lower, box.upper, ball)

    def _radius(self, block: Batch, dtype: torch.dtype) -> Tensor:
        """Return the radius of each sample, `(n,)`, on the host."""
        if not isinstance(self.eps, Tensor):
            return torch.full((len(block),), float(self.eps), dtype=dtype)
        places = torch.tensor(block.positions, dtype=torch.int64)
        _refuse_beyond("eps", len(self.eps), places)
        return self.eps[places].to(dtype)


@dataclass(frozen=True)
class BoxRegion:
    """A box for each sample, cut by the valid range.

    Args:
        lower: `(N, C, H, W)` lower ends.
        upper: `(N, C, H, W)` upper ends.
    """

    lower: Tensor
    upper: Tensor

    @property
    def ball(self) -> None:
        """Nothing: a box is no ball."""
        return

    def around(self, model: Model, block: Batch, dtype: torch.dtype) -> Interval:
        """Return the set of each sample in a block on the model's device, bounds in a dtype.

        Raises:
            InputError: If a box does not go with its sample.
        """
        places = torch.tensor(block.positions, dtype=torch.int64)
        ends = []
        for name, values in (("lower", self.lower), ("upper", self.upper)):
            _refuse_beyond(name, len(values), places)
            if values.shape[1:] != block.inputs.shape[1:]:
                raise InputError(
                    f"{name} must have the shape of the inputs, but {describe(values)} came for "
                    f"samples of shape {tuple(block.inputs.shape[1:])}"
                )
            picked = values.detach().index_select(0, places.to(values.device))
            ends.append(picked.to(model.device).to(dtype))
        clean = block.inputs.to(dtype)
        beyond = ((clean < ends[0]) | (clean > ends[1])).flatten(1).any(1)
        if bool(beyond.any()):
            first = block.ids[int(beyond.nonzero()[0, 0])]
            raise InputError(
                f"lower and upper must enclose the inputs, but sample {first} is outside"
            )
        return _cut(clean, ends[0], ends[1], model, block)


def region(eps: Any, norm: Any, lower: Any, upper: Any, model: Model) -> Region:
    """Return the region that the arguments of a verifier describe.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If both or neither of eps and a box came, or a value is refused.
    """
    one_of("norm", norm, BALL_NORMS)
    if lower is None and upper is None:
        if eps is None:
            raise InputError("eps must be given, or lower and upper in its place, but none came")
        check_eps(eps)
        _refuse_too_large(eps, norm, model)
        return BallRegion(eps.detach().cpu() if isinstance(eps, Tensor) else eps, norm)
    if lower is None or upper is None:
        missing = "lower" if lower is None else "upper"
        raise InputError(f"lower and upper must be given together, but {missing} is missing")
    if eps is not None:
        raise InputError(f"eps must be None where lower and upper are given, but {eps!r} came")
    if norm != "linf":
        raise InputError(f"norm must be 'linf' where lower and upper are given, but {norm!r} came")
    check_box(lower, upper)
    return BoxRegion(lower, upper)


def check_box(lower: Any, upper: Any) -> None:
    """Refuse ends of boxes that are no floating tensors, not finite, or in the wrong order.

    Raises:
        InputTypeError: If an end is no floating tensor.
        InputError: If shapes or values are refused.
    """
    for name, end in (("lower", lower), ("upper", upper)):
        if not isinstance(end, Tensor) or not end.dtype.is_floating_point:
            raise InputTypeError(f"{name} must be a floating tensor, but {describe(end)} came")
        if end.ndim != 4 or not len(end):
            raise InputError(f"{name} must have shape (N, C, H, W), but {describe(end)} came")
        if not bool(torch.isfinite(end).all()):
            raise InputError(f"{name} must be finite, but it holds NaN or infinity")
    if lower.shape != upper.shape:
        raise InputError(
            f"lower and upper must have the same shape, but {tuple(lower.shape)} and "
            f"{tuple(upper.shape)} came"
        )
    if bool((lower > upper.to(lower.device)).any()):
        raise InputError("lower must be at most upper, but it is above it in some elements")


def holds(known: Interval, points: Tensor) -> Tensor:
    """Return whether points are inside the set they are to be in, `(n,)` bool."""
    exact = points.to(known.dtype)
    inside = ((exact >= known.lower) & (exact <= known.upper)).flatten(1).all(1)
    if known.ball is not None:
        inside &= lengths(exact - known.ball.centre, known.ball.norm) <= known.ball.radius
    return inside


def _cut(clean: Tensor, lower: Tensor, upper: Tensor, model: Model, block: Batch) -> Interval:
    """Cut a box by the valid range; the sample itself stays in, however its range was rounded."""
    low, high = (each.to(clean.dtype) for each in model.bounds(block.inputs.dtype))
    return Interval(
        torch.minimum(torch.maximum(lower, low), clean),
        torch.maximum(torch.minimum(upper, high), clean),
    )


def _refuse_beyond(name: str, count: int, places: Tensor) -> None:
    if len(places) and int(places.max()) >= count:
        raise InputError(
            f"{name} must name one value per sample, but {count} came for at least "
            f"{int(places.max()) + 1} samples"
        )


def _refuse_too_large(eps: float | Tensor, norm: str, model: Model) -> None:
    """Refuse an L-inf radius beyond the range of the inputs: a sign of other units."""
    low, high = model.bounds(torch.float32)
    width = float((high - low).amax())
    largest = float(eps.amax()) if isinstance(eps, Tensor) else float(eps)
    if norm == "linf" and beyond(largest, width):
        raise InputError(
            f"eps must not exceed the range of the inputs, {width:g}, but {largest:g} came; "
            "eps is measured in the units of the inputs, before normalisation"
        )
