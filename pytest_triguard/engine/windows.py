"""Square windows of an image, one per sample, and the patterns that fill them.

Windows of different sizes go through the same operations: they are masks, not slices.
"""

from __future__ import annotations

import torch
from torch import Tensor


def corner(uniform: Tensor, size: Tensor, extent: int) -> Tensor:
    """Return where windows begin along an axis, `(N,)` int64, each place equally likely.

    Args:
        uniform: `(N,)` draws from [0, 1).
        size: `(N,)` int64 sizes of the windows.
        extent: Size of the image along the axis.
    """
    places = extent - size + 1
    return torch.minimum((uniform * places).to(torch.int64), places - 1)


def inside(top: Tensor, left: Tensor, size: Tensor, shape: torch.Size) -> Tensor:
    """Return the mask of windows, `(N, 1, H, W)` bool, in images of `shape`, `(N, C, H, W)`."""
    row, column = _offsets(top, left, shape)
    size = size.view(-1, 1, 1, 1)
    return (row >= 0) & (row < size) & (column >= 0) & (column < size)


def placed(patterns: Tensor, top: Tensor, left: Tensor, size: Tensor, shape: torch.Size) -> Tensor:
    """Return patterns at the places of windows, 0 elsewhere, `(N, 1, H, W)`.

    Args:
        patterns: `(N, S, S)`, of which the first `size` rows and columns are used.
        top: `(N,)` int64 first rows of the windows.
        left: `(N,)` int64 first columns of the windows.
        size: `(N,)` int64 sizes.
        shape: Shape of the images, `(N, C, H, W)`.
    """
    last = patterns.shape[-1] - 1
    row, column = (each.clamp(0, last) for each in _offsets(top, left, shape))
    places = (row * (last + 1) + column).flatten(1)
    values = patterns.flatten(1).gather(1, places).view(len(patterns), 1, *shape[2:])
    return values * inside(top, left, size, shape)


def _offsets(top: Tensor, left: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    row = torch.arange(shape[2], device=top.device).view(1, 1, -1, 1) - top.view(-1, 1, 1, 1)
    column = torch.arange(shape[3], device=top.device).view(1, 1, 1, -1) - left.view(-1, 1, 1, 1)
    return row, column


def bump(size: int) -> Tensor:
    """Return the two-sided bump of the Square attack in L2, `(size, size)` float64, of norm 1.

    The upper half is positive and the lower half negative; each falls from its middle by the
    squares of 1, 1/2, 1/3 and so on (Andriushchenko et al. 2020, section 3.4).
    """
    upper, lower = _hill(size // 2, size), _hill(size - size // 2, size)
    pattern = torch.cat([upper, -lower])
    norm: Tensor = torch.linalg.vector_norm(pattern)
    return pattern / norm


def _hill(height: int, width: int) -> Tensor:
    """Return a hill of norm 1 that falls from its middle, `(height, width)` float64."""
    if not height:
        return torch.zeros(0, width, dtype=torch.float64)
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    distance = torch.maximum(rows.unsqueeze(1), columns)
    rings = max(height // 2, width // 2) + 1
    steps = 1.0 / torch.arange(1, rings + 1, dtype=torch.float64) ** 2
    heights = steps.flip(0).cumsum(0).flip(0)
    values = heights[distance]
    norm: Tensor = torch.linalg.vector_norm(values)
    return values / norm
