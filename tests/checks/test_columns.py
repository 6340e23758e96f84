"""Per-sample scalars come out in the order of the data, however they went in."""

import math

import numpy as np
import pytest
import torch

from pytest_triguard.checks.columns import Columns


def test_rows_come_out_in_the_order_of_the_data():
    columns = Columns()
    columns.add([4, 0], ["e", "a"], value=torch.tensor([4.0, 0.0]), place=[4, 0])
    columns.add([2], ["c"], value=torch.tensor([2.0]), place=[2])
    columns.add([1, 3], ["b", "d"], value=torch.tensor([1.0, 3.0]), place=[1, 3])
    ids, found = columns.arrays()
    assert ids == ["a", "b", "c", "d", "e"]
    assert found["value"].tolist() == found["place"].tolist() == [0, 1, 2, 3, 4]
    assert len(columns) == 5


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_every_dtype_becomes_float64(dtype):
    columns = Columns()
    columns.add([0, 1], [0, 1], value=torch.tensor([0, 1]).to(dtype))
    columns.add([2], [2], value=torch.tensor([1.0], dtype=torch.float64))
    _, found = columns.arrays()
    assert found["value"].dtype == np.float64
    assert found["value"].tolist() == [0, 1, 1]


def test_large_integers_stay_exact():
    columns = Columns()
    columns.add([0], [0], value=torch.tensor([2**52 + 1]))
    assert columns.arrays()[1]["value"].tolist() == [2**52 + 1]


def test_one_number_stands_for_all():
    columns = Columns()
    columns.add([0, 1], [0, 1], value=0.5)
    assert columns.arrays()[1]["value"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("declared", [(), ("value", "label")])
def test_what_is_not_named_is_nan(declared):
    columns = Columns(*declared)
    columns.add([0], [0], value=1)
    columns.add([1], [1], label=7)
    columns.add([2], [2])
    _, found = columns.arrays()
    np.testing.assert_array_equal(found["value"], [1, math.nan, math.nan])
    np.testing.assert_array_equal(found["label"], [math.nan, 7, math.nan])


def test_a_declared_column_is_there_without_samples():
    ids, found = Columns("value").arrays()
    assert ids == []
    assert found["value"].shape == (0,)


def test_what_is_kept_needs_no_graph_and_no_more_memory_than_itself():
    columns = Columns()
    logits = torch.ones(3, 1000, requires_grad=True)
    columns.add([0, 1, 2], [0, 1, 2], value=logits.sum(1))
    (part,) = columns._parts["value"]
    assert not part.requires_grad
    assert part.untyped_storage().nbytes() == 3 * 4
