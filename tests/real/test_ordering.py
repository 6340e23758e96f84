"""The known order of explanations holds on real digits, by intervals of differences."""

import pytest
from torch import Tensor

from tests.real import found, ordering

pytestmark = pytest.mark.slow

COUNT = 40


@pytest.mark.parametrize("training", found.LENETS)
def test_a_random_ranking_is_worst_in_insertion(training, here):
    classifier, (images, labels) = here(found.lenet, training), here(ordering.digits, COUNT)
    areas = ordering.insertions(classifier, images, labels)
    random = areas.pop("random")
    for name, each in areas.items():
        _, (low, _) = ordering.difference(random, each)
        assert low > 0, name


@pytest.mark.parametrize("training", found.LENETS)
def test_smoothgrad_is_steadier_than_saliency_under_noise(training, here):
    classifier, (images, labels) = here(found.lenet, training), here(ordering.digits, COUNT)
    largest: dict[str, Tensor] = ordering.sensitivities(classifier, images, labels)
    _, (_, high) = ordering.difference(largest["saliency"], largest["smoothgrad"])
    assert high < 0
