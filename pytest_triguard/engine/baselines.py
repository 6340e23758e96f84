"""Baselines: the inputs that path methods compare a sample with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.engine import draws
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import describe, one_of

BASELINES = ("zero", "blur", "noise", "uniform", "midpoint")
"""The bank of the TriGuard appendix."""

_BLUR_KERNEL, _BLUR_SIGMA = 11, 5.0
_NOISE = 0.1

Baseline = str | Tensor


def check_baseline(name: str, baseline: object) -> None:
    """Refuse what is neither a name from the bank nor a finite floating tensor.

    Raises:
        InputTypeError: If the type is wrong.
        InputError: If the name is unknown, or the tensor has no usable shape or is not finite.
    """
    if isinstance(baseline, str):
        one_of(name, baseline, BASELINES)
    elif not isinstance(baseline, Tensor):
        raise InputTypeError(
            f"{name} must be a tensor or one of {', '.join(BASELINES)}, but "
            f"{describe(baseline)} came"
        )
    elif baseline.ndim not in (3, 4) or not baseline.dtype.is_floating_point:
        raise InputError(
            f"{name} must be a floating tensor (C, H, W) or (N, C, H, W), but "
            f"{describe(baseline)} came"
        )
    else:
        check_finite(name, baseline)


def check_finite(name: str, values: Tensor) -> None:
    """Refuse a tensor that holds NaN or infinity, before the network is blamed for its maps.

    Raises:
        InputError: If it does; the first place is named.
    """
    finite = values.isfinite()
    if not bool(finite.all()):
        place = tuple((~finite).nonzero()[0].tolist())
        raise InputError(
            f"{name} must be finite, but {describe(values)} came, which holds NaN or infinity, "
            f"first at {place}"
        )


def baseline_inputs(baseline: Baseline, model: Model, batch: Batch, *, seed: int) -> Tensor:
    """Return the baseline of each sample, inside the valid range.

    `zero` is 0, `blur` the sample under a Gaussian of 11 pixels and sigma 5, `noise` normal with
    mean 0 and standard deviation 0.1, `uniform` uniform over the range, `midpoint` its middle;
    each is clipped to the range. A tensor is taken as it is.

    Args:
        baseline: A name, or `(C, H, W)` for all samples, or `(N, C, H, W)`, one per sample.
        model: The network; its bounds are the range.
        batch: Samples on the model's device.
        seed: Seed of `noise` and `uniform`.

    Returns:
        `(n, C, H, W)` on the model's device, one row in memory where all samples have the same.

    Raises:
        InputError: If a tensor does not go with the samples.
    """
    inputs = batch.inputs
    if isinstance(baseline, Tensor):
        return _given(baseline, batch)
    low, high = model.bounds(inputs.dtype)
    if baseline in ("zero", "midpoint"):
        value = torch.zeros_like(low) if baseline == "zero" else (low + high) / 2
        return torch.minimum(torch.maximum(value, low), high).expand_as(inputs)
    keys = draws.row_keys(batch.keys, seed=seed, method=f"baseline/{baseline}")
    shape = inputs.shape[1:]
    if baseline == "blur":
        values = blurred(inputs)
    elif baseline == "noise":
        values = draws.normal(keys, shape, dtype=inputs.dtype) * _NOISE
    else:
        values = low + (high - low) * draws.uniform(keys, shape, dtype=inputs.dtype)
    return torch.minimum(torch.maximum(values, low), high)


def _given(baseline: Tensor, batch: Batch) -> Tensor:
    inputs = batch.inputs
    if baseline.shape[-3:] != inputs.shape[1:]:
        raise InputError(
            f"baseline must have shape {tuple(inputs.shape[1:])} to go with the inputs, but "
            f"{describe(baseline)} came"
        )
    if baseline.ndim == 4:
        if max(batch.positions) >= len(baseline):
            raise InputError(
                f"baseline must hold one input per sample, but only {len(baseline)} came"
            )
        baseline = baseline[torch.tensor(batch.positions, device=baseline.device)]
    return baseline.to(inputs.device, inputs.dtype).expand_as(inputs)


def one_row(baselines: Tensor) -> Tensor:
    """Return `(1, C, H, W)` where all samples have the same baseline in memory, else all."""
    return baselines[:1] if not baselines.stride(0) else baselines


def blurred(inputs: Tensor) -> Tensor:
    """Return `(N, C, H, W)` under a Gaussian of 11 pixels and sigma 5, borders reflected.

    Images of fewer than 6 pixels a side take the widest kernel that reflection allows.
    """
    for dim in (2, 3):
        half = min(_BLUR_KERNEL // 2, inputs.shape[dim] - 1)
        offsets = torch.arange(-half, half + 1, dtype=inputs.dtype, device=inputs.device)
        weights = torch.exp(-0.5 * (offsets / _BLUR_SIGMA) ** 2)
        weights = weights / weights.sum()
        padding = (0, 0, half, half) if dim == 2 else (half, half, 0, 0)
        padded = functional.pad(inputs, padding, mode="reflect")
        size = inputs.shape[dim]
        inputs = sum(
            (padded.narrow(dim, place, size) * weights[place] for place in range(2 * half + 1)),
            start=torch.zeros_like(inputs),
        )
    return inputs
