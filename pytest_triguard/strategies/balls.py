"""Perturbations of given inputs, inside a ball and inside the valid range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pytest_triguard.attacks.base import check_eps
from pytest_triguard.backdoors.base import per_channel
from pytest_triguard.classifier import PerChannel, read_bounds
from pytest_triguard.data import BOUNDS_TOLERANCE
from pytest_triguard.engine.geometry import project
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.strategies.strokes import Stroke, paint, paintings
from pytest_triguard.validation import describe, one_of
from pytest_triguard.verification.intervals import BALL_NORMS, BallNorm, lengths, per_sample


def perturbations(
    inputs: Tensor,
    eps: float | Tensor,
    norm: str = "linf",
    *,
    bounds: tuple[PerChannel, PerChannel] = (0.0, 1.0),
) -> st.SearchStrategy[Tensor]:
    """Return a strategy for inputs that are moved by at most `eps`.

    A draw is a painting of up to four strokes, each a rectangle of one texture. One number per
    element would be slow, and could not be shrunk to anything a reader understands. Many draws
    are corners of the ball, where every element moves as far as it may, many are sparse, and only
    a few are noise: noise inside a ball finds next to nothing in many dimensions. Drawing takes
    milliseconds for a batch of 8 small colour images.

    It shrinks towards the inputs as they are: to fewer strokes, samples, channels and pixels, and
    to less strength. A failing test prints the strokes, not the tensor.

    Every draw is inside although it is rounded: it is a point that the projection of the attacks
    leaves where it is, and its distance from the inputs, computed in float64, is at most `eps`.

    Args:
        inputs: `(N, C, H, W)`, or one sample `(C, H, W)`; floating and inside the bounds. It is
            copied, and left as it is.
        eps: Radius in the units of the inputs, one number or `(N,)`, one per sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        bounds: Lower and upper end of the valid range, each one number or one per channel.

    Returns:
        A strategy for tensors of the shape and dtype and on the device of the inputs, in memory
        of their own.

    Raises:
        InputTypeError: If an argument has the wrong type.
        InputError: If a value is refused, or the arguments do not go together.

    Example:
        >>> import torch
        >>> from hypothesis import given
        >>> @given(perturbations(torch.full((2, 1, 4, 4), 0.5), eps=0.1))
        ... def test_it_stays_close(perturbed):
        ...     assert (perturbed - 0.5).abs().max() <= 0.1
        >>> test_it_stays_close()
    """
    batch = _checked(inputs)
    one_of("norm", norm, BALL_NORMS)
    low, high = read_bounds(bounds)
    _check_range(batch, low, high)
    ball = Ball(
        clean=batch,
        eps=_radii(eps, batch, norm, low, high),
        norm=next(each for each in BALL_NORMS if each == norm),
        # The sample itself stays in, however its range was rounded.
        low=torch.minimum(per_channel(low, batch), batch),
        high=torch.maximum(per_channel(high, batch), batch),
        device=inputs.device,
        single=inputs.ndim == 3,
    )
    count, channels, height, width = batch.shape
    return paintings((count, channels, height, width)).map(ball)


@dataclass(frozen=True, eq=False)
class Ball:
    """Inputs, and how far they may be moved; it turns strokes into moved inputs.

    Attributes:
        clean: `(N, C, H, W)` on the host.
        eps: `(N,)` float64 radii.
        norm: `"linf"`, `"l2"` or `"l1"`.
        low: `(N, C, H, W)` lower ends of what is valid.
        high: `(N, C, H, W)` upper ends.
        device: Where the results are to be.
        single: Whether the results are to be `(C, H, W)`.
    """

    clean: Tensor
    eps: Tensor
    norm: BallNorm
    low: Tensor
    high: Tensor
    device: torch.device
    single: bool

    def __repr__(self) -> str:
        radii = sorted({f"{each:g}" for each in self.eps.tolist()}, key=float)
        eps = radii[0] if len(radii) == 1 else f"({radii[0]}, ..., {radii[-1]})"
        return f"Ball(eps={eps}, norm={self.norm!r})"

    def __call__(self, strokes: Sequence[Stroke]) -> Tensor:
        """Return the inputs with the strokes added, at the length their strength says."""
        count, channels, height, width = self.clean.shape
        with torch.device("cpu"):
            offset = paint(strokes, (count, channels, height, width))
        strength, length = lengths(offset, "linf"), lengths(offset, self.norm)
        tiny = torch.finfo(torch.float64).tiny
        offset *= per_sample(self.eps * strength / length.clamp_min(tiny), offset)
        points = self._rounded(offset)
        return (points[0] if self.single else points).to(self.device)

    def _rounded(self, offset: Tensor) -> Tensor:
        """Return points in the dtype of the inputs that are inside although they are rounded.

        What rounding put outside is drawn in by a hair, and by more if that was not enough.
        """
        clean, exact = self.clean, self.clean.double()
        unit = torch.finfo(clean.dtype).eps
        offset = (exact + offset).clamp(self.low.double(), self.high.double()) - exact
        while True:
            points = self._projected((exact + offset).to(clean.dtype))
            settled = self._projected(points)
            outside = self._beyond(settled.double() - exact) | (self._projected(settled) != settled)
            if not bool(outside.any()):
                return settled
            offset = torch.where(outside, offset * max(0.0, 1 - unit), offset)
            unit *= 2

    def _projected(self, points: Tensor) -> Tensor:
        bounds = self.low, self.high
        if self.norm == "l1":  # for which there is no projection
            return points.clamp(*bounds)
        radii = _rounded_down(self.eps, points.dtype)
        return project(points, self.clean, radii, self.norm, bounds)

    def _beyond(self, offset: Tensor) -> Tensor:
        """Return which elements of float64 offsets lead out of the ball, `(N, C, H, W)` bool."""
        if self.norm == "linf":
            return offset.abs() > per_sample(self.eps, offset)
        return per_sample(lengths(offset, self.norm) > self.eps, offset).expand_as(offset)


def _rounded_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers of a dtype that are at most those given, and close to them."""
    rounded = values.to(dtype)
    return torch.where(rounded > values, rounded * (1 - torch.finfo(dtype).eps), rounded)


