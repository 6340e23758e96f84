"""Linear relaxations: an operator's result between linear functions of its arguments.

A relaxation carries rows, coefficients on the operator's result, back to rows on its arguments:
for every value of the arguments within their bounds,

    sum(rows * result) + error(rows) >= sum(carried * argument) + constant.

It bounds from below; an upper bound is the lower bound of the negative. What the computation of
`carried` and `constant` rounds is part of `error(rows) = sum(|rows| * error)`: a computed product
`A W` is off by at most `gamma |A| |W|` element by element, so that what it does to the bound is at
most `gamma |A| (|W| |z|)` for arguments of magnitude |z|.

Shapes: rows are `(N, S, *shape)` for N samples, S rows each, and values of `(N, *shape)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.windows import NOISE, Windowed

Carried = list[tuple[Interval, Tensor]]
"""Arguments, and the rows on each."""

Slid = tuple[list[tuple[Interval, Windowed]], Tensor | None]
"""Arguments, and the rows on each in windows; and the constant."""


class Relaxation(Protocol):
    """A linear enclosure of an operator's result over the bounds of its arguments."""

    @property
    def error(self) -> Tensor | None:
        """What rounding in `back` costs per unit of a coefficient, `(N or 1, *shape)`, or None."""

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows on the result back to the arguments.

        Args:
            rows: `(N, S, *shape)` coefficients on the result.

        Returns:
            The arguments with `(N, S, *their shape)` coefficients on each, and the constant
            `(N, S)` or None for zero.
        """


@dataclass(frozen=True)
class Kernel:
    """The weights of a convolution of all channels, without gaps.

    Attributes:
        weight: `(K, C, h, w)`.
        bias: `(K,)`, or None.
        stride: Rows and columns.
        padding: Rows and columns of zeros on each side.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class Affine:
    """An affine operator, which needs no relaxing.

    Attributes:
        piecewise: Whether nothing is lost once it is known on which side of its kink each element
            is.
        input: Its argument.
        transpose: From rows `(N, S, *shape)` on the result to rows on the argument.
        offset: `(*shape)` value at zero, broadcast, or None for zero.
        error: Per unit of a coefficient, `(N or 1, *shape)`, or None where nothing is rounded.
        sliding: The transpose for rows in windows, or None where there is none.
        kernel: What it is a convolution with, or None where it is not known as one.
        fresh: Whether what `transpose` returns shares no memory with the rows.
    """

    piecewise: ClassVar[bool] = True

    input: Interval
    transpose: Callable[[Tensor], Tensor]
    offset: Tensor | None = None
    error: Tensor | None = None
    sliding: Callable[[Windowed], Windowed] | None = None
    kernel: Kernel | None = None
    fresh: bool = False

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows on the result back to the argument."""
        constant = None if self.offset is None else dot(rows, self.offset[None, None])
        return [(self.input, self.transpose(rows))], constant

    def slide(self, rows: Windowed) -> Slid | None:
        """Carry rows in windows back, if the operator slides over images."""
        if self.sliding is None:
            return None
        constant = None if self.offset is None else rows.dot(self.offset[None])
        return [(self.input, self.sliding(rows))], constant


@dataclass(frozen=True)
class Sum:
    """A sum of terms, each with a sign and perhaps broadcast.

    Attributes:
        terms: Arguments and their signs, 1 or -1.
        error: Per unit of a coefficient, where broadcasting makes sums.
    """

    piecewise: ClassVar[bool] = True

    terms: tuple[tuple[Interval, int], ...]
    error: Tensor | None = None

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows on the result back to every term."""
        return [
            (term, unbroadcast(rows if sign > 0 else -rows, term)) for term, sign in self.terms
        ], None

    def slide(self, rows: Windowed) -> Slid | None:
        """Carry rows in windows back to every term, where none is broadcast."""
        shape = self.terms[0][0].shape
        if any(term.shape != shape for term, _ in self.terms):
            return None
        minus = replace(rows, rows=-rows.rows)
        return [(term, rows if sign > 0 else minus) for term, sign in self.terms], None


