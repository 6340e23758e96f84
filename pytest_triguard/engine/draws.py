"""Random draws as a pure function of what they are for.

Every draw is a hash of (seed, sample id, method, restart, step, copy, element).
No generator is advanced, so results depend neither on the chunk, nor on the order, nor on which
other samples are present, and the underlying integers are equal on every device.

The hash has two stages: a 64-bit mix per row (SplitMix64, Steele et al. 2014), and a 32-bit mix
per element (a multiply-xorshift of two rounds), so that the cost per element stays near one per
cent of a pass through a network.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from numbers import Integral

import torch
from torch import Tensor

from pytest_triguard.engine.precision import single_or_finer

_GOLDEN = 0x9E3779B97F4A7C15
_RESTART, _STEP, _COPY = 0xD1B54A32D192ED03, 0xABC98388FB8FAC03, 0x8CB92BA72F3D8DD7
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ELEMENT, _ROUND_1, _ROUND_2 = 0x9E3779B1, 0x7FEB352D, 0x846CA68B
_BITS = 24
"""Random bits per draw: what a float32 in [0, 1) can hold exactly."""


def id_key(sample_id: Hashable) -> int:
    """Return the 64-bit key of a sample id: an integer is its own key, text is hashed."""
    if isinstance(sample_id, Integral):
        return _signed(int(sample_id), 64)
    return _digest(str(sample_id))


def row_keys(
    ids: Tensor,
    *,
    seed: int,
    method: str,
    restart: int | Tensor = 0,
    step: int | Tensor = 0,
    copy: int | Tensor = 0,
) -> Tensor:
    """Return one 64-bit key per row.

    Args:
        ids: `(N,)` int64 keys of the samples.
        seed: Seed of the run.
        method: Name of what draws, so that two methods never share their noise.
        restart: Restart, one for all rows or `(N,)` int64.
        step: Step, likewise.
        copy: Copy, likewise.

    Returns:
        `(N,)` int64, on the device of `ids`.
    """
    base = _signed(_digest(f"{seed}/{method}"), 64)
    keys = _mix64(ids * _signed(_GOLDEN, 64) + base)
    shared = 0
    for number, factor in ((restart, _RESTART), (step, _STEP), (copy, _COPY)):
        if isinstance(number, Tensor):
            keys = keys + number * _signed(factor, 64)
        else:
            shared += number * factor
    return _mix64(keys + _signed(shared, 64) if shared else keys)


def uniform(
    keys: Tensor,
    shape: Sequence[int],
    *,
    dtype: torch.dtype,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Draw from the uniform distribution on [low, high).

    Args:
        keys: `(N,)` int64 from `row_keys`.
        shape: Shape of one row's draw.
        dtype: Floating dtype of the result.
        low: Lower end.
        high: Upper end.

    Returns:
        `(N, *shape)` of `dtype`, on the device of `keys`.
    """
    bits = _element_bits(keys, math.prod(shape))
    # 24 bits are more than a number of half precision holds.
    values = bits.to(single_or_finer(dtype)).mul_((high - low) * 2.0**-_BITS)
    if low:
        values.add_(low)
    return values.view(len(keys), *shape).to(dtype)


def integers(keys: Tensor, shape: Sequence[int], *, below: int | Tensor) -> Tensor:
    """Draw whole numbers from 0 on, each equally likely (to one part in 2**24 / below).

    Args:
        keys: `(N,)` int64 from `row_keys`.
        shape: Shape of one row's draw.
        below: What the numbers stay below, at least 1: one number, or int64 that broadcasts with
            `(N, *shape)`.

    Returns:
        `(N, *shape)` int64, on the device of `keys`.
    """
    bits = _element_bits(keys, math.prod(shape)).to(torch.int64).view(len(keys), *shape)
    return (bits * below) >> _BITS


def normal(keys: Tensor, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    """Draw from the standard normal distribution (Box and Muller 1958).

    Args:
        keys: `(N,)` int64 from `row_keys`.
        shape: Shape of one row's draw.
        dtype: Floating dtype of the result.

    Returns:
        `(N, *shape)` of `dtype`, on the device of `keys`; at most 5.9 in absolute value.
    """
    size = math.prod(shape)
    half = (size + 1) // 2
    # In place throughout: fresh memory would cost more than the arithmetic.
    values = _element_bits(keys, 2 * half).to(single_or_finer(dtype))
    radius, angle = values[:, :half], values[:, half:]
    radius.add_(0.5).mul_(2.0**-_BITS).log_().mul_(-2.0).sqrt_()
    angle.mul_(2.0 * math.pi * 2.0**-_BITS)
    first = angle.cos().mul_(radius)
    angle.sin_().mul_(radius)
    radius.copy_(first)
    return values[:, :size].reshape(len(keys), *shape).to(dtype)


def _element_bits(keys: Tensor, size: int) -> Tensor:
    """Return `(N, size)` int32, uniform in [0, 2**24)."""
    added = keys.to(torch.int32).unsqueeze(1)
    mixed_in = (keys >> 32).to(torch.int32).unsqueeze(1)
    elements = torch.arange(size, dtype=torch.int32, device=keys.device)
    bits = elements.mul_(_signed(_ELEMENT, 32)) + added
    room = torch.empty_like(bits)

    def shifted(amount: int) -> Tensor:
        mask = (1 << (32 - amount)) - 1
        return torch.bitwise_right_shift(bits, amount, out=room).bitwise_and_(mask)

    bits.bitwise_xor_(shifted(16)).mul_(_signed(_ROUND_1, 32))
    bits.bitwise_xor_(shifted(15)).bitwise_xor_(mixed_in).mul_(_signed(_ROUND_2, 32))
    bits.bitwise_xor_(shifted(16))
    return shifted(32 - _BITS)


def _mix64(values: Tensor) -> Tensor:
    values = (values ^ _shift_right(values, 30)) * _signed(_MIX_1, 64)
    values = (values ^ _shift_right(values, 27)) * _signed(_MIX_2, 64)
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, amount: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of signed integers fills with the sign."""
    return (values >> amount).bitwise_and_((1 << (64 - amount)) - 1)


def _signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def _digest(text: str) -> int:
    encoded = text.encode(errors="surrogatepass")  # names of files that are no UTF-8 have some
    return _signed(int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big"), 64)
