"""Local path integration: references, weights, clusters, and how they are fitted."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attributions
from pytest_triguard.engine.clusters import k_means
from pytest_triguard.errors import InputError, InputTypeError
from tests.attributions.table import close
from tests.networks import SHAPES, Recorder, bare, classifier, images, problem
from tests.sessions import with_settings


def grouped(count, *, groups, spread, seed=0, size=5):
    """Return points around far-off centres, and the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(groups, size, generator=generator, dtype=torch.float64)
    noise = spread * torch.randn(count, size, generator=generator, dtype=torch.float64)
    return centres[torch.arange(count) % groups] + noise, centres


# --- clusters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_that_lie_apart_are_the_clusters(seed):
    points, _ = grouped(60, groups=4, spread=0.1)
    centres, cluster = k_means(points, 4, seed=seed)
    assert centres.shape == (4, 5)
    first = cluster[:4]
    assert first.unique().numel() == 4
    assert torch.equal(cluster, first.repeat(15))
    for number in range(4):
        assert torch.allclose(centres[first[number]], points[number::4].mean(0))


def test_every_point_is_in_the_cluster_of_its_nearest_centre():
    points, _ = grouped(80, groups=3, spread=5.0)
    centres, cluster = k_means(points, 7, seed=3)
    assert torch.equal(torch.cdist(points, centres).argmin(1), cluster)
    assert (torch.bincount(cluster, minlength=7) > 0).all()
    assert torch.equal(k_means(points, 7, seed=3)[1], cluster)


def test_equal_points_are_one_cluster():
    points = torch.tensor([[0.0, 1.0]] * 3 + [[2.0, 0.0]] * 2)
    centres, cluster = k_means(points, 5, seed=0)
    assert sorted(centres.tolist()) == [[0.0, 1.0], [2.0, 0.0]]
    assert torch.bincount(cluster).sort().values.tolist() == [2, 3]


# --- the map ------------------------------------------------------------------------------------


def by_hand(method, subject, inputs, targets, references, weights):
    """Return the weighted sum over references of displacement times gradient, and the places."""
    recorder = Recorder(bare(subject))
    with with_settings(chunk=1):
        method(type(subject)(recorder), inputs, targets)
    seen = torch.cat(recorder.seen)[-len(inputs) * len(references) :]
    points = seen.view(len(inputs), len(references), *inputs.shape[1:])
    maps, places = torch.zeros_like(inputs), []
    for row, (sample, target) in enumerate(zip(inputs, targets, strict=True)):
        for number, reference in enumerate(references):
            way = sample - reference
            place = (((points[row, number] - reference) * way).sum() / way.square().sum()).item()
            assert torch.allclose(points[row, number], reference + place * way)
            leaf = points[row, number].unsqueeze(0).clone().requires_grad_()
            (slope,) = torch.autograd.grad(bare(subject)(leaf)[0, target], leaf)
            maps[row] += weights[number] * way * slope[0]
            places.append(place)
    return maps, places


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.3, 0.4]], ids=["equal", "own"])
def test_the_map_is_the_weighted_sum_over_single_gradients(weights):
    subject, inputs, targets = problem("conv", 3)
    references = images(SHAPES["conv"], 4, seed=9)
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    method = attributions.get("lpi", references=references, weights=given)
    expected, places = by_hand(method, subject, inputs, targets, references, weights or [0.25] * 4)
    assert close(method(subject, inputs, targets), expected, 1e-9)
    assert 0.01 <= min(places) < max(places) <= 0.99


def test_each_reference_has_a_place_of_its_own_away_from_the_ends():
    subject, inputs, targets = problem("linear", 3)
    references = images(SHAPES["linear"], 200, seed=9)
    method = attributions.get("lpi", references=references)
    _, places = by_hand(method, subject, inputs, targets, references, [0.005] * 200)
    assert len({round(place, 6) for place in places}) == 600
    assert 0.01 - 1e-9 <= min(places) < 0.02
    assert 0.98 < max(places) <= 0.99 + 1e-9


def test_one_cluster_with_equal_weights_is_expected_gradients():
    subject, inputs, targets = problem("linear", 4)
    references = images(SHAPES["linear"], 20, seed=9)
    local = attributions.get("lpi", references=references)(subject, inputs, targets)
    expected = attributions.get("expected_gradients", references=references)
    assert close(local, expected(subject, inputs, targets), 1e-9)


def test_each_sample_is_compared_with_its_own_cluster_and_its_weights():
    subject, inputs, targets = problem("conv", 6)
    references = images(SHAPES["conv"], 6, seed=9).view(2, 3, *SHAPES["conv"])
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).double()
    logits = bare(subject)(inputs)
    centers = logits[[0, 3]]
    nearest = torch.cdist(logits, centers).argmin(1)
    assert nearest.unique().numel() == 2
    both = attributions.get("lpi", references=references, weights=weights, centers=centers)
    with with_settings(chunk=4):
        found = both(subject, inputs, targets)
    for number in range(2):
        alone = attributions.get("lpi", references=references[number], weights=weights[number])
        own = nearest == number
        assert close(found[own], alone(subject, inputs, targets)[own], 1e-9)


# --- fitting ------------------------------------------------------------------------------------


def test_what_all_logits_have_in_common_decides_no_cluster():
    """Softmax does not see it either; the error of its square depended on the chunk."""
    subject, inputs, targets = problem("linear", 32, torch.float32)
    nn.init.constant_(subject.module[1].bias, 1e4)
    method = attributions.get("lpi").fit(subject, inputs, clusters=6, references=2)
    together = method(subject, inputs, targets)
    with with_settings(chunk=1):
        alone = method(subject, inputs, targets)
    assert close(together, alone, 1e-4)


