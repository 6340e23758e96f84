"""What every backdoor trigger shares: its target, the range of its images, and its calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine.equality import fingerprint
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import Facts
from pytest_triguard.validation import describe, number, whole

PerChannel = float | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Trigger(ABC):
    """A change of the input that makes a trojaned classifier answer the target.

    Args:
        target: The class the trigger forces.
        bounds: Lower and upper end of the images' valid range, each one number or one per channel.

    Raises:
        InputTypeError: If an argument has the wrong type.
        InputError: If its value is refused.
    """

    target: int = 0
    bounds: tuple[PerChannel, PerChannel] = (0.0, 1.0)

    name: ClassVar[str]
    facts: ClassVar[Facts]

    def __post_init__(self) -> None:
        whole("target", self.target)
        _check_bounds(self.bounds)

    @abstractmethod
    def apply(self, inputs: Tensor) -> Tensor:
        """Return checked inputs with the trigger, not clipped, in new memory."""

    @abstractmethod
    def touched(self, inputs: Tensor) -> Tensor:
        """Return the pixels of checked inputs that belong to the trigger, `(N, 1, H, W)` bool."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs with the trigger, clipped to the bounds.

        Args:
            inputs: `(N, C, H, W)` floating; left as they are.

        Returns:
            `(N, C, H, W)` in the dtype and on the device of the inputs.

        Raises:
            InputTypeError: If `inputs` is no floating tensor.
            InputError: If its shape does not go with the trigger.
        """
        inputs = self.checked(inputs)
        low, high = (per_channel(end, inputs) for end in self.bounds)
        return torch.minimum(torch.maximum(self.apply(inputs), low), high)

    def mask(self, inputs: Tensor) -> Tensor:
        """Return the pixels that belong to the trigger.

        Args:
            inputs: `(N, C, H, W)` floating, without or with the trigger.

        Returns:
            `(N, 1, H, W)` bool on the device of the inputs.

        Raises:
            InputTypeError: If `inputs` is no floating tensor.
            InputError: If its shape does not go with the trigger.
        """
        return self.touched(self.checked(inputs))

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages.

        A tensor is told by shape, dtype and a hash of its values.
        """
        values = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        return {"backdoor": self.name} | values

    def checked(self, inputs: Any) -> Tensor:
        """Return `inputs` if they are images that go with the bounds.

        Raises:
            InputTypeError: If `inputs` is no floating tensor.
            InputError: If its shape does not go with the bounds.
        """
        if not isinstance(inputs, Tensor):
            raise InputTypeError(
                f"inputs must be a tensor (N, C, H, W), but {describe(inputs)} came"
            )
        if not inputs.dtype.is_floating_point:
            raise InputTypeError(f"inputs must be floating, but {describe(inputs)} came")
        if inputs.ndim != 4 or not all(inputs.shape[1:]):
            raise InputError(f"inputs must have shape (N, C, H, W), but {describe(inputs)} came")
        for end in self.bounds:
            if isinstance(end, Sequence) and len(end) not in (1, inputs.shape[1]):
                raise InputError(
                    f"inputs must have the {len(end)} channels that bounds name, but "
                    f"{describe(inputs)} came"
                )
        return inputs


def per_channel(values: PerChannel, like: Tensor) -> Tensor:
    """Return one number, or one per channel, as `(C or 1, 1, 1)` in the dtype and on the device.

    The numbers travel as arguments of fills, so that nothing is made on the host on the way.
    """
    several = values if isinstance(values, Sequence) else (values,)
    return torch.cat([like.new_full((1, 1, 1), float(each)) for each in several])


def check_per_channel(name: str, values: Any) -> tuple[float, ...]:
    """Return one number or a sequence of them, one per channel, as a tuple.

    Raises:
        InputTypeError: If one is no number.
        InputError: If one is not finite, or there is none.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        return (number(name, values),)
    if not values:
        raise InputError(f"{name} must have one number per channel, but an empty list came")
    return tuple(number(name, each) for each in values)


def _check_bounds(bounds: Any) -> None:
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        raise InputTypeError(f"bounds must be a pair (low, high), but {describe(bounds)} came")
    low, high = (check_per_channel("bounds", end) for end in bounds)
    if len(low) != len(high) and 1 not in (len(low), len(high)):
        raise InputError(
            f"bounds must name as many channels below as above, but {len(low)} and {len(high)} came"
        )
    width = max(len(low), len(high))
    pairs = zip(low * (width // len(low)), high * (width // len(high)), strict=True)
    if not all(below < above for below, above in pairs):
        raise InputError(f"bounds must rise from low to high, but {bounds!r} came")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return fingerprint(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
