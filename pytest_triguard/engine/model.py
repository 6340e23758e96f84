"""A classifier made ready to run: on its device, in evaluation mode, its parameters frozen."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_triguard.engine.chunking import ChunkSize
from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.passes import Passes
from pytest_triguard.engine.samples import plain
from pytest_triguard.errors import InputError, ModelError
from pytest_triguard.validation import describe

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


class Model:
    """What engines and methods run: logits in, gradients out, passes counted.

    Built by `Classifier.prepared`, which also takes everything back afterwards.

    Args:
        module: The network, in evaluation mode and frozen, on `device`.
        device: Device of the network.
        dtype: Floating dtype of the network's parameters, or None if it has none.
        bounds: Lower and upper end of the valid input range, each one number or one per channel.
        normalization: Mean and standard deviation applied before the network, or None.
        chunk: Rows per pass.
        layouts: Whether channels are better last, by what was asked; shared by all checks of one
            classifier and device.
        default_device: Where the network makes tensors for which it names no device, or None for
            where everything else does.

    Attributes:
        passes: Forward and backward passes so far.
        spent_by: What each method took of them, where several took part.
        draws: Whether it draws at random, so that two calls differ.
        ends_in_softmax: Whether what it gives are probabilities, and no logits.
        overwrites: Whether it overwrites what it is given, and is given a copy.
        num_classes: Number of logits, known after the first forward pass.
        known: What was found out about the network, by what was asked.
        channels_last: Whether the network is given its inputs with channels last in memory.
        outside: What the network is called in: its default device, where it is not the host.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        bounds: tuple[Sequence[float], Sequence[float]],
        normalization: tuple[Sequence[float], Sequence[float]] | None,
        chunk: ChunkSize,
        layouts: dict[Hashable, bool] | None = None,
        default_device: torch.device | None = None,
    ) -> None:
        self.module = module
        self.device = device
        self.dtype = dtype
        self.passes = Passes()
        self.spent_by: dict[str, Passes] = {}
        self.draws = False
        self.ends_in_softmax = False
        self.overwrites = False
        self.num_classes: int | None = None
        self.known: dict[Hashable, Any] = {}
        self.chunk = chunk
        self.layouts: dict[Hashable, bool] = {} if layouts is None else layouts
        self.channels_last = False
        # A default device costs every operator some time, so that of the host is not made one.
        self.outside: AbstractContextManager[Any] = (
            nullcontext() if default_device is None or is_host(default_device) else default_device
        )
        self._bounds = bounds
        self._normalization = normalization
        self._constants: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] = {}

    def bounds(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the valid range as two `(1, C or 1, 1, 1)` tensors on the device."""
        return self._per_channel("bounds", self._bounds, dtype)

    @property
    def normalization(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Mean and standard deviation applied before the network, or None."""
        return self._normalization

    def _per_channel(
        self, name: str, pair: tuple[Sequence[float], Sequence[float]], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        key = (name, dtype)
        if key not in self._constants:
            first, second = (
                torch.tensor(list(each), dtype=dtype).view(1, -1, 1, 1).to(self.device)
                for each in pair
            )
            self._constants[key] = (first, second)
        return self._constants[key]

    def spent(self, name: str) -> dict[str, Passes]:
        """Return the passes by method: what was booked, or all of them for the one of that name."""
        return self.spent_by or {name: self.passes}

    def normalized(self, inputs: Tensor) -> Tensor:
        """Return what the network itself sees: `(inputs - mean) / std`, or the inputs.

        Raises:
            InputError: If the inputs have another number of channels than mean and std.
        """
        if self._normalization is None:
            return inputs
        mean, std = self._per_channel("normalization", self._normalization, inputs.dtype)
        channels = max(mean.shape[1], std.shape[1])
        if channels not in (1, inputs.shape[1]):
            raise InputError(
                f"inputs must have the {channels} channels that mean and std name, but "
                f"{describe(inputs)} came"
            )
        return (inputs - mean) / std

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits, `(N, K)`, of inputs `(N, C, H, W)` in the user's space.

        Autograd follows the ambient mode; `engine.gradients` turns it on.

        Raises:
            ModelError: If the network does not return one `(N, K)` floating tensor with K >= 2.
        """
        seen = self.normalized(inputs)
        if self.channels_last:
            seen = seen.to(memory_format=torch.channels_last)
            if seen.requires_grad:  # points and steps lie in the usual order
                seen.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
        with self.outside:
            outputs = self.module(seen.clone() if self.overwrites else seen)
        self._check_outputs(outputs, len(inputs))
        self.passes.forward += len(inputs)
        return plain(outputs)

    def _check_outputs(self, outputs: Any, rows: int) -> None:
        name = type(self.module).__name__
        if not isinstance(outputs, Tensor):
            raise ModelError(
                f"the module {name} must return one tensor of logits (N, K), "
                f"but a {type(outputs).__name__} came"
            )
        shape_is_right = outputs.ndim == 2 and outputs.shape[0] == rows and outputs.shape[1] >= 2
        if not shape_is_right or not outputs.dtype.is_floating_point:
            raise ModelError(
                f"the module {name} must return floating logits of shape ({rows}, K) with K >= 2, "
                f"but {describe(outputs)} came"
            )
        self.num_classes = outputs.shape[1]

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """Return the predicted classes, `(N,)` int64, chunk by chunk."""
        return self.chunk.map(lambda rows: self.logits(rows).argmax(1), inputs)
