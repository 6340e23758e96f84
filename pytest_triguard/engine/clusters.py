"""k-means, seeded."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.engine import draws

_MOST_STEPS = 300


def k_means(points: Tensor, count: int, *, seed: int, name: str = "") -> tuple[Tensor, Tensor]:
    """Return centres of clusters, and to which of them each point belongs.

    Lloyd's steps from centres that are drawn far from each other (k-means++), until no point
    changes its cluster. There are fewer clusters than asked for where there are fewer different
    points, and no cluster is empty.

    Args:
        points: `(n, d)` on the host, in any floating dtype; distances are taken in float64.
        count: Number of clusters.
        seed: Seed of the draws.
        name: What it is for, so that two uses never share their draws.

    Returns:
        The centres `(k, d)` float64 and the cluster of each point, `(n,)` int64.

    References:
        Arthur and Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding", SODA,
        section 2.2.
    """
    points = points.to(torch.float64)
    centres = _seeded(points, count, seed, name)
    centres, cluster = _means(points, _nearest(points, centres))
    for _ in range(_MOST_STEPS):
        after = _nearest(points, centres)
        if torch.equal(after, cluster):
            break
        centres, cluster = _means(points, after)
    return centres, cluster


def _means(points: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each cluster that is not empty, and the clusters numbered by that."""
    counts = torch.bincount(cluster)
    numbers = (counts > 0).cumsum(0) - 1
    cluster = numbers[cluster]
    sums = points.new_zeros((int(numbers[-1]) + 1, points.shape[1])).index_add_(0, cluster, points)
    return sums / counts[counts > 0].unsqueeze(1), cluster


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres).argmin(1)


def _seeded(points: Tensor, count: int, seed: int, name: str) -> Tensor:
    """Return points, each drawn with the square of its distance from those before as its weight."""
    chosen: list[int] = []
    weights = torch.ones_like(points[:, 0])
    for number in range(count):
        if not bool(weights.any()):
            break
        key = draws.row_keys(torch.tensor([number]), seed=seed, method=f"k-means/{name}")
        share = draws.uniform(key, (), dtype=torch.float64)
        sums = weights.cumsum(0)
        place = int(torch.searchsorted(sums, share * sums[-1], right=True))
        chosen.append(min(place, len(points) - 1))
        distance = (points - points[chosen[-1]]).square().sum(1)
        weights = distance if number == 0 else torch.minimum(weights, distance)
    return points[chosen]
