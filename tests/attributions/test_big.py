"""Boundary-based integrated gradients: where the boundary is, and what there is without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_triguard import (
    assert_drift_below,
    assert_entropy_below,
    assert_explanations_agree,
    assert_faithful,
    attributions,
)
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.geometry import l2_norm
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError
from tests.attributions.table import close
from tests.networks import bare, images, problem
from tests.sessions import with_settings

QUICK = {"eps": (0.2, 0.6, 2.0), "steps": 10, "cw_steps": 20}


def boundary_of(method, subject, inputs):
    """Return the boundary points of samples."""
    count = len(inputs)
    places = tuple(range(count))
    batch = Batch(places, places, torch.arange(count), inputs)
    with subject.prepared() as model:
        return method.boundary(model, batch)


def half_spaces(dtype, lead):
    """Return a two-class linear classifier, its images and the difference of its weights."""
    inputs = 0.4 + 0.2 * images((2, 3, 4), 5, dtype)
    layer = nn.Linear(24, 2, dtype=dtype)
    weights = torch.randn(2, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weights)
        layer.bias.copy_(torch.tensor([lead, 0.0]) - (inputs.flatten(1) @ layer.weight.T).mean(0))
    return Classifier(nn.Sequential(nn.Flatten(), layer)), inputs, weights[0] - weights[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_boundary_of_two_half_spaces_is_orthogonal_and_the_map_known(dtype):
    subject, inputs, slope = half_spaces(dtype, 0.2)
    slope = slope.to(dtype)
    logits = bare(subject)(inputs)
    lead = logits[:, 0] - logits[:, 1]
    sign = torch.where(lead > 0, 1.0, -1.0).to(dtype)
    way = (lead / slope.square().sum()).unsqueeze(1) * slope
    method = attributions.get("big", output="contrast")
    found = boundary_of(method, subject, inputs)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-5
    assert close(inputs - found, way.view_as(inputs), tolerance)
    expected = sign.view(-1, 1, 1, 1) * (slope * way).view_as(inputs)
    maps = method(subject, inputs)
    assert close(maps, expected, tolerance)
    assert torch.allclose(maps.sum((1, 2, 3)), lead.abs(), rtol=1e-4)


def test_the_map_integrates_from_the_boundary_and_not_on_it():
    subject, inputs, targets = problem("smooth", 4)
    method = attributions.get("big", **QUICK)
    start = boundary_of(method, subject, inputs)
    found = method(subject, inputs, targets)
    ours = attributions.get("integrated_gradients", baseline=start)
    assert close(found, ours(subject, inputs, targets), 1e-9)
    at_boundary = attributions.get("integrated_gradients")(subject, start, targets)
    assert not close(found, at_boundary, 0.3)


def test_the_boundary_point_is_predicted_otherwise_and_one_just_before_it_is_not():
    subject, inputs, _ = problem("conv", 6)
    network = bare(subject)
    labels = network(inputs).argmax(1)
    found = boundary_of(attributions.get("big", **QUICK), subject, inputs)
    assert (network(found).argmax(1) != labels).all()
    before = torch.lerp(inputs, found, 1 - 2e-5)
    assert (network(before).argmax(1) == labels).all()
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_bisection_leads_nearer_and_another_search_never_farther():
    subject, inputs, _ = problem("conv", 6)
    coarse = {"eps": (2.0,), "steps": 3, "cw_steps": 20}
    found = [
        boundary_of(attributions.get("big", **coarse | less), subject, inputs)
        for less in ({"cw_steps": 0, "halvings": 0}, {"cw_steps": 0}, {})
    ]
    distances = [l2_norm(each - inputs) for each in found]
    assert (distances[1] < distances[0]).all()
    assert (distances[2] <= distances[1]).all()


def test_what_lies_beyond_the_balls_is_found_by_cw():
    subject, inputs, _ = problem("conv", 6)
    narrow = {"eps": (1e-4,), "steps": 2}
    balls, both = (
        boundary_of(attributions.get("big", cw_steps=steps, **narrow), subject, inputs)
        for steps in (0, 60)
    )
    assert torch.equal(balls, inputs)
    network = bare(subject)
    assert (network(both).argmax(1) != network(inputs).argmax(1)).all()


def test_what_cw_finds_beyond_a_distance_of_one_is_no_boundary():
    subject, inputs, slope = half_spaces(torch.float64, 7.2)
    logits = bare(subject)(inputs)
    distance = (logits[:, 0] - logits[:, 1]) / slope.norm()
    assert (distance > 1).any()
    assert (distance < 0.95).any()
    maps = attributions.get("big", eps=(1e-4,), steps=2, cw_steps=300)(subject, inputs)
    assert torch.equal(maps.isnan().flatten(1).all(1), distance > 1)


def test_bisection_takes_what_all_searches_found_at_once_and_nothing_else():
    subject, inputs, _ = problem("conv", 6)
    method = attributions.get("big", **QUICK, halvings=7)
    known = boundary_of(method, subject, inputs)
    calls = []
    subject.module.register_forward_hook(lambda layer, given, _: calls.append(len(given[0])))
    with subject.prepared() as model, torch.no_grad():
        labels = model.predict(inputs)
        found = torch.stack([known, inputs.flip(0)])
        calls.clear()
        nearest = method._bisected(model, inputs, labels, found.clone(), ([1, 4], [0, 2, 3, 5]))
        assert calls == [6] * 7
        assert torch.equal(nearest[0, [1, 4]], found[0, [1, 4]])
        assert torch.equal(nearest[1, [0, 2, 3, 5]], found[1, [0, 2, 3, 5]])
        lengths = [
            l2_norm(each[0, [0, 2, 3, 5]] - inputs[[0, 2, 3, 5]]) for each in (nearest, found)
        ]
        assert (lengths[0] <= lengths[1]).all()
        calls.clear()
        everyone = list(range(6))
        unmoved = method._bisected(model, inputs, labels, found.clone(), (everyone, everyone))
        assert torch.equal(unmoved, found)
        assert calls == []


def test_the_chunk_does_not_matter_to_the_boundary():
    subject, inputs, _ = problem("conv", 5)
    found = []
    for chunk in (2, 64):
        with with_settings(chunk=chunk):
            found.append(attributions.get("big", **QUICK)(subject, inputs))
    assert close(*found)


def test_a_later_radius_replaces_no_earlier_find():
    subject, inputs, _ = problem("conv", 6)
    alone, more = (
        boundary_of(
            attributions.get("big", eps=eps, steps=10, cw_steps=0, halvings=0), subject, inputs
        )
        for eps in ((0.1,), (0.1, 2.0))
    )
    early = (alone != inputs).flatten(1).any(1)
    assert 0 < early.sum() < 6
    assert torch.equal(more[early], alone[early])
    assert (more[~early] != inputs[~early]).flatten(1).any(1).any()


class Bright(nn.Module):
    """Two classes with a boundary that only bright images can reach."""

    def forward(self, inputs):
        flat = inputs.flatten(1)
        mean = (flat * torch.linspace(0.5, 1.5, flat.shape[1]).to(flat)).mean(1) - 0.4
        return torch.stack([mean * 0, mean], 1)


def dark_and_grey():
    inputs = 0.1 * images((1, 3, 4), 4)
    inputs[1::2] += 0.35
    return Classifier(Bright()), inputs


NARROW = {"eps": (0.3,), "steps": 8, "cw_steps": 8}


@pytest.mark.parametrize("chunk", [1, 64])
def test_without_a_boundary_there_is_no_map_and_the_others_have_theirs(chunk):
    subject, inputs = dark_and_grey()
    with with_settings(chunk=chunk):
        found = attributions.get("big", **NARROW)(subject, inputs, 1)
    assert found[::2].isnan().all()
    assert found[1::2].isfinite().all()
    assert found[1::2].any()


def test_checks_count_what_has_no_map_by_its_reason():
    subject, inputs = dark_and_grey()
    big = attributions.get("big", **NARROW)
    options = {"undefined_at_most": 1, "inconclusive": "pass", "labels": torch.ones(4).long()}
    found = [
        assert_entropy_below(subject, inputs, 1.0, attribution=big, **options),
        assert_drift_below(
            subject, inputs, 2.0, attribution=big, between=("clean", "fgsm"), **options
        ),
        assert_faithful(subject, inputs, attribution=big, insertion_at_least=0.0, **options),
        assert_explanations_agree(
            subject, inputs, methods=("saliency", big), metric="cosine", at_most=1.0, **options
        ),
    ]
    for measured in found:
        assert measured.undefined == 2
        assert [value != value for value in measured.values] == [True, False] * 2
        assert measured.record.counts["undefined (no boundary found)"] == 2
        assert "undefined (zero map)" not in measured.record.counts


def test_what_is_attacked_through_its_gradients_is_not_big():
    subject, inputs, targets = problem("conv", 2)
    batch = Batch((0, 1), (0, 1), torch.arange(2), inputs, targets=targets)
    with subject.prepared() as model, pytest.raises(InputError, match="a mean of gradients"):
        attributions.get("big").gradient_mean(model, batch)
