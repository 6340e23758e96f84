"""Checks of arguments: what passes comes back in one type, what does not is named."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import beyond, describe, flag, number, one_of, whole


def refused(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2)])
def test_a_number_is_a_float(value):
    found = number("eps", value, low=0)
    assert found == 2.0
    assert type(found) is float


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (-1, {"low": 0}, "eps must be at least 0, but -1 came"),
        (0, {"low": 0, "low_open": True}, "eps must be greater than 0, but 0 came"),
        (3, {"high": 2}, "eps must be at most 2, but 3 came"),
        (3, {"low": 1, "high": 2}, "eps must be from 1 to 2, but 3 came"),
        (
            1,
            {"low": 1, "high": 2, "low_open": True},
            "eps must be from 1 to 2 (1 excluded), but 1 came",
        ),
        (math.inf, {}, "eps must be a finite number, but inf came"),
        (math.nan, {"low": 0}, "eps must be at least 0, but nan came"),
    ],
)
def test_a_number_out_of_range_is_refused(value, limits, message):
    with refused(InputError, message):
        number("eps", value, **limits)


@pytest.mark.parametrize("value", [True, "1", None, [1], 1j])
def test_what_is_no_number_is_refused(value):
    with refused(InputTypeError, f"eps must be a number, but {value!r} came"):
        number("eps", value)


def test_ends_of_the_range_are_allowed():
    assert number("eps", 0, low=0, high=1) == 0
    assert number("eps", 1, low=0, high=1) == 1


def test_a_whole_number_is_an_int():
    found = whole("steps", np.int64(3), low=1)
    assert found == 3
    assert type(found) is int
    with refused(InputError, "steps must be at least 1, but 0 came"):
        whole("steps", 0, low=1)
    for value in (True, 2.0, "3", None):
        with refused(InputTypeError, f"steps must be a whole number, but {value!r} came"):
            whole("steps", value)


def test_a_choice_is_one_of_the_known():
    assert one_of("norm", "l2", ("linf", "l2")) == "l2"
    with refused(
        InputError, "norm must be one of 'linf', 'l2', but 'l22' came; did you mean 'l2'?"
    ):
        one_of("norm", "l22", ("linf", "l2"))
    with refused(InputTypeError, "norm must be one of 'linf', 'l2', but 2 came"):
        one_of("norm", 2, ("linf", "l2"))


def test_a_flag_is_true_or_false():
    assert flag("record", True) is True
    with refused(InputTypeError, "record must be True or False, but 1 came"):
        flag("record", 1)


def test_values_are_described_in_one_short_line():
    assert describe(3) == "3"
    assert describe(torch.zeros(2, 3)) == "a Tensor of shape (2, 3) and dtype torch.float32"
    assert describe(np.zeros(4)) == "a ndarray of shape (4,) and dtype float64"
    assert describe("x" * 100) == "'" + "x" * 56 + "..."
    assert "\n" not in describe({"image": torch.zeros(9, 9)})


def test_rounding_goes_beyond_no_limit():
    limit = (0.5 + 1.6191430999856575) - 0.5
    assert limit < 1.6191430999856575
    assert not beyond(1.6191430999856575, limit)
    assert not beyond(float(torch.tensor(0.1)), 0.1)
    assert beyond(1.0001, 1.0)
