"""Balls, boxes and directions, sample by sample.

All tensors are `(N, C, H, W)`; `eps` and step sizes are `(N,)`, in input units.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pytest_triguard.engine import draws

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = ("linf", "l2")


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Return `(N,)` values as `(N, 1, 1, 1)`, to go with the samples in `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def l2_norm(values: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample, `(N, 1, 1, 1)`."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True)
    return norm


def project(
    points: Tensor, clean: Tensor, eps: Tensor, norm: Norm, bounds: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the points moved into the ball around `clean` and into the valid range.

    For L2 the offset is scaled back to the sphere and then clipped; as `clean` is inside the
    range, clipping only shortens the offset, so the result is in both sets.
    """
    return _confined(points - clean, clean, eps, norm, bounds)


def stepped(
    points: Tensor,
    direction: Tensor,
    length: Tensor,
    clean: Tensor,
    eps: Tensor,
    norm: Norm,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the points after a step of `length`, `(N,)`, along `direction`, and `project`."""
    offset = (points - clean).addcmul_(direction, per_row(length, direction))
    return _confined(offset, clean, eps, norm, bounds)


def stepped_in_box(
    points: Tensor, direction: Tensor, length: Tensor, box: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the points after a step of `length`, `(N,)`, along `direction`, kept in a `box`.

    What `stepped` does for L-inf, up to rounding, without computing the ball again.
    """
    return torch.addcmul(points, direction, per_row(length, direction)).clamp_(*box)


def box(clean: Tensor, eps: Tensor, bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the ends of the L-inf ball inside the valid range, each `(N, C, H, W)`.

    `clean` is inside both, and so is what is clamped between them.
    """
    radius = per_row(eps, clean)
    return torch.maximum(clean - radius, bounds[0]), torch.minimum(clean + radius, bounds[1])


def _confined(
    offset: Tensor, clean: Tensor, eps: Tensor, norm: Norm, bounds: tuple[Tensor, Tensor]
) -> Tensor:
    """Overwrite an offset with the point it leads to, once ball and range are kept.

    In place, as temporaries would cost more than the arithmetic.
    """
    radius = per_row(eps, clean)
    if norm == "linf":
        offset.clamp_max_(radius).clamp_min_(-radius)
    else:
        length = l2_norm(offset)
        offset *= (radius / length.clamp_min(torch.finfo(offset.dtype).tiny)).clamp_max(1)
    return offset.add_(clean).clamp_min_(bounds[0]).clamp_max_(bounds[1])


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the unit direction of steepest ascent; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    # The squares of a tiny gradient would vanish.
    tiny = torch.finfo(gradient.dtype).tiny
    gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(tiny)
    return gradient / l2_norm(gradient).clamp_min(tiny)


def random_offset(keys: Tensor, like: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Return offsets drawn uniformly from the ball, `(N, C, H, W)`.

    Args:
        keys: `(N,)` int64 from `draws.row_keys`.
        like: Gives shape and dtype.
        eps: Radii.
        norm: Norm of the ball. For L2: a normal direction and a radius of `u ** (1 / d)`.
    """
    shape = like.shape[1:]
    radius = per_row(eps, like)
    if norm == "linf":
        return draws.uniform(keys, shape, dtype=like.dtype, low=-1.0) * radius
    direction = ascent(draws.normal(keys, shape, dtype=like.dtype), "l2")
    fraction = draws.uniform(keys + 1, (1, 1, 1), dtype=like.dtype)
    return direction * radius * fraction ** (1.0 / shape.numel())


def surface_offset(keys: Tensor, like: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Return random offsets of length eps, `(N, C, H, W)`.

    Args:
        keys: `(N,)` int64 from `draws.row_keys`.
        like: Gives shape and dtype.
        eps: Lengths.
        norm: Norm of the length. For L-inf: uniform elements, scaled so that the largest is eps;
            for L2: a normal direction.
    """
    shape, tiny = like.shape[1:], torch.finfo(like.dtype).tiny
    if norm == "linf":
        drawn = draws.uniform(keys, shape, dtype=like.dtype, low=-1.0)
        drawn /= drawn.abs().amax((1, 2, 3), keepdim=True).clamp_min(tiny)
    else:
        drawn = ascent(draws.normal(keys, shape, dtype=like.dtype), "l2")
    return drawn * per_row(eps, like)


def length(offset: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each offset, `(N,)`."""
    if norm == "linf":
        return offset.abs().amax((1, 2, 3))
    return l2_norm(offset).flatten()
