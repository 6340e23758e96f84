"""Which places of a convolution's kernel ever meet the image, and the kernel without the others.

Of images as small as those that deep networks end in, a kernel with padding sees little: of one
place, a kernel of 3x3 with a padding of 1 multiplies eight of its nine weights by nothing but zeros
of the padding. Without them the convolution is the same, for a ninth of the weights.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from pytest_triguard.verification.operators.shape import pair

Span = tuple[tuple[int, int], tuple[int, int]]
"""First place and the one past the last, down and across."""


def meeting(
    size: tuple[int, ...], weight: Tensor, stride: Any, padding: Any, dilation: Any
) -> tuple[Tensor, Any, Span | None]:
    """Return the weights that meet the image, the padding for them, and which they are.

    Args:
        size: Rows and columns of the image.
        weight: `(K, C, h, w)`.
        stride: As of `functional.conv2d`.
        padding: Likewise.
        dilation: Likewise.

    Returns:
        A view of the weights, and None where they are all of them.
    """
    extents, gaps = weight.shape[2:], pair(dilation)
    if padding == "same":
        totals = [gap * (extent - 1) for gap, extent in zip(gaps, extents, strict=True)]
        if any(total % 2 for total in totals):
            return weight, padding, None
        pads = pair([total // 2 for total in totals])
    else:
        pads = (0, 0) if padding == "valid" else pair(padding)
    down, across = (
        _span(*each) for each in zip(size, extents, pair(stride), pads, gaps, strict=True)
    )
    (top, bottom), (left, right) = down, across
    if (bottom - top, right - left) == tuple(extents):
        return weight, padding, None
    rest = (pads[0] - top * gaps[0], pads[1] - left * gaps[1])
    return weight[:, :, top:bottom, left:right], rest, (down, across)


@lru_cache(maxsize=4096)
def _span(size: int, extent: int, step: int, pad: int, gap: int) -> tuple[int, int]:
    """Return the first place that meets a line of an image, and the one past the last.

    All of them where the others cannot be left out by less padding on both sides.
    """
    reach = gap * (extent - 1) + 1
    if not pad or size >= reach + step - 1:  # some window is inside
        return 0, extent
    count = (size + 2 * pad - reach) // step + 1
    met = [
        place
        for place in range(extent)
        if any(0 <= window * step - pad + place * gap < size for window in range(count))
    ]
    if not met:
        return 0, extent
    first, last = met[0], met[-1] + 1
    ahead = pad - first * gap
    if ahead < 0 or (size + 2 * ahead - gap * (last - first - 1) - 1) // step + 1 != count:
        return 0, extent
    return first, last
