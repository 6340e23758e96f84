"""Pixels imputed from their neighbours: linear systems by hand, noise, and curves with them."""

from __future__ import annotations

import pytest
import torch

from pytest_triguard import assert_faithful, metrics
from pytest_triguard.classifier import Classifier
from pytest_triguard.metrics import imputation
from pytest_triguard.metrics.imputation import harmonic
from pytest_triguard.running import running
from tests.networks import Recorder, bare, images, problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator

BOTH = pytest.mark.parametrize("name", ["deletion", "insertion"])


def solved(image, shown):
    """Return one image `(C, H, W)` whose pixels that are gone solve a system written out."""
    height, width = shown.shape
    gone = [(y, x) for y in range(height) for x in range(width) if not shown[y, x]]
    matrix = torch.zeros(len(gone), len(gone)).double()
    right = torch.zeros(len(gone), len(image)).double()
    for row, (y, x) in enumerate(gone):
        for v in range(max(y - 1, 0), min(y + 2, height)):
            for u in range(max(x - 1, 0), min(x + 2, width)):
                weight = {0: 0.0, 1: 1 / 6, 2: 1 / 12}[abs(v - y) + abs(u - x)]
                matrix[row, row] += weight
                if shown[v, u]:
                    right[row] += weight * image[:, v, u]
                else:
                    matrix[row, gone.index((v, u))] -= weight
    result = image.clone()
    for (y, x), values in zip(gone, torch.linalg.solve(matrix, right), strict=True):
        result[:, y, x] = values
    return result


def masks(count, height, width, seed=2):
    """Return `(count, 1, height, width)` bool of which ever fewer are shown, a corner at least."""
    drawn = torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(seed))
    shown = drawn > torch.linspace(0.2, 1, count).view(-1, 1, 1, 1)
    shown[..., 0, 0] = True
    return shown


@pytest.mark.parametrize(
    ("dtype", "size", "tolerance"),
    [
        (torch.float64, (3, 4), 1e-12),
        (torch.float64, (9, 6), 1e-9),
        (torch.float32, (14, 14), 3e-4),
    ],
)
def test_each_pixel_that_is_gone_solves_the_linear_system(dtype, size, tolerance):
    inputs, shown = images((2, *size), 6), masks(6, *size)
    limit = torch.tensor(1e-6 if dtype == torch.float32 else 1e-12, dtype=dtype)
    found = harmonic(inputs.to(dtype), shown, tolerance=limit)
    expected = torch.stack([solved(*pair) for pair in zip(inputs, shown[:, 0], strict=True)])
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, rtol=0, atol=tolerance)
    assert torch.equal(found[shown.expand_as(found)], inputs.to(dtype)[shown.expand_as(found)])


def test_by_hand_one_pixel_is_the_weighted_mean_of_its_neighbours():
    image = torch.arange(9.0).view(1, 1, 3, 3) ** 2
    shown = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    shown[..., 1, 1] = False
    middle = (1 + 9 + 25 + 49) / 6 + (0 + 4 + 36 + 64) / 12
    assert harmonic(image, shown, tolerance=torch.tensor(1e-7))[0, 0, 1, 1] == pytest.approx(middle)
    shown[..., 1, 1], shown[..., 0, 0] = True, False
    corner = ((1 + 9) / 6 + 16 / 12) / (2 / 6 + 1 / 12)
    assert harmonic(image, shown, tolerance=torch.tensor(1e-7))[0, 0, 0, 0] == pytest.approx(corner)


def test_where_no_pixel_is_left_each_channel_is_its_mean_and_where_none_is_gone_itself():
    inputs = images((2, 4, 5), 3)
    nothing = torch.zeros(3, 1, 4, 5, dtype=torch.bool)
    limit = torch.tensor(1e-9).double()
    found = harmonic(inputs, nothing, tolerance=limit)
    assert torch.allclose(found, inputs.mean((2, 3), keepdim=True).expand_as(found))
    assert torch.equal(harmonic(inputs, ~nothing, tolerance=limit), inputs)


