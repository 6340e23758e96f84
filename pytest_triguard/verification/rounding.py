"""How far floating-point results can be from the real ones, and moving bounds outward by that much.

The model is the standard one (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
sections 2.2 and 3.1): an operation returns the exact result times (1 + d), |d| <= u, or is off by
less than the smallest normal number where it underflows. A sum of n products, in any order, with or
without fused multiplication, is off by at most gamma(n) times the sum of their magnitudes.
Overflow yields infinity, and every bound that is moved outward from infinity becomes NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def roundoff(dtype: torch.dtype) -> float:
    """Return the unit roundoff u of a dtype: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def tiny(dtype: torch.dtype) -> float:
    """Return the smallest normal number of a dtype; an underflow is off by less."""
    return torch.finfo(dtype).tiny


def lost(size: Tensor, terms: int = 1) -> Tensor:
    """Return what float32 can lose by underflow in sums of products, flushed to zero or not.

    Factors and results below the smallest normal number may be taken for zero.

    Args:
        size: What the magnitudes of the factors of each product add up to, at most.
        terms: Number of products in a sum.
    """
    return (size + 4).mul_(2 * terms * torch.finfo(torch.float32).tiny)


def unless_overflow(error: Tensor, size: Tensor) -> Tensor:
    """Return a bound on a float32 error, NaN where terms of that size may overflow when summed."""
    return torch.where(size < torch.finfo(torch.float32).max / 2, error, torch.nan)


def gamma(terms: int, dtype: torch.dtype) -> float:
    """Return `n u / (1 - n u)` for n terms and some more, or infinity where n u reaches 1.

    Eight terms are added: they pay for the handful of roundings that a rule makes around a sum.
    """
    return accumulated(terms, roundoff(dtype))


def accumulated(terms: int, unit: float) -> float:
    """Return `gamma` for a unit roundoff."""
    error = (terms + 8) * unit
    return error / (1 - error) if error < 1 else math.inf


def down(values: Tensor, roundings: int) -> Tensor:
    """Return numbers at most the real results that `values` are, each after some roundings."""
    return values - _error(values, roundings)


def up(values: Tensor, roundings: int) -> Tensor:
    """Return numbers at least the real results that `values` are, each after some roundings."""
    return values + _error(values, roundings)


def _error(values: Tensor, roundings: int) -> Tensor:
    # Twice the roundings also pay for the subtraction and the two operations here.
    unit = 2 * (roundings + 1) * roundoff(values.dtype)
    return values.abs().mul_(unit).add_(tiny(values.dtype))