@dataclass(frozen=True)
class Band:
    """An operator that works element by element, between two planes.

    Attributes:
        inputs: Its arguments, which broadcast to the shape of the result.
        lower_slopes: Slopes of the lower plane for each argument, `(N or 1, S or 1, *shape)`.
        upper_slopes: Slopes of the upper plane, likewise.
        lower_offset: `(N or 1, S or 1, *shape)`, or None for zero.
        upper_offset: Likewise.
        error: Per unit of a coefficient, `(N, *shape)`.
    """

    inputs: tuple[Interval, ...]
    lower_slopes: tuple[Tensor, ...]
    upper_slopes: tuple[Tensor, ...]
    lower_offset: Tensor | None
    upper_offset: Tensor | None
    error: Tensor | None

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows back: the lower plane for positive coefficients, the upper for others."""
        above = positive(rows, 2)
        carried = [
            (value, unbroadcast(between(rows, above, lower, upper), value))
            for value, lower, upper in zip(
                self.inputs, self.lower_slopes, self.upper_slopes, strict=True
            )
        ]
        parts = [dot(part, offset) for part, offset in self._offsets(rows, above)]
        return carried, sum(parts[1:], parts[0]) if parts else None

    def _offsets(self, rows: Tensor, above: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return rows, and what each is to be multiplied with, for the constant."""
        lower, upper = self.lower_offset, self.upper_offset
        if upper is None:
            return [] if lower is None else [(above, lower)]
        return [(rows, upper), (above, -upper if lower is None else lower - upper)]

    def absorbing(self, error: Tensor) -> Band:
        """Return the band with offsets that pay for an error on the result, `(N, *shape)`."""
        extra = error.unsqueeze(1) * (1 + 8 * rounding.roundoff(error.dtype))
        lower = -extra if self.lower_offset is None else self.lower_offset - extra
        upper = extra if self.upper_offset is None else self.upper_offset + extra
        return replace(self, lower_offset=lower, upper_offset=upper, error=None)

    @property
    def steepest(self) -> Tensor:
        """The largest magnitude of a slope on the first argument, `(N or 1, *shape)`."""
        return torch.maximum(_largest(self.lower_slopes[0]), _largest(self.upper_slopes[0]))

    def slide(self, rows: Windowed) -> Slid | None:
        """Carry rows in windows back, where there is one argument, and one plane for all rows."""
        known = (*self.lower_slopes, *self.upper_slopes, self.lower_offset, self.upper_offset)
        if len(self.inputs) > 1 or any(each is not None and each.shape[1] > 1 for each in known):
            return None
        lower, upper = (
            rows.grid.cut(each[0][:, 0]).unsqueeze(2)
            for each in (self.lower_slopes, self.upper_slopes)
        )
        above = positive(rows.rows, 3)
        carried = between(rows.rows, above, lower, upper)
        parts = [
            replace(rows, rows=part).dot(offset[:, 0])
            for part, offset in self._offsets(rows.rows, above)
        ]
        constant = sum(parts[1:], parts[0]) if parts else None
        return [(self.inputs[0], Windowed(carried, rows.grid, clean=True))], constant


@dataclass(frozen=True)
class Scale:
    """Factor and offset, element by element.

    Attributes:
        input: The argument.
        factor: `(N or 1, *shape)`, broadcast.
        offset: `(N or 1, *shape)`, broadcast.
        error: Per unit of a coefficient, `(N or 1, *shape)`.
    """

    piecewise: ClassVar[bool] = True

    input: Interval
    factor: Tensor
    offset: Tensor
    error: Tensor | None

    def back(self, rows: Tensor) -> tuple[Carried, Tensor | None]:
        """Carry rows on the result back to the argument."""
        carried = unbroadcast(rows * self.factor.unsqueeze(1), self.input)
        return [(self.input, carried)], dot(rows, self.offset.unsqueeze(1))

    def slide(self, rows: Windowed) -> Slid | None:
        """Carry rows in windows back, where nothing is broadcast to the argument."""
        shape = (1, rows.rows.shape[3], *rows.grid.image)
        if self.input.shape[1:] != shape[1:]:
            return None
        factor, offset = (
            each.expand(torch.broadcast_shapes(each.shape, shape))  # type: ignore[no-untyped-call]
            for each in (self.factor, self.offset)
        )
        carried = rows.rows * rows.grid.cut(factor).unsqueeze(2)
        return [(self.input, Windowed(carried, rows.grid, clean=True))], rows.dot(offset)


