"""Rows on images that are zero outside a window, a grid of windows at a time.

A row on one element of a convolution's result reaches a small window of the convolution's argument.
Rows of all places of an image are kept as a grid of windows that move by a fixed step from place to
place: what is computed is what the rows reach, not the whole image for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding

NOISE = {dtype: 2.0**12 * rounding.roundoff(dtype) for dtype in (torch.float32, torch.float64)}
"""Share of the largest number beside it below which a sum is taken for the noise of zero."""


@dataclass(frozen=True)
class Grid:
    """Windows over an image, by a fixed step.

    Attributes:
        origin: Row and column of the first window's first element; may lie outside the image.
        step: Rows and columns from a window to the next.
        tiles: Number of windows down and across.
        size: Rows and columns of a window.
        image: Rows and columns of the image.
    """

    origin: tuple[int, int]
    step: tuple[int, int]
    tiles: tuple[int, int]
    size: tuple[int, int]
    image: tuple[int, int]

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.tiles[0] * self.tiles[1]

    @property
    def inside(self) -> bool:
        """Whether every window lies inside the image."""
        return all(
            origin >= 0 and origin + (tiles - 1) * step + size <= image
            for origin, step, tiles, size, image in self._sides()
        )

    @property
    def pays(self) -> bool:
        """Whether windows are worth their handling: they are clearly smaller than the image."""
        return 2 * self.size[0] * self.size[1] <= self.image[0] * self.image[1]

    def cut(self, images: Tensor, outside: float = 0.0) -> Tensor:
        """Return the windows of images `(N, C, H, W)`, as `(N, T, C, h, w)`."""
        full = images.expand(*images.shape[:2], *self.image)
        margins: list[int] = []
        for origin, step, tiles, size, image in reversed(list(self._sides())):
            margins += [max(0, -origin), max(0, origin + (tiles - 1) * step + size - image)]
        padded = functional.pad(full, margins, value=outside)
        for dim, (origin, step, tiles, size, _) in enumerate(self._sides()):
            begin = max(0, origin)
            padded = padded.narrow(2 + dim, begin, (tiles - 1) * step + size)
            padded = padded.unfold(2 + dim, size, step)
        return padded.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)

    def back(
        self,
        step: tuple[int, int],
        before: tuple[int, int],
        reach: tuple[int, int],
        image: torch.Size,
    ) -> Grid:
        """Return the windows of an argument that windows of a sliding operator's result reach.

        Args:
            step: Stride of the operator.
            before: Rows and columns of padding in front.
            reach: Rows and columns that one result reaches.
            image: Size of the argument.
        """
        return Grid(
            _pair(o * s - b for o, s, b in zip(self.origin, step, before, strict=True)),
            _pair(a * s for a, s in zip(self.step, step, strict=True)),
            self.tiles,
            _pair((w - 1) * s + r for w, s, r in zip(self.size, step, reach, strict=True)),
            (image[0], image[1]),
        )

    def local(self, places: Tensor) -> Tensor:
        """Return places `(N, T, C, h, w)` in `(channels, *image)` as places in the windows.

        What is outside its window is put anywhere inside.
        """
        high, wide = self.image
        tile = torch.arange(self.count, device=places.device).view(1, -1, 1, 1, 1)
        channel, place = places // (high * wide), places % (high * wide)
        down = place // wide - self.origin[0] - self.step[0] * (tile // self.tiles[1])
        across = place % wide - self.origin[1] - self.step[1] * (tile % self.tiles[1])
        down, across = down.clamp(0, self.size[0] - 1), across.clamp(0, self.size[1] - 1)
        return (channel * self.size[0] + down) * self.size[1] + across

    def around(self, other: Grid) -> Grid | None:
        """Return the windows that hold those of two grids, or None where they move differently."""
        if (self.step, self.tiles, self.image) != (other.step, other.tiles, other.image):
            return None
        origin = _pair(min(a, b) for a, b in zip(self.origin, other.origin, strict=True))
        end = [
            max(a + c, b + d)
            for a, c, b, d in zip(self.origin, self.size, other.origin, other.size, strict=True)
        ]
        size = _pair(e - o for e, o in zip(end, origin, strict=True))
        return replace(self, origin=origin, size=size)

    def places(self, device: torch.device) -> Tensor:
        """Return the place in the image of each element of a window, `(T, h * w)`; -1 outside."""
        rows, columns = (
            origin
            + step * torch.arange(tiles, device=device)[:, None]
            + torch.arange(size, device=device)
            for origin, step, tiles, size, _ in self._sides()
        )
        known = [
            (each >= 0) & (each < extent)
            for each, extent in zip((rows, columns), self.image, strict=True)
        ]
        place = rows[:, None, :, None] * self.image[1] + columns[None, :, None, :]
        there = known[0][:, None, :, None] & known[1][None, :, None, :]
        return torch.where(there, place, -1).flatten(2).flatten(0, 1)

    def _sides(self) -> list[tuple[int, int, int, int, int]]:
        return list(zip(self.origin, self.step, self.tiles, self.size, self.image, strict=True))


@dataclass(frozen=True)
class Windowed:
    """Rows on images, each zero outside its window.

    Attributes:
        rows: `(N, T, S, C, h, w)`, S rows for each of T windows.
        grid: The windows.
        clean: Whether elements outside the image are zero; else they mean nothing.
    """

    rows: Tensor
    grid: Grid
    clean: bool

    def flat(self) -> Tensor:
        """Return the rows one by one, `(N * T * S, C, h, w)`."""
        return self.rows.flatten(0, 2)

    def moved(self, flat: Tensor, grid: Grid) -> Windowed:
        """Return rows one by one as rows on another image, after an operator that slides."""
        rows = flat.view(*self.rows.shape[:3], *flat.shape[1:])
        return Windowed(rows, grid, clean=grid.inside)

    def cleaned(self) -> Windowed:
        """Return the rows with zeros outside the image."""
        if self.clean:
            return self
        one = self.rows.new_ones(1, 1, *self.grid.image)
        return Windowed(self.rows * self.grid.cut(one).unsqueeze(2), self.grid, clean=True)

    def dot(self, images: Tensor) -> Tensor:
        """Return the rows times images `(N or 1, C or 1, H or 1, W or 1)`, as `(N, T * S)`."""
        full = images.expand(len(images), *self.rows.shape[3:4], *self.grid.image)
        columns = self.grid.cut(full).flatten(2).unsqueeze(3)
        return (self.rows.flatten(3) @ columns).squeeze(3).flatten(1)

    def whole(self) -> Tensor:
        """Return the rows on whole images, `(N, T * S, C, H, W)`."""
        samples, tiles, rows, channels = self.rows.shape[:4]
        extent = self.grid.image[0] * self.grid.image[1]
        places = self.grid.places(self.rows.device)
        places = torch.where(places < 0, extent, places).view(1, tiles, 1, 1, -1)
        full = self.rows.new_zeros(samples, tiles, rows, channels, extent + 1)
        full = full.scatter(4, places.expand(samples, -1, rows, channels, -1), self.rows.flatten(4))
        return full[..., :extent].reshape(samples, tiles * rows, channels, *self.grid.image)

    def within(self, grid: Grid) -> Windowed:
        """Return the rows in larger windows that hold their own."""
        pads: list[int] = []
        for dim in (1, 0):
            before = self.grid.origin[dim] - grid.origin[dim]
            pads += [before, grid.size[dim] - self.grid.size[dim] - before]
        return Windowed(functional.pad(self.rows, pads), grid, self.clean)


def merged(
    first: Tensor | Windowed, second: Tensor | Windowed
) -> tuple[Tensor | Windowed, Tensor | Windowed | None]:
    """Return the sum of rows on one value, and what was left out of it as noise, or None.

    Coefficients that cancel leave the noise of a sum, whose sign depends on how many samples are
    computed together. Where choices are to follow the slopes, it is left out, and the slopes not.
    """
    if isinstance(first, Windowed) and isinstance(second, Windowed):
        grid = first.grid.around(second.grid)
        if grid is not None and grid.pays:
            one, two = first.within(grid), second.within(grid)
            clean = one.clean and two.clean
            total, lost = _added(one.rows, two.rows)
            left = None if lost is None else Windowed(lost, grid, clean)
            return Windowed(total, grid, clean), left
    return _added(whole(first), whole(second))


def _added(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor | None]:
    total = first + second
    if not total.requires_grad:
        return total, None
    with torch.no_grad():
        noise = torch.maximum(first.abs(), second.abs()).mul_(NOISE[total.dtype])
        lost = torch.where(total.abs() <= noise, total, 0.0)
    return total - lost, lost


def whole(rows: Tensor | Windowed) -> Tensor:
    """Return rows on whole values, `(N, S, *shape)`."""
    return rows.whole() if isinstance(rows, Windowed) else rows


def row_count(rows: Tensor | Windowed) -> int:
    """Return the number of rows of all samples together."""
    if isinstance(rows, Windowed):
        return rows.rows.shape[:3].numel()
    return rows.shape[:2].numel()


def row_size(rows: Tensor | Windowed) -> int:
    """Return the number of elements of a row."""
    shape = rows.rows.shape[3:] if isinstance(rows, Windowed) else rows.shape[2:]
    return shape.numel()


def _pair(values: Iterable[int]) -> tuple[int, int]:
    first, second = values
    return first, second
