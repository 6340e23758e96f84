"""What the gate in test_gate.py is about: two networks, and digits they were not trained on."""

import digits
import pytest
from cache import trained
from model import network, train
from torch import Tensor

from pytest_triguard import Classifier


def classifier(*, smooth: bool) -> Classifier:
    """Return a trained network, ready to be tested."""
    images, labels = digits.split()[0]
    name = "smooth" if smooth else "ordinary"
    model = trained(name, lambda: train(images, labels, smooth=smooth), network(smooth=smooth))
    return Classifier(model, bounds=(0.0, 1.0), classes=tuple("0123456789"))


@pytest.fixture(scope="session")
def ordinary() -> Classifier:
    """A network as anybody trains it."""
    return classifier(smooth=False)


@pytest.fixture(scope="session")
def triguard_classifier() -> Classifier:
    """The network this repository ships: one whose explanations hold."""
    return classifier(smooth=True)


@pytest.fixture(scope="session")
def triguard_data() -> tuple[Tensor, Tensor]:
    """Digits the networks were not trained on: 50 images and their classes."""
    images, labels = digits.split()[1]
    return images[::20], labels[::20]