def _checked(inputs: Any) -> Tensor:
    """Return a copy of the inputs on the host, `(N, C, H, W)`.

    Raises:
        InputTypeError: If they are no floating tensor.
        InputError: If the shape is wrong, or a value is not finite.
    """
    if not isinstance(inputs, Tensor):
        raise InputTypeError(
            f"inputs must be a tensor (N, C, H, W) or (C, H, W), but {describe(inputs)} came"
        )
    if not inputs.dtype.is_floating_point:
        raise InputTypeError(f"inputs must be floating, but {describe(inputs)} came")
    if inputs.ndim not in (3, 4) or not inputs.numel():
        raise InputError(
            f"inputs must have shape (N, C, H, W) or (C, H, W), but {describe(inputs)} came"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("inputs must be finite, but they hold NaN or infinity")
    batch = inputs.detach().cpu().clone()
    return batch if batch.ndim == 4 else batch.unsqueeze(0)


def _check_range(batch: Tensor, low: tuple[float, ...], high: tuple[float, ...]) -> None:
    if len(low) not in (1, batch.shape[1]):
        raise InputError(
            f"inputs must have the {len(low)} channels that bounds name, but {describe(batch)} came"
        )
    exact = batch.double()
    below = exact < per_channel(low, exact) - BOUNDS_TOLERANCE
    above = exact > per_channel(high, exact) + BOUNDS_TOLERANCE
    if bool((below | above).any()):
        raise InputError(
            f"inputs must lie inside the bounds, [{min(low):g}, {max(high):g}], but values from "
            f"{float(exact.min()):g} to {float(exact.max()):g} came"
        )


def _radii(
    eps: Any, batch: Tensor, norm: str, low: tuple[float, ...], high: tuple[float, ...]
) -> Tensor:
    """Return the radius of each sample, `(N,)` float64 on the host.

    Raises:
        InputTypeError: If eps is neither a number nor a floating tensor.
        InputError: If it is refused, is not one per sample, or exceeds the range.
    """
    check_eps(eps)
    count, size = len(batch), batch[0].numel()
    if isinstance(eps, Tensor) and len(eps) != count:
        raise InputError(
            f"eps must be one number or a tensor of shape ({count},), but {describe(eps)} came"
        )
    width = max(above - below for below, above in zip(low, high, strict=True))
    widest = width * {"linf": 1.0, "l2": math.sqrt(size), "l1": size}[norm]
    radii = torch.as_tensor(eps, dtype=torch.float64, device="cpu").detach().expand(count).clone()
    if float(radii.max()) > widest:
        raise InputError(
            f"eps must not exceed the range of the inputs, {widest:g} in {norm}, but "
            f"{float(radii.max()):g} came; eps is measured in the units of the inputs, before "
            "normalisation"
        )
    return radii
