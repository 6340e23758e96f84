"""What test_report.py is about: a network, a twin that hides its gradients, and digits."""

import pytest
from model import Steps
from shipped import classifier, unseen
from torch import Tensor, nn

from pytest_triguard import Classifier


@pytest.fixture(scope="session")
def triguard_classifier() -> Classifier:
    """The network this repository ships."""
    return classifier(attacked=True)


@pytest.fixture(scope="session")
def masked() -> Classifier:
    """An ordinary network behind rounded pixels, which leave no gradient to follow."""
    return Classifier(nn.Sequential(Steps(), classifier(attacked=False).module))


@pytest.fixture(scope="session")
def triguard_data() -> tuple[Tensor, Tensor]:
    """Digits the networks were not trained on."""
    return unseen()
