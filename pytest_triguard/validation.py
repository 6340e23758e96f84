"""Checks of arguments, each one sentence: the argument, what came, what was expected."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from pytest_triguard.errors import InputError, InputTypeError, nearest


def describe(value: object) -> str:
    """Return a value as messages print it: one short line, a tensor by its shape and dtype."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"a {type(value).__name__} of shape {tuple(shape)} and dtype {dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
) -> float:
    """Return `value` as a float if it is a finite real number from `low` to `high`.

    Args:
        name: Name of the argument, for the message.
        value: What came.
        low: Smallest allowed value.
        high: Largest allowed value.
        low_open: Whether `low` itself is excluded.

    Raises:
        InputTypeError: If `value` is no real number (a bool is none).
        InputError: If it is NaN, infinite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputTypeError(f"{name} must be a number, but {describe(value)} came")
    result = float(value)
    too_low = result <= low if low_open else result < low
    if not math.isfinite(result) or too_low or result > high:
        raise InputError(f"{name} must be {_range(low, high, low_open)}, but {result:g} came")
    return result


def _range(low: float, high: float, low_open: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "a finite number"
    if high == math.inf:
        return f"greater than {low:g}" if low_open else f"at least {low:g}"
    if low == -math.inf:
        return f"at most {high:g}"
    return f"from {low:g} to {high:g}{f' ({low:g} excluded)' if low_open else ''}"


def share(name: str, value: Any) -> float:
    """Return `value` as a float if it lies between 0 and 1, both excluded.

    Raises:
        InputTypeError: If `value` is no real number (a bool is none).
        InputError: If it is NaN or out of range.
    """
    result = number(name, value, low=0, high=1, low_open=True)
    if result == 1:
        raise InputError(f"{name} must be below 1, but 1 came")
    return result


def whole(name: str, value: Any, *, low: int = 0) -> int:
    """Return `value` as an int if it is a whole number of at least `low`.

    Raises:
        InputTypeError: If `value` is no integer (a bool is none).
        InputError: If it is below `low`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputTypeError(f"{name} must be a whole number, but {describe(value)} came")
    if value < low:
        raise InputError(f"{name} must be at least {low}, but {int(value)} came")
    return int(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        InputTypeError: If `value` is no string.
        InputError: If it is not among the choices; the nearest one is shown.
    """
    known = ", ".join(repr(choice) for choice in choices)
    if not isinstance(value, str):
        raise InputTypeError(f"{name} must be one of {known}, but {describe(value)} came")
    if value not in choices:
        raise InputError(
            f"{name} must be one of {known}, but {value!r} came{nearest(value, choices)}"
        )
    return value


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is a bool.

    Raises:
        InputTypeError: If it is not.
    """
    if not isinstance(value, bool):
        raise InputTypeError(f"{name} must be True or False, but {describe(value)} came")
    return value


def beyond(value: float, limit: float) -> bool:
    """Return whether a number exceeds a positive limit by more than rounding explains."""
    return value > limit * (1 + 1e-6)
