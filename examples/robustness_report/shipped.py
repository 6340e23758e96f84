"""The trained networks and the digits they are held against, for the tests and for the report."""

import digits
from cache import trained
from model import network, train
from torch import Tensor

from pytest_triguard import Classifier


def classifier(*, attacked: bool) -> Classifier:
    """Return a network trained on attacked digits, or on digits as they are."""
    images, labels = digits.split()[0]
    name = "attacked" if attacked else "plain"
    model = trained(name, lambda: train(images, labels, attacked=attacked), network())
    return Classifier(model, bounds=(0.0, 1.0), classes=tuple("0123456789"))


def unseen() -> tuple[Tensor, Tensor]:
    """Return 40 digits the networks were not trained on, and their classes."""
    images, labels = digits.split()[1]
    return images[::25], labels[::25]
