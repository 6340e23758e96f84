"""What perturbations and patches are painted with: a few rectangles of simple textures.

A tensor drawn number by number would take thousands of choices. It would be slow, it would
exceed what hypothesis is ready to draw, and nothing in it could be shrunk to something a reader
understands. A tensor made from one seed is fast, but a seed cannot be shrunk at all.

A painting lies between the two. It is a short list of strokes, each a dozen choices, whatever the
size of the images. Hypothesis leaves out strokes that do not matter, and makes the others smaller:
fewer samples, channels and pixels, less strength, flat in place of noise. What random numbers a
texture needs come from a seed, by the sample and pixel they are for. They stay the same while the
rectangle around them shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from pytest_triguard.engine import draws

Shape = tuple[int, int, int, int]
"""Samples, channels, height and width of what is painted."""

Span = tuple[int, int]
"""The first of several, and the one after the last."""

LEVELS = 256
"""How finely a strength is drawn."""

_MOST = 4
_CELLS = (1, 2, 4, 8)
_SEEDS = 2**16
_RARE = 1 / 32
"""Share of the cells that speckles cover."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stroke:
    """A rectangle of pixels and what is painted there.

    Attributes:
        samples: First sample, and the sample after the last.
        channels: First channel, and the channel after the last.
        rows: First row, and the row after the last.
        columns: First column, and the column after the last.
        texture: What it looks like, a key of `TEXTURES`.
        cell: Side of the squares a texture is made of, in pixels.
        seed: Seed of a random texture.
        strength: From -1 to 1: what the values of the texture are multiplied by.
    """

    samples: Span
    channels: Span
    rows: Span
    columns: Span
    texture: str
    cell: int
    seed: int
    strength: float


Cells = tuple[int, int, int]
"""Channels, rows and columns of the cells of a texture."""


def _flat(stroke: Stroke, cells: Cells) -> Tensor:
    return torch.ones(1, *cells, dtype=torch.float64)


def _checkerboard(stroke: Stroke, cells: Cells) -> Tensor:
    row, column = torch.arange(cells[1]).unsqueeze(1), torch.arange(cells[2])
    return (1.0 - 2.0 * ((row + column) % 2).double()).expand(1, *cells)


def _noise(stroke: Stroke, cells: Cells) -> Tensor:
    keys = draws.row_keys(torch.arange(*stroke.samples), seed=stroke.seed, method="strokes")
    return draws.uniform(keys, cells, dtype=torch.float64, low=-1.0)


def _signs(stroke: Stroke, cells: Cells) -> Tensor:
    return 1.0 - 2.0 * (_noise(stroke, cells) < 0).double()


def _speckles(stroke: Stroke, cells: Cells) -> Tensor:
    noise = _noise(stroke, cells)
    size = noise.abs()
    # One at least, where there are few cells.
    least = size.amin((1, 2, 3), keepdim=True).clamp_min(_RARE)
    return noise.sign() * (size <= least).double()


TEXTURES: dict[str, Callable[[Stroke, Cells], Tensor]] = {
    "flat": _flat,
    "checkerboard": _checkerboard,
    "speckles": _speckles,
    "signs": _signs,
    "noise": _noise,
}
"""Values in [-1, 1] per cell, `(n or 1, C, h, w)`, the simplest first; 0 leaves a cell alone."""


def paint(strokes: Sequence[Stroke], shape: Shape) -> Tensor:
    """Return a canvas of zeros with the strokes on it, `(N, C, H, W)` float64 in [-1, 1].

    Where strokes overlap, the last one covers those before it.
    """
    canvas = torch.zeros(shape, dtype=torch.float64)
    for each in strokes:
        spans = each.samples, each.channels, each.rows, each.columns
        window = tuple(slice(*span) for span in spans)
        painted = _texture(each, shape)[:, *window[1:]]
        canvas[window] = torch.where(painted != 0, painted * each.strength, canvas[window])
    return canvas


def _texture(stroke: Stroke, shape: Shape) -> Tensor:
    """Return a texture over the whole image, `(n or 1, C, H, W)`."""
    _, channels, height, width = shape
    cells = (channels, -(-height // stroke.cell), -(-width // stroke.cell))
    values = TEXTURES[stroke.texture](stroke, cells)
    values = values.repeat_interleave(stroke.cell, 2).repeat_interleave(stroke.cell, 3)
    return values[:, :, :height, :width]


@st.composite
def paintings(draw: st.DrawFn, shape: Shape) -> tuple[Stroke, ...]:
    """Return a strategy for the strokes of a painting; it shrinks towards none.

    Four fifths of the strokes are on all samples and two fifteenths on one, and so with the
    channels, the height and the width: two fifths are everywhere, as most vertices of a ball are.
    Seven of eight have full strength.
    """
    strokes = [_stroke(draw, shape) for _ in range(draw(st.integers(0, _MOST)))]
    # Strength 0 is how a stroke in the middle goes: hypothesis lowers a number more readily than
    # it takes a dozen choices out of a list.
    return tuple(each for each in strokes if each.strength)


def _stroke(draw: st.DrawFn, shape: Shape) -> Stroke:
    samples, channels, rows, columns = (_span(draw, size) for size in shape)
    return Stroke(
        samples=samples,
        channels=channels,
        rows=rows,
        columns=columns,
        texture=draw(st.sampled_from(tuple(TEXTURES))),
        cell=draw(st.sampled_from(_CELLS)),
        seed=draw(st.integers(0, _SEEDS - 1)),
        strength=draw(st.sampled_from((1, -1))) * capped(draw, LEVELS, after=7 * LEVELS) / LEVELS,
    )


def capped(draw: st.DrawFn, top: int, *, before: int = 0, after: int = 0) -> int:
    """Draw a whole number from 0 to `top`, with a share of the draws at either end.

    The number drawn rises with the choice it is made from, so that it shrinks as integers do.

    Args:
        draw: What draws.
        top: Largest number.
        before: How many choices more give 0.
        after: How many choices more give `top`.
    """
    return min(max(draw(st.integers(0, before + top + after)) - before, 0), top)


def _span(draw: st.DrawFn, size: int) -> Span:
    """Draw a range: its length before its place, as the length is what should shrink first."""
    length = 1 + capped(draw, size - 1, before=2 * size, after=12 * size)
    start = min(draw(st.integers(0, size - 1)), size - length)
    return start, start + length
