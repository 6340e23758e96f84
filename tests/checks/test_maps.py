"""Maps that checks leave to each other: made once, and never taken over where something changed."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import (
    Classifier,
    assert_drift_below,
    assert_entropy_below,
    assert_explanations_agree,
    assert_faithful,
    attributions,
)
from tests.networks import problem
from tests.sessions import with_settings

COUNT, POINTS = 8, 50
IG = attributions.get("integrated_gradients")


def entropy(*subject, **options):
    return assert_entropy_below(*subject, 1.0, **options)


def drift(*subject, **options):
    return assert_drift_below(*subject, 2.0, between=("zero", "midpoint"), **options)


def faithful(*subject, **options):
    return assert_faithful(
        *subject,
        **options,
        insertion_at_least=0.0,
        deletion_at_most=1.0,
        steps=6,
        baseline="midpoint",
    )


def spent(*found):
    """Return the passes of some measurements, forward and backward."""
    return sum(sum(each.passes.values()) for each in found)


def test_entropy_drift_and_faithfulness_cost_the_maps_and_the_sweeps():
    subject, inputs, _ = problem("conv", COUNT)
    with with_settings():
        found = [
            entropy(subject, inputs, attribution=IG),
            drift(subject, inputs, attribution=IG),
            faithful(subject, inputs, attribution=IG),
        ]
    maps, sweeps = COUNT * 2 * (2 * POINTS), COUNT * (2 + 2 * 5)
    assert spent(*found) <= 1.1 * (maps + sweeps)
    assert sum(each.passes["backward"] for each in found) == COUNT * 2 * POINTS


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad"])
def test_what_is_taken_over_is_what_would_be_made(name, chunk):
    subject, inputs, labels = problem("smooth", 5)
    with with_settings(chunk=chunk):
        first = entropy(subject, inputs, labels=labels, attribution=name)
        again = entropy(subject, inputs, labels=labels, attribution=name)
        swept = faithful(subject, inputs, labels, attribution=name)
    assert again.values.tolist() == first.values.tolist()
    assert again.passes["backward"] == 0
    alone = faithful(Classifier(subject.module), inputs, labels, attribution=name)
    assert swept.values == pytest.approx(alone.values, rel=1e-9, nan_ok=True)


def test_agreement_of_two_methods_takes_the_maps_of_the_first():
    subject, inputs, _ = problem("smooth", 5)
    methods = IG, attributions.get("saliency")
    entropy(subject, inputs, attribution=IG)
    found = assert_explanations_agree(
        subject, inputs, methods=methods, metric="cosine", at_most=1.0
    )
    assert found.passes["backward"] == 5


def other_weights(subject, inputs):
    subject.module[0].weight.data.mul_(1.5)


def other_forward(subject, inputs):
    subject.module[0].register_forward_hook(lambda *given: given[-1] * 1.5)


def other_backward(subject, inputs):
    def kinked(module, given, gradients):
        return tuple(each.clamp_min(0) for each in given)

    subject.module[3].register_full_backward_hook(kinked)


def other_sample(subject, inputs):
    inputs[2, 0, 1, 1] += 0.25


CHANGES = [other_weights, other_forward, other_backward, other_sample]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_is_explained_anew(change):
    subject, inputs, labels = problem("smooth", 5)
    inputs = inputs * 0.7
    before = entropy(subject, inputs, labels=labels, attribution=IG)
    change(subject, inputs)
    found = drift(subject, inputs, labels=labels, attribution=IG)
    alone = drift(Classifier(copy.deepcopy(subject.module)), inputs, labels=labels, attribution=IG)
    assert before.n == 5
    assert found.values == pytest.approx(alone.values, rel=1e-12)


OTHERS = {
    "seed": ({"seed": 1}, {}),
    "level": ({}, {"noise_level": 0.3}),
    "copies": ({}, {"copies": 11}),
    "output": ({}, {"output": "probability"}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_method_takes_nothing_over(kind):
    options, parameters = OTHERS[kind]
    subject, inputs, labels = problem("smooth", 5)
    plain = {"copies": 12, "noise_level": 0.2}
    entropy(subject, inputs, labels=labels, attribution=attributions.get("smoothgrad", **plain))
    method = attributions.get("smoothgrad", **(plain | parameters))
    found = entropy(subject, inputs, labels=labels, attribution=method, **options)
    assert found.passes["backward"] == 5 * method.passes_per_sample


def test_other_classes_and_ids_are_explained_anew():
    subject, inputs, labels = problem("smooth", 5)
    method = attributions.get("smoothgrad", copies=12)
    for options in (
        {"labels": labels},
        {"labels": (labels + 1) % 4},
        {"labels": labels, "ids": list("abcde")},
    ):
        found = entropy(subject, inputs, attribution=method, **options)
        assert found.passes["backward"] == 5 * 12


def test_cheap_maps_are_not_kept():
    subject, inputs, labels = problem("smooth", 5)
    for _ in range(2):
        found = entropy(subject, inputs, labels=labels, attribution="saliency")
        assert found.passes == {"forward": 5, "backward": 5}


SUBJECT, INPUTS, LABELS = problem("smooth", 3)


@settings(max_examples=3)
@given(inputs=st.just(INPUTS))
def test_maps_of_drawn_inputs_are_not_kept(inputs):
    method = attributions.get("integrated_gradients", points=10)
    found = entropy(SUBJECT, inputs, labels=LABELS, attribution=method)
    assert found.passes["backward"] == 3 * 10
