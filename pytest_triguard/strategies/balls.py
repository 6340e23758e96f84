"""Perturbations of given inputs, inside a ball and inside the valid range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from pytest_triguard.backdoors.base import per_channel
from pytest_triguard.classifier import PerChannel, read_bounds
from pytest_triguard.engine.geometry import project
from pytest_triguard.strategies.given import check_range, on_host, radii_of
from pytest_triguard.strategies.strokes import Stroke, paint, paintings
from pytest_triguard.validation import one_of
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
    one_of("norm", norm, BALL_NORMS)
    ball = Ball.around(inputs, eps, norm, bounds)
    count, channels, height, width = ball.clean.shape
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

    @classmethod
    def around(
        cls,
        inputs: Tensor,
        eps: float | Tensor,
        norm: str,
        bounds: tuple[PerChannel, PerChannel],
    ) -> Ball:
        """Return the ball around inputs; see `perturbations` for what may be given.

        Raises:
            InputTypeError: If an argument has the wrong type.
            InputError: If a value is refused, or the arguments do not go together.
        """
        batch = on_host(inputs)
        low, high = read_bounds(bounds)
        check_range(batch, low, high)
        return cls(
            clean=batch,
            eps=radii_of(eps, batch, norm, low, high),
            norm=next(each for each in BALL_NORMS if each == norm),
            # The sample itself stays in, however its range was rounded.
            low=torch.minimum(per_channel(low, batch), batch),
            high=torch.maximum(per_channel(high, batch), batch),
            device=inputs.device,
            single=inputs.ndim == 3,
        )

    def __repr__(self) -> str:
        radii = sorted({f"{each:g}" for each in self.eps.tolist()}, key=float)
        eps = radii[0] if len(radii) == 1 else f"({radii[0]}, ..., {radii[-1]})"
        return f"Ball(eps={eps}, norm={self.norm!r})"

    def __call__(self, strokes: Sequence[Stroke]) -> Tensor:
        """Return the inputs with the strokes added, at the length their strength says."""
        count, channels, height, width = self.clean.shape
        with torch.device("cpu"):
            offset = paint(strokes, (count, channels, height, width))
        return self.at(self.scaled(offset, lengths(offset, "linf")))

    def scaled(self, direction: Tensor, strength: Tensor | float) -> Tensor:
        """Return offsets of given directions whose length is a share of the radius.

        Args:
            direction: `(N, C, H, W)` float64; zeros stay zeros.
            strength: Share of the radius, one for all samples or `(N,)`.
        """
        tiny = torch.finfo(torch.float64).tiny
        length = lengths(direction, self.norm).clamp_min(tiny)
        return direction * per_sample(self.eps * strength / length, direction)

    def at(self, offset: Tensor) -> Tensor:
        """Return the inputs moved by offsets `(N, C, H, W)` float64, inside ball and range."""
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
