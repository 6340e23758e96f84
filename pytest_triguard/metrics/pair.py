"""Metrics of two maps of one sample: how alike they are, or how far apart."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pytest_triguard.metrics.base import Metric, check_beside, check_maps, scaled
from pytest_triguard.validation import flag, one_of

Channels = Literal["sum", "max", "none"]
CHANNELS: tuple[Channels, ...] = ("sum", "max", "none")


@dataclass(frozen=True, kw_only=True)
class PairMetric(Metric):
    """A number for two maps `(N, C, H, W)` of each sample: a similarity or a distance."""

    similarity: ClassVar[bool]
    """Whether equal maps have the greatest number (a similarity) or 0 (a distance)."""

    @abstractmethod
    def compare(self, maps: Tensor, others: Tensor) -> Tensor:
        """Return the numbers, `(N,)`, of maps that were checked."""

    def __call__(self, maps: Tensor, others: Tensor) -> Tensor:
        """Return the number of each pair of maps.

        Args:
            maps: `(N, C, H, W)` floating.
            others: Likewise, on the same device.

        Returns:
            `(N,)` in the dtype and on the device of `maps`, NaN where undefined.

        Raises:
            InputTypeError: If one is no floating tensor.
            InputError: If their shapes or devices do not agree.
        """
        maps, others = check_maps("maps", maps), check_maps("others", others)
        check_beside("others", others, maps.shape, reference="maps", like=maps)
        return self.compare(maps, others).to(maps.dtype)


@dataclass(frozen=True, kw_only=True)
class ReducedPair(PairMetric):
    """A pair metric that first reduces each map over its channels.

    Args:
        channels: `"sum"` or `"max"` over channels, or `"none"` to compare every element.
        absolute: Whether the absolute value is taken first.
    """

    channels: Channels = "sum"
    absolute: bool = True

    def __post_init__(self) -> None:
        one_of("channels", self.channels, CHANNELS)
        flag("absolute", self.absolute)

    def reduced(self, maps: Tensor) -> Tensor:
        """Return the maps reduced as asked for; see `reduced`."""
        return reduced(maps, self.channels, absolute=self.absolute)


def reduced(maps: Tensor, channels: Channels, *, absolute: bool) -> Tensor:
    """Return maps reduced over channels, of which the greatest absolute value is 1.

    Args:
        maps: `(N, C, H, W)` floating.
        channels: `"sum"`, `"max"` or `"none"`.
        absolute: Whether the absolute value is taken first.

    Returns:
        `(N, 1, H, W)`, or `(N, C, H, W)` for `"none"`, in float32 at least; all NaN where
        nothing is left: the map is zero, or its channels cancel.
    """
    maps = scaled(maps)  # or a sum over channels could overflow
    maps = maps.abs() if absolute else maps
    if channels == "sum":
        maps = maps.sum(1, keepdim=True)
    elif channels == "max":
        maps = maps.amax(1, keepdim=True)
    return scaled(maps)
