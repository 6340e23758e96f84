"""Rows on the logits: what each way of asking for them gives, against the rows written out."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from pytest_triguard.verification.specification import Differences, Matrix

CLASSES, LABELS, TARGETS = 5, [3, 0, 4], [1, 2, 0]


def written(kind):
    """Return rows, and the same `(n, S, K)`, those that count."""
    one = torch.eye(CLASSES, dtype=torch.float64)
    if kind == "matrix":
        rows = torch.tensor([[1.0, -2, 0.5, 0, 3], [0, 0, -1, 4, 0]], dtype=torch.float64)
        return Matrix(rows, 6.5), rows.expand(len(LABELS), -1, -1)
    if kind == "targeted":
        given = Differences(torch.tensor(LABELS), torch.tensor(TARGETS), CLASSES)
        return given, (one[LABELS] - one[TARGETS]).unsqueeze(1)
    others = [[k for k in range(CLASSES) if k != label] for label in LABELS]
    given = Differences(torch.tensor(LABELS), None, CLASSES)
    return given, one[LABELS].unsqueeze(1) - one[torch.tensor(others)]


PARTS = [slice(0, None), slice(0, 1), slice(1, 3), slice(3, 9)]


@pytest.mark.parametrize(
    ("kind", "part"), [*product(["differences", "matrix"], PARTS), ("targeted", PARTS[0])]
)
def test_rows_that_count_are_those_written_out(kind, part):
    """Times weights, in parts, and their magnitudes times values."""
    rows, full = written(kind)
    assert rows.height == full.shape[1]
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(CLASSES, 7, dtype=torch.float64, generator=generator) - 0.5
    values = torch.rand(len(LABELS), CLASSES, dtype=torch.float64, generator=generator)
    found = rows.matrix(weight, part).expand(len(LABELS), -1, -1)
    torch.testing.assert_close(found, (full @ weight)[:, part])
    sizes = (full.abs() @ values.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(rows.matrix_sizes(values, part), sizes[:, part])
