"""A convolution by columns equals the convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pytest_triguard.verification.operators import columns

sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
kernels = st.tuples(st.integers(1, 4), st.integers(1, 4))
strides = st.tuples(st.integers(1, 4), st.integers(1, 4))
paddings = st.tuples(st.integers(0, 4), st.integers(0, 4))


@settings(deadline=None)
@given(
    side=sides,
    kernel=kernels,
    stride=strides,
    padding=paddings,
    samples=st.integers(1, 4),
    held=st.sampled_from([1, 200, 2**17]),
    biased=st.booleans(),
)
def test_a_convolution_by_columns_is_the_convolution(
    side, kernel, stride, padding, samples, held, biased
):
    assume(all(s + 2 * p >= k for s, p, k in zip(side, padding, kernel, strict=True)))
    draws = torch.Generator().manual_seed(samples)

    def drawn(*shape):
        return torch.randn(shape, generator=draws, dtype=torch.float64)

    values, weights = drawn(samples, 2, *side), drawn(3, 2, *kernel)
    offset = drawn(3) if biased else None
    expected = functional.conv2d(values, weights, offset, stride, padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_HELD", held)
        found = columns.conv2d(values, weights, offset, stride, padding)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


VALUES = torch.zeros(2, 8, 6, 6, dtype=torch.float64)
WEIGHTS = torch.zeros(3, 8, 4, 4, dtype=torch.float64)


@torch.no_grad()
def test_it_is_used_where_windows_overlap_little():
    assert columns.pay(VALUES, WEIGHTS, (2, 2), 1)


@pytest.mark.parametrize(
    ("values", "weights", "steps", "padding"),
    [
        (VALUES, WEIGHTS, (1, 1), 0),
        (VALUES, torch.zeros(3, 8, 5, 5).double(), (2, 2), 0),
        (VALUES.float(), WEIGHTS.float(), (2, 2), 0),
        (VALUES[:, :4].contiguous(), WEIGHTS[:, :4], (2, 2), 0),
        (VALUES.contiguous(memory_format=torch.channels_last), WEIGHTS, (2, 2), 0),
        (VALUES, WEIGHTS, (2, 2), "valid"),
        (VALUES[..., :3].contiguous(), WEIGHTS, (2, 2), 0),
    ],
    ids=["no stride", "much", "float32", "few channels", "channels last", "words", "too small"],
)
@torch.no_grad()
def test_what_another_kernel_does_faster_is_left_to_it(values, weights, steps, padding):
    assert not columns.pay(values, weights, steps, padding)


def test_what_is_differentiated_is_left_to_torch():
    assert not columns.pay(VALUES, WEIGHTS, (2, 2), 1)
