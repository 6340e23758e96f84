"""The transpose of a convolution by phases equals the transpose."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional

from pytest_triguard.verification.operators import phases
from pytest_triguard.verification.operators.phases import Phases


def _geometry(
    draw: random.Random,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return kernel, stride, padding and size of images, of any convolution that has a result."""
    while True:
        kernel, steps, before, size = (
            (draw.randint(low, high), draw.randint(low, high))
            for low, high in ((1, 5), (1, 4), (0, 6), (1, 11))
        )
        if all(s + 2 * b >= k for s, b, k in zip(size, before, kernel, strict=True)):
            return kernel, steps, before, size


@pytest.mark.parametrize("held", [1, 300, 2**17])
def test_rows_by_phases_are_those_of_the_gradient(monkeypatch, held):
    """Whatever stride, padding, waste and chunk, also where they would not be faster."""
    for name, value in {"_HELD": held, "_CHANNELS": 1, "_STRIDE": 9, "_WASTE": 1e9}.items():
        monkeypatch.setattr(phases, name, value)
    torch.manual_seed(held)
    draw = random.Random(held)
    for _ in range(60):
        kernel, steps, before, size = _geometry(draw)
        weight = torch.randn(draw.randint(1, 3), draw.randint(1, 3), *kernel).double()
        images = torch.zeros(5, weight.shape[1], *size, dtype=torch.float64, requires_grad=True)
        result = functional.conv2d(images, weight, None, steps, before)
        rows = torch.randn_like(result)
        (wanted,) = torch.autograd.grad(result, images, rows)

        arranged = Phases.of(weight, steps)
        assert arranged is not None
        found = arranged.back(rows, size, before)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("weight", "steps"),
    [
        (torch.ones(8, 3, 4, 4).double(), (2, 2)),
        (torch.ones(8, 16, 4, 4).double(), (4, 4)),
        (torch.ones(8, 16, 1, 1).double(), (2, 2)),
        (torch.ones(8, 16, 4, 4), (2, 2)),
    ],
    ids=["few channels", "long stride", "mostly zeros", "float32"],
)
def test_what_another_kernel_does_faster_is_left_to_it(weight, steps):
    assert Phases.of(weight, steps) is None