def band(
    input: Interval,
    lower: tuple[Tensor, Tensor | None],
    upper: tuple[Tensor, Tensor | None],
) -> Band:
    """Return the band of an operator of one argument, given both lines as slope and offset.

    The lines, `(N, *shape)` or `(N, S, *shape)` where they differ by row, must hold as they are;
    what `back` rounds is added here.
    """
    slopes = [_with_rows(line[0], input) for line in (lower, upper)]
    offsets = [None if line[1] is None else _with_rows(line[1], input) for line in (lower, upper)]
    return Band(
        (input,),
        (slopes[0],),
        (slopes[1],),
        offsets[0],
        offsets[1],
        band_error((input,), [(slopes[0],), (slopes[1],)], offsets),
    )


@torch.no_grad()
def band_error(
    inputs: tuple[Interval, ...],
    slopes: list[tuple[Tensor, ...]],
    offsets: list[Tensor | None],
) -> Tensor:
    """Return what `Band.back` rounds per unit of a coefficient, `(N, *shape)`.

    A carried coefficient is a sum of two products, whose slopes are off by a unit or two, and
    perhaps a sum over what was broadcast; a constant is two dot products as long as the value has
    elements, with offsets of at most the two together.
    """
    unit, error = rounding.roundoff(inputs[0].dtype), inputs[0].lower.new_zeros(())
    for place, value in enumerate(inputs):
        largest = torch.maximum(*(_largest(planes[place]) for planes in slopes))
        terms = largest[0].numel() // max(1, value.lower[0].numel())
        error = error + largest * value.magnitude * (16 * terms * unit)
    for offset in offsets:
        if offset is not None:
            size = _largest(offset)
            error = error + size * (4 * rounding.gamma(size[0].numel(), inputs[0].dtype))
    return error