def test_a_state_does_not_depend_on_those_solved_with_it():
    inputs, shown, limit = images((2, 9, 6), 5), masks(5, 9, 6), torch.tensor(1e-4).double()
    together = harmonic(inputs, shown, tolerance=limit)
    for place in range(5):
        own = slice(place, place + 1)
        alone = harmonic(inputs[own], shown[own], tolerance=limit)
        assert torch.allclose(alone, together[own], rtol=0, atol=1e-14)


def test_imputed_pixels_are_noisy_within_the_range():
    subject, inputs, _ = problem("smooth", 2)
    recorder = Recorder(bare(subject))
    inputs = torch.full((40, *inputs.shape[1:]), 0.5).double()
    maps = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(1)).double()
    metric = metrics.get("deletion", baseline="road", steps=1)
    metric(maps, Classifier(recorder, bounds=(-1.5, 0.5)), inputs, 0)
    empty = recorder.seen[-1]
    assert empty.max() == 0.5
    below = 0.5 - empty[empty < 0.5]
    assert float((below**2).mean()) == pytest.approx(0.02**2, rel=0.1)
    assert len(below) / empty.numel() == pytest.approx(0.5, abs=0.05)


@BOTH
def test_a_curve_is_that_of_states_imputed_one_by_one(name, monkeypatch):
    monkeypatch.setattr(imputation, "_NOISE", 0.0)
    monkeypatch.setattr(imputation, "_TOLERANCE", 1e-12)
    subject, inputs, targets = problem("residual", 2)
    order = torch.stack(
        [torch.randperm(35, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    )
    maps = (35.0 - order.argsort(1)).double().view(2, 1, 7, 5)
    metric = metrics.get(name, baseline="road", steps=7)
    found = metric.curve(maps, subject, inputs, targets).values
    for place, image in enumerate(inputs):
        for column in range(1, 7):
            shown = torch.full((35,), name == "deletion")
            shown[order[place, : 5 * column]] = name == "insertion"
            state = solved(image, shown.view(7, 5))
            expected = bare(subject)(state[None]).softmax(1)[0, targets[place]]
            assert torch.allclose(found[place, column], expected, atol=1e-9)


@pytest.mark.parametrize("baseline", ["midpoint", "road"])
def test_the_least_important_first_is_insertion_read_backwards(baseline):
    subject, inputs, targets = problem("smooth", 3)
    maps = images(inputs.shape[1:], 3, seed=5).round(decimals=1)
    least_first, insertion = (
        metrics.get(name, baseline=baseline, ranking=ranking, steps=6).curve(
            maps, subject, inputs, targets
        )
        for name, ranking in (("deletion", "reversed"), ("insertion", "map"))
    )
    assert torch.allclose(least_first.values, insertion.values.flip(1), rtol=1e-9)
    assert metrics.get("deletion", ranking="reversed").title.endswith(" of a reversed ranking")


@BOTH
def test_neither_chunk_nor_company_nor_device_matters(name):
    subject, inputs, targets = problem("conv", 5)
    maps = images(inputs.shape[1:], 5, seed=5)
    metric = metrics.get(name, baseline="road", steps=4)
    expected = metric(maps, subject, inputs, targets)
    with with_settings(chunk=3):
        assert torch.allclose(metric(maps, subject, inputs, targets), expected, rtol=1e-9)
    alone = metric(maps[2:3], subject, inputs[2:3], targets[2:3], ids=[2])
    assert torch.allclose(alone, expected[2:3], rtol=1e-9)
    other = metrics.get(name, baseline="road", steps=4, seed=1)(maps, subject, inputs, targets)
    assert not torch.allclose(other, expected, rtol=1e-6)
    with (
        simulated_accelerator() as sim,
        with_settings(device="sim"),
        running(subject, inputs, targets=targets) as run,
    ):
        (block,) = metric.blocks(run, maps)
        sim.reset()
        found = metric.measure(run.model, *block)
        assert len(sim.host_reads) == 1
        assert torch.allclose(found.cpu(), expected, rtol=1e-6)


def test_an_assertion_says_what_stood_in():
    subject, inputs, labels = problem("conv", 4)
    with with_settings() as session:
        assert_faithful(
            subject, inputs, labels, attribution="saliency", baseline="road", deletion_at_most=1.0
        )
    (record,) = session.records.values()
    assert record.parameters["baseline"] == "road"
