"""The outcome of a sample depends on nothing but the sample, its id, the seed and the attack."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import attacks
from pytest_triguard.classifier import Classifier
from tests.attacks.table import TABLE, distance, one_case, random_cases, same, some_cases
from tests.networks import SHAPES, bare, classifier, images, problem
from tests.sessions import with_settings

few = settings(max_examples=20, deadline=None)


@some_cases
def test_the_chunk_does_not_matter(case):
    subject, inputs, labels = problem("conv" if case.norm == "linf" else "smooth", 7)
    results = []
    for chunk in (1, 3, 64):
        with with_settings(chunk=chunk):
            results.append(case.attack()(subject, inputs, labels, targets=case.targets(labels)))
    assert same(results[1], results[0], 1e-9)
    assert same(results[2], results[0], 1e-9)


@one_case
def test_company_does_not_matter(case):
    subject, inputs, labels = problem("conv", 6)
    targets = case.targets(labels)
    together = case.attack()(subject, inputs, labels, targets=targets)
    for place in range(6):
        own = slice(place, place + 1)
        single = case.attack()(
            subject,
            inputs[own],
            labels[own],
            targets=None if targets is None else targets[own],
            ids=[place],
        )
        assert torch.allclose(single.adversarial, together.adversarial[own], rtol=0, atol=1e-9)
        assert torch.equal(single.success, together.success[own])
        assert torch.equal(single.passes, together.passes[own])


@one_case
def test_order_does_not_matter_to_samples_with_ids(case):
    subject, inputs, labels = problem("conv", 8)
    targets = case.targets(labels)
    names = [f"image-{place}" for place in range(8)]
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    found = case.attack()(subject, inputs, labels, targets=targets, ids=names)
    moved = case.attack()(
        subject,
        inputs[order],
        labels[order],
        targets=None if targets is None else targets[order],
        ids=[names[place] for place in order],
    )
    assert torch.allclose(moved.adversarial, found.adversarial[order], rtol=0, atol=1e-9)
    assert torch.equal(moved.success, found.success[order])


@random_cases
def test_other_ids_draw_otherwise(case):
    subject, inputs, labels = problem("conv", 4)
    options = {"targets": case.targets(labels)}
    attack = case.attack(whole=True)
    found = attack(subject, inputs, labels, **options)
    same_ids = attack(subject, inputs, labels, ids=[0, 1, 2, 3], **options)
    others = attack(subject, inputs, labels, ids=["a", "b", "c", "d"], **options)
    assert same(same_ids, found)
    assert (others.adversarial != found.adversarial).flatten(1).any(1).all()


@some_cases
def test_the_seed_alone_decides_the_draws(case):
    subject, inputs, labels = problem("conv", 4)
    options = {"targets": case.targets(labels)}
    found = case.attack(whole=True, seed=5)(subject, inputs, labels, **options)
    torch.manual_seed(99)
    again = case.attack(whole=True, seed=5)(subject, inputs, labels, **options)
    with with_settings(seed=5):
        of_session = case.attack(whole=True)(subject, inputs, labels, **options)
    other = case.attack(whole=True, seed=6)(subject, inputs, labels, **options)
    assert same(again, found)
    assert same(of_session, found)
    assert torch.equal(other.adversarial, found.adversarial) is not case.row.random


@some_cases
def test_each_sample_may_have_its_own_eps(case):
    subject, inputs, labels = problem("conv", 5)
    targets = case.targets(labels)
    eps = torch.linspace(0, 0.2, 5, dtype=torch.float64)
    found = case.attack(eps=eps)(subject, inputs, labels, targets=targets)
    for place, own in enumerate(eps.tolist()):
        expected = case.attack(eps=own)(subject, inputs, labels, targets=targets)
        assert torch.allclose(
            found.adversarial[place], expected.adversarial[place], rtol=0, atol=1e-9
        )
        assert found.success[place] == expected.success[place]


@few
@given(
    seed=st.integers(0, 10**6),
    eps=st.floats(0, 1),
    step=st.none() | st.floats(0, 2),
    low=st.floats(-3, 0.5),
    width=st.floats(0.01, 4),
    norm=st.sampled_from(["linf", "l2"]),
    row=st.sampled_from([row for row in TABLE if not row.long]),
)
def test_nothing_leaves_ball_or_bounds(seed, eps, step, low, width, norm, row):
    high, eps = low + width, eps * width
    subject = Classifier(bare(classifier("residual")), bounds=(low, high))
    inputs = low + width * images(SHAPES["residual"], 3, seed=seed)
    inputs = inputs.clamp(low, high)
    norm = norm if norm in row.norms else row.norms[0]
    options = row.few | ({"step_size": step} if row.stepwise else {}) | {"norm": norm}
    attack = attacks.get(row.name, eps=eps, seed=seed, **options)
    found = attack(subject, inputs, torch.tensor([0, 1, 2]))
    assert (distance(found.adversarial, inputs, norm) <= eps * (1 + 1e-12) + 1e-12).all()
    assert found.adversarial.min() >= low
    assert found.adversarial.max() <= high