def test_fitted_references_are_typical_images_of_their_clusters():
    subject, pool = classifier("smooth"), images(SHAPES["smooth"], 40, seed=5)
    fitted = attributions.get("lpi").fit(subject, pool, clusters=3, references=4)
    outputs = bare(subject)(pool)
    cluster = torch.cdist(outputs, fitted.centers).argmin(1)
    assert fitted.references.shape == (3, 4, *SHAPES["smooth"])
    for number in range(3):
        members = pool[cluster == number]
        assert torch.allclose(fitted.centers[number], outputs[cluster == number].mean(0))
        held = fitted.references[number][fitted.weights[number] > 0]
        for reference in held:
            assert (members == reference).flatten(1).all(1).any()
        assert len({tuple(each.flatten().tolist()) for each in held}) == len(held)
    assert torch.allclose(fitted.weights.sum(1), torch.ones(3).double())
    assert not torch.equal(fitted.weights[0], fitted.weights[1])  # no cluster has another's


def test_weights_are_shares_of_the_own_cluster():
    subject = classifier("linear")
    seeds = images(SHAPES["linear"], 4, seed=5)
    pool = seeds.repeat_interleave(torch.tensor([5, 3, 1, 1]), 0)
    fitted = attributions.get("lpi").fit(subject, pool, clusters=1, references=20)
    assert fitted.weights.sort(descending=True).values.tolist() == [[0.5, 0.3, 0.1, 0.1]]
    heaviest = fitted.references[0, fitted.weights[0].argmax()]
    assert torch.equal(heaviest, seeds[0])


def test_a_small_cluster_is_filled_up_with_references_that_weigh_nothing():
    subject, pool = classifier("smooth"), images(SHAPES["smooth"], 9, seed=5)
    fitted = attributions.get("lpi").fit(subject, pool, clusters=4, references=9)
    assert (fitted.weights == 0).any()
    maps = fitted(subject, pool)
    assert maps.isfinite().all()
    assert maps.any()


def test_the_seed_decides_what_is_fitted_and_a_loader_gives_the_same():
    subject, pool = classifier("smooth"), images(SHAPES["smooth"], 30, seed=5)
    method = attributions.get("lpi", seed=3)
    first = method.fit(subject, pool, clusters=2, references=3)
    with with_settings(chunk=4):
        again = method.fit(subject, DataLoader(TensorDataset(pool), 7), clusters=2, references=3)
    assert torch.equal(first.references, again.references)
    assert torch.equal(first.weights, again.weights)
    assert torch.allclose(first.centers, again.centers, rtol=1e-12)
    other = attributions.get("lpi", seed=4).fit(subject, pool, clusters=2, references=3)
    assert not torch.equal(first.references, other.references)
    assert first.parameters()["references"].startswith("(2, 3, 3, 6, 7) torch.float64")


# --- bad input ----------------------------------------------------------------------------------

GIVEN = torch.zeros(2, 3, 2, 3, 4)
BAD = [
    ({"references": "uniform"}, InputTypeError, "references must be a tensor, but 'uniform' came"),
    ({"references": GIVEN.long()}, InputTypeError, "references must be floating, but a Tensor of"),
    ({"references": GIVEN[0, 0]}, InputError, "references must have shape (R, C, H, W) or (n, R, "),
    ({"references": GIVEN}, InputError, "centers must be given for references of 2 clusters, but"),
    ({"weights": torch.ones(1)}, InputError, "references must be given beside weights and centers"),
    (
        {"references": GIVEN, "centers": torch.zeros(3, 4)},
        InputError,
        "centers must have shape (n, K) to go with references (n, R, C, H, W), but a Tensor of sha",
    ),
    (
        {"references": GIVEN[0], "weights": torch.ones(2)},
        InputError,
        "weights must have shape (3,) to go with the references, but a Tensor of shape (2,)",
    ),
    (
        {"references": GIVEN[0], "weights": torch.ones(3)},
        InputError,
        "weights must not be negative and must sum to one in each cluster",
    ),
    ({"keep": "valid_points"}, InputError, "keep must be 'all' for lpi, whose references have wei"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda each: str(each)[:12])
def test_bad_references_are_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        attributions.get("lpi", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "references must be given or fitted before lpi explains, but none came; attributions"),
        (
            {"references": torch.zeros(2, 2, 3, 3)},
            "references must hold images of shape (2, 3, 4) to go with the inputs, but a Tensor of",
        ),
        (
            {"references": GIVEN, "centers": torch.zeros(2, 3)},
            "centers must have one column for each of 4 classes, but a Tensor of shape (2, 3)",
        ),
    ],
    ids=["missing", "shape", "classes"],
)
def test_references_that_do_not_go_with_the_samples_are_refused(options, message):
    subject, inputs, targets = problem("linear", 2)
    with pytest.raises(InputError, match=re.escape(message)):
        attributions.get("lpi", **options)(subject, inputs, targets)


def test_bad_numbers_of_clusters_are_refused():
    subject, inputs, _ = problem("linear", 2)
    for name in ("clusters", "references"):
        with pytest.raises(InputError, match=f"{name} must be at least 1, but 0 came"):
            attributions.get("lpi").fit(subject, inputs, **{name: 0})
