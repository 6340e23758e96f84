"""What strategies are given: inputs, their range, and how far they may be moved."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.attacks.base import check_eps
from pytest_triguard.backdoors.base import per_channel
from pytest_triguard.data import BOUNDS_TOLERANCE
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import beyond, describe


def on_host(inputs: Any) -> Tensor:
    """Return a copy of the inputs on the host, `(N, C, H, W)`.

    Raises:
        InputTypeError: If they are no floating tensor.
        InputError: If the shape is wrong, or a value is not finite.
    """
    if not isinstance(inputs, Tensor):
        raise InputTypeError(
            f"inputs must be a tensor (N, C, H, W) or (C, H, W), but {describe(inputs)} came"
        )
    if not inputs.dtype.is_floating_point:
        raise InputTypeError(f"inputs must be floating, but {describe(inputs)} came")
    if inputs.ndim not in (3, 4) or not inputs.numel():
        raise InputError(
            f"inputs must have shape (N, C, H, W) or (C, H, W), but {describe(inputs)} came"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("inputs must be finite, but they hold NaN or infinity")
    batch = inputs.detach().cpu().clone()
    return batch if batch.ndim == 4 else batch.unsqueeze(0)


def check_range(batch: Tensor, low: tuple[float, ...], high: tuple[float, ...]) -> None:
    """Refuse inputs `(N, C, H, W)` that do not lie inside the bounds.

    Raises:
        InputError: If they do not, or have another number of channels.
    """
    if len(low) not in (1, batch.shape[1]):
        raise InputError(
            f"inputs must have the {len(low)} channels that bounds name, but {describe(batch)} came"
        )
    exact = batch.double()
    below = exact < per_channel(low, exact) - BOUNDS_TOLERANCE
    above = exact > per_channel(high, exact) + BOUNDS_TOLERANCE
    if bool((below | above).any()):
        raise InputError(
            f"inputs must lie inside the bounds, [{min(low):g}, {max(high):g}], but values from "
            f"{float(exact.min()):g} to {float(exact.max()):g} came"
        )


def radii_of(
    eps: Any, batch: Tensor, norm: str, low: tuple[float, ...], high: tuple[float, ...]
) -> Tensor:
    """Return the radius of each sample, `(N,)` float64 on the host.

    Raises:
        InputTypeError: If eps is neither a number nor a floating tensor.
        InputError: If it is refused, is not one per sample, or exceeds the range.
    """
    check_eps(eps)
    count, size = len(batch), batch[0].numel()
    if isinstance(eps, Tensor) and len(eps) != count:
        raise InputError(
            f"eps must be one number or a tensor of shape ({count},), but {describe(eps)} came"
        )
    width = max(above - below for below, above in zip(low, high, strict=True))
    widest = width * {"linf": 1.0, "l2": math.sqrt(size), "l1": size}[norm]
    radii = torch.as_tensor(eps, dtype=torch.float64, device="cpu").detach().expand(count).clone()
    if beyond(float(radii.max()), widest):
        raise InputError(
            f"eps must not exceed the range of the inputs, {widest:g} in {norm}, but "
            f"{float(radii.max()):g} came; eps is measured in the units of the inputs, before "
            "normalisation"
        )
    return radii
