"""Which explanation names the pixels that the prediction rests on?

Each method is a test of its own; the tables at the end hold them against each other.
"""

import pytest
from control import RandomRanking

from pytest_triguard import assert_accuracy, assert_faithful, attributions

METHODS = [
    "saliency",
    "gradient_x_input",
    "integrated_gradients",
    "smoothgrad",
    "deeplift",
    pytest.param(
        attributions.get("grad_cam", relu=False), id="grad_cam"
    ),  # whole maps are negative
    "occlusion",
    pytest.param(RandomRanking(), id="random"),
]
ON_PHOTOGRAPHS = [
    "saliency",
    pytest.param(attributions.get("integrated_gradients", points=10), id="integrated_gradients"),
    pytest.param(attributions.get("smoothgrad", copies=10), id="smoothgrad"),
    "grad_cam",
    pytest.param(RandomRanking(), id="random"),
]


def test_digits_are_recognised(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.9)


@pytest.mark.triguard(compare="attribution")
@pytest.mark.parametrize("attribution", METHODS)
def test_explanations_of_digits(triguard_classifier, triguard_data, attribution):
    assert_faithful(
        triguard_classifier,
        *triguard_data,
        attribution=attribution,
        insertion_at_least=0.1,
        deletion_at_most=0.9,
        steps=28,
    )


@pytest.mark.triguard(compare="attribution")
@pytest.mark.parametrize("attribution", ON_PHOTOGRAPHS)
def test_explanations_of_photographs(photo_classifier, photographs, attribution):
    assert_faithful(
        photo_classifier,
        photographs,
        attribution=attribution,
        insertion_at_least=0.0,
        deletion_at_most=1.0,
        baseline="blur",
        steps=20,
    )
