"""The map of a sample depends on nothing but the sample, its id, the seed and the method."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attributions
from tests.attributions.table import TABLE, close, every_row, random_rows
from tests.networks import SHAPES, images, problem
from tests.sessions import with_settings


@pytest.mark.parametrize(
    ("row", "name"),
    [
        pytest.param(row, name, id=f"{row.name}-{name}")
        for row in TABLE
        for name in row.networks
        if name in (row.home, "smooth")
    ],
)
def test_the_chunk_does_not_matter(row, name):
    subject, inputs, targets = problem(name, 7)
    maps = []
    for chunk in (1, 3, 64):
        with with_settings(chunk=chunk):
            maps.append(row.method()(subject, inputs, targets))
    assert close(maps[1], maps[0])
    assert close(maps[2], maps[0])


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("baseline", ["zero", "blur", "noise", "uniform", "tensor"])
def test_the_chunk_does_not_matter_to_a_baseline(baseline, chunk):
    subject, inputs, targets = problem("smooth", 7)
    start = images(SHAPES["smooth"], 7, seed=3) if baseline == "tensor" else baseline
    method = attributions.get("integrated_gradients", baseline=start, points=4)
    expected = method(subject, inputs, targets)
    with with_settings(chunk=chunk):
        assert close(method(subject, inputs, targets), expected)


@every_row
def test_company_does_not_matter(row):
    subject, inputs, targets = row.problem(6)
    together = row.method()(subject, inputs, targets)
    for place in range(6):
        own = slice(place, place + 1)
        alone = row.method()(subject, inputs[own], targets[own], ids=[place])
        assert close(alone, together[own])


@every_row
def test_order_does_not_matter_to_samples_with_ids(row):
    subject, inputs, targets = row.problem(8)
    names = [f"image-{place}" for place in range(8)]
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    found = row.method()(subject, inputs, targets, ids=names)
    moved = row.method()(
        subject, inputs[order], targets[order], ids=[names[place] for place in order]
    )
    assert close(moved, found[order])


@every_row
def test_a_dataset_and_a_loader_give_what_the_tensors_give(row):
    subject, inputs, targets = row.problem(7)
    expected = row.method()(subject, inputs, targets)
    data = TensorDataset(inputs, targets)
    assert close(row.method()(subject, data), expected)
    assert close(row.method()(subject, DataLoader(data, batch_size=3)), expected)


@random_rows
def test_other_ids_draw_otherwise(row):
    subject, inputs, targets = row.problem(4)
    found = row.method()(subject, inputs, targets)
    others = row.method()(subject, inputs, targets, ids=["a", "b", "c", "d"])
    assert torch.equal(row.method()(subject, inputs, targets, ids=[0, 1, 2, 3]), found)
    assert (others != found).flatten(1).any(1).all()


@every_row
def test_the_seed_alone_decides_the_draws(row):
    subject, inputs, targets = row.problem(4)
    found = row.method(seed=5)(subject, inputs, targets)
    torch.manual_seed(99)
    assert torch.equal(row.method(seed=5)(subject, inputs, targets), found)
    with with_settings(seed=5):
        assert torch.equal(row.method()(subject, inputs, targets), found)
    other = row.method(seed=6)(subject, inputs, targets)
    assert torch.equal(other, found) is not row.random


@random_rows
def test_float32_draws_what_float64_draws(row):
    maps = []
    for dtype in (torch.float32, torch.float64):
        subject, inputs, targets = problem("smooth", 4, dtype)
        maps.append(row.method()(subject, inputs, targets).double())
    assert close(maps[0], maps[1], 1e-4)
