"""Attacks leave of two known networks what is known of them."""

import pytest

from pytest_triguard import attacks
from tests.real import found, robustness

pytestmark = pytest.mark.slow

COUNT = 200


@pytest.mark.parametrize("training", found.LENETS)
def test_pgd_leaves_what_is_known(training, here):
    here(found.digits)
    here(found.lenet, training)
    left = robustness.standing(training, robustness.pgd(), COUNT)
    low, high = robustness.interval(left, COUNT)
    assert low <= robustness.PUBLISHED[training] <= high


@pytest.mark.parametrize("training", found.LENETS)
def test_autoattack_leaves_no_more_than_pgd(training, here):
    images, labels = (each[:10] for each in here(found.digits))
    network = here(found.lenet, training)
    strong = attacks.get("autoattack", eps=robustness.EPS, seed=0)
    fell = strong(network, images, labels).success
    by_pgd = robustness.pgd()(network, images, labels).success
    assert int(fell.sum()) >= int(by_pgd.sum())
