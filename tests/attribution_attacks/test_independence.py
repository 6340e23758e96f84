"""The outcome of a sample depends on nothing but the sample, its id, the seed and the attack."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_triguard.classifier import Classifier
from tests.attribution_attacks.table import (
    TABLE,
    distance,
    every_method,
    every_row,
    method,
    same,
)
from tests.networks import SHAPES, bare, classifier, images, problem
from tests.sessions import with_settings

few = settings(max_examples=20, deadline=None)


@every_method
@every_row
def test_the_chunk_does_not_matter(row, name):
    """A chunk of 2 holds fewer rows than there are copies of a sample, one of 7 two samples."""
    subject, inputs, targets = problem("smooth", 3)
    results = []
    for chunk in (2, 7, 64):
        with with_settings(chunk=chunk):
            attack = row.attack(attribution=method(name), steps=2)
            results.append(attack(subject, inputs, targets))
    assert all(same(each, results[-1], 1e-9) for each in results[:-1])


@every_row
def test_the_chunk_does_not_matter_to_a_network_of_relus(row):
    subject, inputs, targets = problem("conv", 7)
    results = []
    for chunk in (1, 3, 64):
        with with_settings(chunk=chunk):
            results.append(row.attack()(subject, inputs, targets))
    assert all(same(each, results[-1], 1e-9) for each in results[:-1])


@every_row
def test_company_does_not_matter(row):
    subject, inputs, targets = problem("conv", 5)
    together = row.attack()(subject, inputs, targets)
    for place in range(5):
        own = slice(place, place + 1)
        alone = row.attack()(subject, inputs[own], targets[own], ids=[place])
        assert torch.allclose(alone.adversarial, together.adversarial[own], rtol=0, atol=1e-9)
        assert torch.equal(alone.success, together.success[own])


@pytest.mark.parametrize("of_the_network", [False, True])
@every_row
def test_the_order_in_memory_does_not_matter(row, of_the_network):
    subject, inputs, targets = problem("conv", 4)
    found = row.attack()(subject, inputs, targets)
    layout = {"memory_format": torch.channels_last}
    if of_the_network:
        moved = row.attack()(Classifier(bare(subject).to(**layout)), inputs, targets)
    else:
        moved = row.attack()(subject, inputs.to(**layout), targets)
    assert same(moved, found, 1e-9)


@every_row
def test_order_does_not_matter_to_samples_with_ids(row):
    subject, inputs, targets = problem("conv", 6)
    names = [f"image-{place}" for place in range(6)]
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    found = row.attack()(subject, inputs, targets, ids=names)
    moved = row.attack()(
        subject, inputs[order], targets[order], ids=[names[place] for place in order]
    )
    assert torch.allclose(moved.adversarial, found.adversarial[order], rtol=0, atol=1e-9)
    assert torch.equal(moved.success, found.success[order])


@every_row
def test_the_seed_and_the_ids_alone_decide_the_draws(row):
    subject, inputs, targets = problem("smooth", 4)
    few = {"steps": 1, "criterion": "cosine"}
    attack = row.attack(seed=5, **few)
    found = attack(subject, inputs, targets)
    torch.manual_seed(99)
    assert same(attack(subject, inputs, targets), found)
    with with_settings(seed=5):
        assert same(row.attack(**few)(subject, inputs, targets), found)
    assert same(attack(subject, inputs, targets, ids=[0, 1, 2, 3]), found)
    others = attack(subject, inputs, targets, ids=["a", "b", "c", "d"])
    seeded = row.attack(seed=6, **few)(subject, inputs, targets)
    for other in (others, seeded):
        assert (other.measure != found.measure).any()


@every_row
def test_each_sample_may_have_its_own_eps(row):
    subject, inputs, targets = problem("smooth", 4)
    eps = torch.linspace(0, 0.2, 4, dtype=torch.float64)
    found = row.attack(eps=eps)(subject, inputs, targets)
    assert (found.distance <= eps + 1e-12).all()
    for place, own in enumerate(eps.tolist()):
        expected = row.attack(eps=own)(subject, inputs, targets)
        assert torch.allclose(
            found.adversarial[place], expected.adversarial[place], rtol=0, atol=1e-9
        )


@few
@given(
    seed=st.integers(0, 10**6),
    eps=st.floats(0, 1),
    step=st.none() | st.floats(0, 2),
    low=st.floats(-3, 0.5),
    width=st.floats(0.01, 4),
    norm=st.sampled_from(["linf", "l2"]),
    row=st.sampled_from(TABLE),
)
@example(0, 1.0, None, 0.5, 1.6191430999856575, "linf", TABLE[0])  # eps above the range by rounding
def test_nothing_leaves_ball_or_bounds_or_changes_the_prediction(
    seed, eps, step, low, width, norm, row
):
    high, eps = low + width, eps * width
    module = bare(classifier("residual"))
    subject = Classifier(module, bounds=(low, high))
    inputs = (low + width * images(SHAPES["residual"], 3, seed=seed)).clamp(low, high)
    attack = row.attack(eps=eps, norm=norm, seed=seed, step_size=step, steps=2)
    found = attack(subject, inputs)
    assert (distance(found.adversarial, inputs, norm) <= eps * (1 + 1e-12) + 1e-12).all()
    assert found.adversarial.min() >= low
    assert found.adversarial.max() <= high
    assert torch.equal(module(found.adversarial).argmax(1), module(inputs).argmax(1))


@pytest.mark.parametrize("name", ["saliency", "smoothgrad"])
def test_float32_finds_what_float64_finds(name):
    results = []
    for dtype in (torch.float32, torch.float64):
        subject, inputs, targets = problem("smooth", 4, dtype)
        attack = TABLE[0].attack(attribution=method(name), steps=2, criterion="cosine")
        results.append(attack(subject, inputs, targets).measure.double())
    assert torch.allclose(results[0], results[1], rtol=1e-2)
