"""What every metric shares: its names, its range, and the checks of its arguments.

A metric is called with tensors and gives one number per sample on the device they are on, NaN
where the number is undefined. It never waits for values to reach the host, so only types, shapes
and devices are checked here; a map that holds NaN is undefined like a zero map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pytest_triguard.engine.equality import hyperparameters
from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import Facts
from pytest_triguard.validation import describe


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """One number per sample, or NaN where it is undefined."""

    name: ClassVar[str]
    facts: ClassVar[Facts]

    @property
    @abstractmethod
    def title(self) -> str:
        """What reports call the number."""

    @property
    @abstractmethod
    def undefined_reason(self) -> str:
        """Why a sample can be undefined; empty where every sample has a number."""

    @abstractmethod
    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return the least and the greatest number the metric can give.

        Args:
            shape: Shape of the maps, `(C, H, W)` or `(N, C, H, W)`.
        """

    @abstractmethod
    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the numbers, `(N,)`."""

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        return {"metric": self.name} | hyperparameters(self)


def check_maps(name: str, maps: Any) -> Tensor:
    """Return `maps` if it is a floating `(N, C, H, W)` tensor with at least one element a sample.

    Raises:
        InputTypeError: If it is no tensor, or not a floating one.
        InputError: If its shape is another.
    """
    if not isinstance(maps, Tensor):
        raise InputTypeError(f"{name} must be a tensor (N, C, H, W), but {describe(maps)} came")
    if not maps.dtype.is_floating_point:
        raise InputTypeError(f"{name} must be floating, but {describe(maps)} came")
    if maps.ndim != 4 or not all(maps.shape[1:]):
        raise InputError(f"{name} must have shape (N, C, H, W), but {describe(maps)} came")
    return maps


def check_beside(
    name: str, value: Any, shape: Sequence[int], *, reference: str, like: Tensor
) -> None:
    """Refuse what is no tensor of a shape, on the device of the tensor it goes with.

    Args:
        name: Name of the argument.
        value: What came.
        shape: The shape it must have.
        reference: Name of the argument it goes with.
        like: That argument.

    Raises:
        InputTypeError: If it is no tensor.
        InputError: If shape or device is another.
    """
    expected = tuple(shape)
    if not isinstance(value, Tensor):
        raise InputTypeError(
            f"{name} must be a tensor of shape {expected}, but {describe(value)} came"
        )
    if value.shape != expected:
        raise InputError(
            f"{name} must have shape {expected} to go with {reference}, but {describe(value)} came"
        )
    if value.device != like.device:
        raise InputError(
            f"{name} must be on {like.device} like {reference}, but a tensor on {value.device} came"
        )


def scaled(maps: Tensor) -> Tensor:
    """Return maps of which the greatest absolute value is 1; a zero map becomes NaN, from 0 / 0.

    Sums of scaled maps neither overflow nor vanish, however large or small the maps are.
    """
    maps = at_least_single(maps)
    return maps / maps.abs().amax((1, 2, 3), keepdim=True)