def between(rows: Tensor, above: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return rows times slopes: of a lower plane where they are positive, else of an upper one.

    A slope of zero gives zero, and not the noise of a difference: see `positive`.
    """
    return torch.addcmul(above * lower, rows - above, upper)


def positive(rows: Tensor, lead: int) -> Tensor:
    """Return the positive part of rows, with half the slope where they are noise.

    Coefficients that cancel leave the noise of a sum, whose sign depends on how many samples are
    computed together. What is chosen by ascent must not depend on that sign.

    Args:
        rows: Coefficients.
        lead: Number of first dimensions that tell rows apart.
    """
    if not rows.requires_grad or not rows.numel():
        return rows.clamp_min(0)
    found: Tensor = _Positive.apply(rows, _noise(rows, lead))
    return found


def magnitudes(rows: Tensor, lead: int) -> Tensor:
    """Return the magnitudes of rows, with no slope where they are noise; see `positive`."""
    if not rows.requires_grad or not rows.numel():
        return rows.abs()
    found: Tensor = _Magnitudes.apply(rows, _noise(rows, lead))
    return found


def largest(sizes: Tensor) -> Tensor:
    """Return the largest of magnitudes `(N, S, elements)`, `(N, S)`.

    Those that are the largest up to noise share the slope, as which of them is does not tell.
    """
    if not sizes.requires_grad:
        return sizes.amax(2)
    found: Tensor = _Largest.apply(sizes)
    return found


def first_largest(values: Tensor, dim: int = 1, *, keepdim: bool = False) -> Tensor:
    """Return the place of the largest along a dimension, the first of those alike up to noise."""
    return values.float().argmax(dim, keepdim=keepdim)  # in few digits


def _noise(rows: Tensor, lead: int) -> Tensor:
    """Return up to which magnitude coefficients are noise, shaped to go with the rows."""
    noise = peak(rows.detach(), lead) * NOISE[rows.dtype]
    return noise.view(*noise.shape, *[1] * (rows.ndim - lead))


def peak(values: Tensor, lead: int) -> Tensor:
    """Return the largest magnitude over all dimensions but the first `lead`."""
    flat = values.flatten(lead)
    return torch.maximum(-flat.amin(lead), flat.amax(lead))  # no copy of all magnitudes


class _Positive(torch.autograd.Function):
    """The positive part, whose slope is 1/2 up to a threshold: the middle of both sides."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, noise: Tensor) -> Tensor:
        ctx.save_for_backward((rows > noise).to(torch.int8) + (rows >= -noise).to(torch.int8))
        return rows.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (halves,) = ctx.saved_tensors
        return (gradient * halves).mul_(0.5), None


class _Magnitudes(torch.autograd.Function):
    """The magnitude, whose slope is 0 up to a threshold."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, noise: Tensor) -> Tensor:
        ctx.save_for_backward((rows > noise).to(torch.int8) - (rows < -noise).to(torch.int8))
        return rows.abs()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (sign,) = ctx.saved_tensors
        return gradient * sign, None


class _Largest(torch.autograd.Function):
    """The largest element, whose slope is shared by all that are within noise of it."""

    @staticmethod
    def forward(ctx: Any, sizes: Tensor) -> Tensor:
        most = sizes.amax(2, keepdim=True)
        ctx.save_for_backward(sizes >= most * (1 - NOISE[sizes.dtype]))
        return most.squeeze(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (among,) = ctx.saved_tensors
        share = gradient.unsqueeze(2) / among.sum(2, keepdim=True)
        return torch.where(among, share, 0.0)


def dot(rows: Tensor, values: Tensor) -> Tensor:
    """Return the sum of rows times values over all but samples and rows, `(N, S)`.

    Args:
        rows: `(N, S, *shape)`.
        values: `(N or 1, S or 1, *shape)`, broadcast.
    """
    if values.ndim > 1 and values.shape[1] not in (1, rows.shape[1]):
        raise ValueError(f"rows {tuple(rows.shape)} do not go with values {tuple(values.shape)}")
    if values.shape[1] > 1:
        return (rows * values).flatten(2).sum(2)
    if values.ndim == rows.ndim > 3 and values.shape[3:].numel() == 1:
        rows, values = rows.flatten(3).sum(3), values.flatten(2)  # one for each channel
    if values.shape[2:] != rows.shape[2:]:
        values = values.expand(values.shape[0], 1, *rows.shape[2:])
    flat, full = rows.flatten(2), values.flatten(2)
    if len(full) == 1:
        return flat @ full[0, 0]
    return torch.bmm(flat, full.mT).squeeze(2)


def unbroadcast(rows: Tensor, value: Interval) -> Tensor:
    """Return rows summed over the dimensions in which a value was broadcast."""
    shape = value.shape[1:]
    if rows.shape[2:] == shape:
        return rows
    extra = rows.ndim - 2 - len(shape)
    stretched = [
        2 + place
        for place in range(rows.ndim - 2)
        if place < extra or (shape[place - extra] == 1 and rows.shape[2 + place] != 1)
    ]
    return rows.sum(stretched, keepdim=True).reshape(*rows.shape[:2], *shape)


def flat_rows(rows: Tensor, transpose: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply the transpose of an operator that takes samples one by one to `(N, S, *shape)` rows."""
    found = transpose(rows.flatten(0, 1))
    return found.view(*rows.shape[:2], *found.shape[1:])


def transposed(apply: Callable[[Tensor], Tensor], value: Interval) -> Callable[[Tensor], Tensor]:
    """Return the transpose of an operator that is linear, by its vector-Jacobian product.

    Args:
        apply: The operator on `(N, *shape)` values.
        value: Its argument.
    """

    def back(rows: Tensor) -> Tensor:
        like = rows.new_zeros(()).expand(value.shape)
        product = torch.func.vjp(apply, like)[1]
        carried: Tensor = torch.vmap(lambda each: product(each)[0], in_dims=1, out_dims=1)(rows)
        return carried

    return back


def _with_rows(values: Tensor, input: Interval) -> Tensor:
    return values if values.ndim > len(input.shape) else values.unsqueeze(1)


def _largest(values: Tensor) -> Tensor:
    """Return the largest magnitude over rows, `(N or 1, *shape)`."""
    sizes = values.detach().abs()
    return sizes.squeeze(1) if sizes.shape[1] == 1 else sizes.amax(1)
