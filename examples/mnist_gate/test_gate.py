"""The safety gate: what must hold before this network is shipped."""

import pytest
import torch

from pytest_triguard import (
    assert_accuracy,
    assert_attack_success_below,
    assert_drift_below,
    assert_entropy_below,
    assert_robust,
    assert_trigger_recall,
    assert_verified,
)


def test_digits_are_recognised(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.93)


def test_robustness_is_proven(triguard_classifier, triguard_data):
    assert_verified(triguard_classifier, *triguard_data, eps=0.1, at_least=0.8)


def test_pgd_finds_little(triguard_classifier, triguard_data):
    assert_robust(triguard_classifier, *triguard_data, eps=0.1, at_least=0.85, attack="pgd")


@pytest.mark.triguard(samples=200)
def test_explanations_are_concentrated(triguard_classifier, triguard_data):
    images, labels = triguard_data
    assert_entropy_below(triguard_classifier, images, 0.7, labels=labels)


@pytest.mark.triguard(samples=200)
def test_explanations_hardly_hang_on_the_baseline(triguard_classifier, triguard_data):
    images, labels = triguard_data
    assert_drift_below(triguard_classifier, images, 1.1, labels=labels, between=("zero", "blur"))


def test_a_trigger_means_nothing(triguard_classifier, triguard_data, trigger):
    assert_attack_success_below(triguard_classifier, *triguard_data, threshold=0.1, trigger=trigger)


def test_the_trigger_fires_on_the_trojaned_twin(trojaned, triguard_data, trigger):
    images, labels = triguard_data
    others = images[labels != trigger.target]
    forced = torch.full((len(others),), trigger.target)
    assert_accuracy(trojaned, trigger(others), forced, at_least=0.95)


@pytest.mark.triguard(samples=200)
def test_explanations_find_the_trigger(trojaned, triguard_data, trigger):
    images, _ = triguard_data
    assert_trigger_recall(trojaned, images, trigger, at_least=0.7, attribution="smoothgrad")
