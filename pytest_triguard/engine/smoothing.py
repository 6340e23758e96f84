"""A smooth stand-in for a network, for derivatives of its gradients.

The gradient of a network of ReLUs is piecewise constant: its derivative is zero almost
everywhere, and whoever wants to move a gradient finds no way. With `softplus(x) = ln(1 + e^(b x))
/ b` in place of `max(x, 0)` there is one.

The activations are replaced while the network runs, call by call, and the module itself is never
touched: activation modules, functional calls inside a forward pass and tensor methods are all
reached. Not reached are modules compiled or scripted before, custom autograd functions, and
rectifiers put together from comparisons, such as `x * (x > 0)`. Max-pooling stays as it is: it
selects, and what it selects from is smooth. Activations that are smooth already stay too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pytest_triguard.engine import checkpoints
from pytest_triguard.engine.model import Model


class Surrogate(Model):
    """The network with smooth activations; passes and chunk are those of the network.

    Args:
        model: The network.
        beta: Sharpness of the softplus, larger being closer to ReLU, or None to leave the
            activations as they are.
    """

    def __init__(self, model: Model, beta: float | None) -> None:
        vars(self).update(vars(model))
        # Second derivatives of softplus and of max-pooling gain nothing from channels last.
        self.channels_last = False
        self._beta = beta

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits, `(N, K)`, of inputs `(N, C, H, W)` in the user's space.

        Raises:
            ModelError: As that of the network; and if it computes a part of itself again on the
                way back, where its activations would not be smooth.
        """
        # The fused kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            if self._beta is None:
                return super().logits(inputs)
            with checkpoints.refused("a smooth stand-in for a network"), Softplus(self._beta):
                return super().logits(inputs)


class Softplus(TorchFunctionMode):
    """While active, rectifiers are smooth.

    Args:
        beta: Sharpness, greater than 0.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or the smooth one in its place."""
        kwargs = kwargs or {}
        smooth = _SMOOTH.get(func)
        values = args[0] if args else kwargs.get("input")
        # Whole numbers, such as places that are clamped, have no slope; nor has what goes to `out`.
        counts = not isinstance(values, Tensor) or not values.is_floating_point()
        if smooth is None or counts or "out" in kwargs:
            return func(*args, **kwargs)
        found = smooth(self._beta, *args, **kwargs)
        return func(*args, **kwargs) if found is None else found


def _softplus(values: Tensor, beta: float) -> Tensor:
    return functional.softplus(values, beta)


def _written(inputs: Tensor, values: Tensor, inplace: bool) -> Tensor:
    return inputs.copy_(values) if inplace else values


def _own(inputs: Tensor, inplace: bool) -> Tensor:
    """Return the inputs, or what they were before they are overwritten."""
    return inputs.clone() if inplace else inputs


def _relu(beta: float, input: Tensor, inplace: bool = False) -> Tensor:
    return _written(input, _softplus(_own(input, inplace), beta), inplace)


def _relu_in_place(beta: float, input: Tensor) -> Tensor:
    return _relu(beta, input, inplace=True)


def _hardtanh(
    beta: float,
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    before = _own(input, inplace)
    rising = min_val + _softplus(before - min_val, beta) - _softplus(before - max_val, beta)
    return _written(input, rising, inplace)


def _relu6(beta: float, input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(beta, input, 0.0, 6.0, inplace)


def _leaky_relu(
    beta: float, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    before = _own(input, inplace)
    values = negative_slope * before + (1 - negative_slope) * _softplus(before, beta)
    return _written(input, values, inplace)


def _rrelu(
    beta: float,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor | None:
    return None if training else _leaky_relu(beta, input, (lower + upper) / 2, inplace)


def _prelu(beta: float, input: Tensor, weight: Tensor) -> Tensor:
    slopes = weight.view(-1, *[1] * (input.ndim - 2)) if input.ndim > 1 else weight
    return _softplus(input, beta) - slopes * _softplus(-input, beta)


def _threshold(
    beta: float, input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Tensor | None:
    if threshold != value:
        return None  # a jump, not a kink
    return _written(input, threshold + _softplus(_own(input, inplace) - threshold, beta), inplace)


def _clamp(beta: float, input: Tensor, min: Any = None, max: Any = None) -> Tensor | None:
    """Smooth a clamp that is a rectifier; any other confines inputs or guards a division."""
    is_rectifier = max is None and not isinstance(min, Tensor) and min == 0
    return _softplus(input, beta) if is_rectifier else None


def _in_place(smooth: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """Return a smooth function that overwrites its input where it is one."""

    def overwriting(beta: float, input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        found = smooth(beta, input.clone(), *args, **kwargs)
        return None if found is None else input.copy_(found)

    return overwriting


_SMOOTH: dict[Any, Callable[..., Tensor | None]] = {
    functional.relu: _relu,
    torch.relu: _relu,
    torch.relu_: _relu_in_place,
    Tensor.relu: _relu,
    Tensor.relu_: _relu_in_place,
    functional.relu6: _relu6,
    functional.hardtanh: _hardtanh,
    functional.leaky_relu: _leaky_relu,
    functional.rrelu: _rrelu,
    torch.rrelu: _rrelu,
    functional.threshold: _threshold,
    torch.threshold: _threshold,
    functional.hardtanh_: _in_place(_hardtanh),
    functional.leaky_relu_: _in_place(_leaky_relu),
    functional.rrelu_: _in_place(_rrelu),
    torch.threshold_: _in_place(_threshold),
    torch.prelu: _prelu,
    Tensor.prelu: _prelu,
    torch.clamp: _clamp,
    torch.clamp_min: _clamp,
    torch.clip: _clamp,
    Tensor.clamp: _clamp,
    Tensor.clamp_min: _clamp,
    Tensor.clip: _clamp,
    torch.clamp_: _in_place(_clamp),
    torch.clamp_min_: _in_place(_clamp),
    torch.clip_: _in_place(_clamp),
    Tensor.clamp_: _in_place(_clamp),
    Tensor.clamp_min_: _in_place(_clamp),
    Tensor.clip_: _in_place(_clamp),
}
