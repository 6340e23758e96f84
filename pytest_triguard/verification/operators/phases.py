"""The transpose of a convolution as products of matrices, for processors without a kernel for it.

For stride s, the elements of the argument fall into s by s phases. All phases of a channel are
channels of one convolution of stride 1 of the rows, with the kernel cut into tiles of s by s taps.
Written out line after line and one behind the other, with zeros around, rows shifted by a tap are
the same numbers from another place on: each tile is one product of matrices for all of them, and
nothing is copied for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.engine.devices import is_host

_HELD = 2**17
"""Numbers that are worked on at a time: they stay in the cache."""

_CHANNELS = 8
"""Channels below which the products are too slim."""

_STRIDE = 2
"""Largest stride, as each phase is put in place by itself."""

_WIDTH = 12
"""Columns that a product of matrices in float64 takes together; fewer at its end cost as much."""

_WASTE = 2.0
"""Largest number of products for one that is not with a zero."""


@dataclass(frozen=True)
class _Line:
    """One side of the images, down or across.

    Attributes:
        padded: Places of rows with zeros around, that the tiles are shifted over.
        pitch: Places from one line to the next, which may share zeros.
        count: Places that are computed.
        given: Places of the rows that count.
        to: Where they are put.
        phases: For each phase, which places are computed of it, and where they belong.
    """

    padded: int
    pitch: int
    count: int
    given: slice
    to: slice
    phases: list[tuple[slice, slice]]

    @staticmethod
    def of(extent: int, size: int, before: int, step: int, tiles: int) -> _Line:
        """Return the places for rows of an extent, and a result of a size."""
        first, offset = before // step, before % step
        count = (size - 1 + before) // step - first + 1
        padded, ahead = count + tiles - 1, tiles - 1 - first
        begin, to = max(0, -ahead), max(0, ahead)
        number = max(0, min(extent - begin, padded - to))
        phases = []
        for phase in range(step):
            begins = (phase - offset) % step
            inner = (begins + offset) // step
            places = len(range(begins, size, step))
            phases.append((slice(inner, inner + places), slice(begins, size, step)))
        given, filled = slice(begin, begin + number), slice(to, to + number)
        shared = min(filled.start, padded - filled.stop, tiles - 1)
        return _Line(padded, padded - shared, count, given, filled, phases)


@dataclass(frozen=True)
class Phases:
    """The weights of a convolution, by tiles and phases.

    Attributes:
        weights: `(tiles, C * phases, K)`.
        steps: Stride.
        tiles: Number of tiles down and across.
    """

    weights: Tensor
    steps: tuple[int, int]
    tiles: tuple[int, int]

    @staticmethod
    def of(weight: Tensor, steps: tuple[int, int]) -> Phases | None:
        """Return weights `(K, C, h, w)` rearranged, or None where another kernel is faster."""
        channels, size = weight.shape[1], weight.shape[2:]
        tiles = -(-size[0] // steps[0]), -(-size[1] // steps[1])
        full = [count * step for count, step in zip(tiles, steps, strict=True)]
        waste = full[0] * full[1] / size.numel()
        slim = channels < _CHANNELS or max(steps) > _STRIDE or waste > _WASTE
        if slim or weight.dtype != torch.float64 or not is_host(weight.device):
            return None
        padded = functional.pad(weight, (0, full[1] - size[1], 0, full[0] - size[0]))
        split = padded.view(-1, channels, tiles[0], steps[0], tiles[1], steps[1])
        arranged = split.permute(2, 4, 1, 3, 5, 0).reshape(tiles[0] * tiles[1], -1, len(weight))
        return Phases(arranged, steps, tiles)

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take."""
        return self.weights.nbytes

    def back(self, rows: Tensor, size: tuple[int, int], before: tuple[int, int]) -> Tensor:
        """Return the transpose of rows `(M, K, h, w)`, `(M, C, *size)`.

        Args:
            rows: Coefficients on the convolution's result.
            size: Rows and columns of the argument.
            before: Padding in front.
        """
        down, across = (
            _Line.of(*each)
            for each in zip(rows.shape[2:], size, before, self.steps, self.tiles, strict=True)
        )
        inputs, outputs, wide = rows.shape[1], self.weights.shape[1], across.pitch
        area, channels = down.pitch * wide, outputs // (self.steps[0] * self.steps[1])
        found = rows.new_empty(len(rows), channels, *size)
        taken = (inputs + outputs) * area + found[:1].numel()
        parts = -(-len(rows) // max(1, _HELD // taken))
        step = -(-len(rows) // parts)
        length = -(-step * area // _WIDTH) * _WIDTH
        held = rows.new_zeros(inputs, length + (self.tiles[0] - 1) * wide + self.tiles[1] - 1)
        lines = held[:, : step * area].view(inputs, step, -1, wide)
        images = lines[..., down.to, across.to].transpose(0, 1)
        product = rows.new_empty(outputs, length)
        phases = product[:, : step * area].view(channels, *self.steps, step, -1, wide)
        given, tiles = rows[:, :, down.given, across.given], self._tiles(held, wide, length)
        moves = [
            (
                torch.split(found[:, :, outer, other], step),
                phases[:, top, left, :, inner, own].transpose(0, 1),
            )
            for top, (inner, outer) in enumerate(down.phases)
            for left, (own, other) in enumerate(across.phases)
        ]
        for number, part in enumerate(torch.split(given, step)):
            count = len(part)
            if count < step:
                images, length = images[:count], count * area
                product = product[:, :length]
                tiles = [(weights, shifted[:, :length]) for weights, shifted in tiles]
                moves = [(places, phase[:count]) for places, phase in moves]
            images.copy_(part)
            torch.mm(*tiles[0], out=product)
            for weights, shifted in tiles[1:]:
                product.addmm_(weights, shifted)
            for places, phase in moves:
                places[number].copy_(phase)
        return found

    def _tiles(self, held: Tensor, wide: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Return the weights of each tile, and what is held from its place on."""
        last = self.tiles[0] * self.tiles[1] - 1
        places = (divmod(last - number, self.tiles[1]) for number in range(last + 1))
        return [
            (weights, held.narrow(1, top * wide + left, length))
            for weights, (top, left) in zip(self.weights, places, strict=True)
        ]
