"""How many of the most important pixels two maps have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

from torch import Tensor

from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.errors import InputError
from pytest_triguard.facts import Facts
from pytest_triguard.metrics.pair import ReducedPair
from pytest_triguard.validation import number, whole

_EXACT = 1 - 1e-12
"""Takes off what rounding adds: 0.07 of 100 pixels are 7, and not 7.000000000000001."""


@dataclass(frozen=True, kw_only=True)
class TopKIntersection(ReducedPair):
    """Share of the `k` highest pixels of one map that are among those of the other; a similarity.

    `|top_k(A) ∩ top_k(B)| / k`: 1 where both rank the same pixels highest, 0 where they share
    none. Of equal pixels the first in reading order ranks higher, so a map with fewer than `k`
    pixels that are not zero is filled up in reading order. A random ranking reaches
    `k / (H W)` on average. A zero map ranks nothing and is undefined.

    Args:
        k: Number of pixels (elements with `channels="none"`): a whole number counts them, a
            fraction in (0, 1] is a share of the map, rounded up.

    References:
        Ghorbani et al. 2019, "Interpretation of Neural Networks Is Fragile", arXiv:1710.10547,
        section 3.
    """

    name: ClassVar[str] = "topk_intersection"
    facts: ClassVar[Facts] = Facts(cost="none", sign="higher is more alike")
    similarity: ClassVar[bool] = True

    k: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k)

    @property
    def title(self) -> str:
        """What reports call the number."""
        return "top-k intersection"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "zero map"

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(0, 1)`."""
        return 0.0, 1.0

    def compare(self, maps: Tensor, others: Tensor) -> Tensor:
        """Return the share of each pair, `(N,)`.

        Raises:
            InputError: If `k` is larger than the map.
        """
        return self.kept(self.top(maps), others)

    def top(self, maps: Tensor) -> Tensor:
        """Return which pixels of each map are its highest, `(N, M)` bool; of an undefined map none.

        Raises:
            InputError: If `k` is larger than the map.
        """
        values = self.reduced(maps).flatten(1)
        found = highest(values, top_count(self.k, values.shape[1]))
        return found & values.isfinite().all(1, keepdim=True)

    def kept(self, top: Tensor, others: Tensor) -> Tensor:
        """Return the share of such pixels that are highest in other maps, too, `(N,)`."""
        found = self.top(others)
        defined = top.any(1) & found.any(1)
        shared = (top & found).sum(1).to(at_least_single(others).dtype)
        return (shared / top_count(self.k, top.shape[1])).masked_fill(~defined, math.nan)


def check_k(k: Any, name: str = "k") -> None:
    """Refuse what is neither a whole number above 0 nor a fraction in (0, 1].

    Raises:
        InputTypeError: If it is no number.
        InputError: If it is out of range.
    """
    if isinstance(k, Integral):
        whole(name, k, low=1)
    else:
        number(name, k, low=0, high=1, low_open=True)


def top_count(k: float, size: int, name: str = "k") -> int:
    """Return how many of `size` pixels `k` stands for.

    Raises:
        InputError: If there are fewer.
    """
    if not isinstance(k, Integral):
        return math.ceil(k * size * _EXACT)
    if k > size:
        raise InputError(f"{name} must not exceed the {size} pixels of a map, but {k} came")
    return int(k)


def highest(values: Tensor, count: int) -> Tensor:
    """Return the `count` highest of each row as a mask; of equal ones the first in order.

    Args:
        values: `(N, M)`.
        count: How many.

    Returns:
        `(N, M)` bool.
    """
    least = values.topk(count, dim=1).values[:, -1:]  # much less work than sorting everything
    above, equal = values > least, values == least
    return above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
