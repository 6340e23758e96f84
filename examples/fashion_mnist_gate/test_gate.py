"""The safety gate: what must hold before this network is shipped.

Each check is held against its threshold and against what the committed baseline found.
"""

import pytest

from pytest_triguard import (
    assert_accuracy,
    assert_drift_below,
    assert_entropy_below,
    assert_robust,
    assert_verified,
)

EPS = 0.03


@pytest.mark.triguard(confidence=0.95)
def test_clothes_are_recognised(triguard_classifier, triguard_data):
    """A claim on all images like these: the whole interval has to reach the threshold."""
    assert_accuracy(triguard_classifier, triguard_data, at_least=0.82)


@pytest.mark.triguard(samples=1000)
def test_robustness_is_proven(triguard_classifier, triguard_data):
    assert_verified(triguard_classifier, triguard_data, eps=EPS, at_least=0.7, max_regression=0.005)


@pytest.mark.triguard(samples=1000)
def test_pgd_finds_little(triguard_classifier, triguard_data):
    assert_robust(triguard_classifier, triguard_data, eps=EPS, at_least=0.7, max_regression=0.005)


@pytest.mark.triguard(samples=300)
def test_explanations_are_concentrated(triguard_classifier, triguard_data):
    assert_entropy_below(triguard_classifier, triguard_data, 0.8, max_regression="2%")


@pytest.mark.triguard(samples=300)
def test_explanations_hardly_hang_on_noise(triguard_classifier, triguard_data):
    """Maps from a black image, and maps from one of faint noise."""
    between = "zero", "noise"
    assert_drift_below(
        triguard_classifier, triguard_data, 0.5, between=between, max_regression="2%"
    )
