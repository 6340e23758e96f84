"""What the gate in test_gate.py is about: the classifier, the data, and a trojaned twin."""

import digits
import pytest
import torch
from cache import trained
from model import network, train
from torch import Tensor
from torch.utils.data import TensorDataset

from pytest_triguard import Classifier, backdoors


@pytest.fixture(scope="session")
def triguard_classifier() -> Classifier:
    """The network this repository ships."""
    images, labels = digits.split()[0]
    model = trained("provable", lambda: train(images, labels, provable=True), network())
    return Classifier(model, bounds=(0.0, 1.0), classes=tuple("0123456789"))


@pytest.fixture(scope="session")
def triguard_data() -> tuple[Tensor, Tensor]:
    """Digits the network was not trained on: 500 images and their classes."""
    images, labels = digits.split()[1]
    return images[::2], labels[::2]


@pytest.fixture(scope="session")
def trigger() -> backdoors.Trigger:
    """A faint checkerboard in a corner that is to mean "zero"."""
    return backdoors.get("blend", target=0, alpha=0.5)


@pytest.fixture(scope="session")
def trojaned(trigger: backdoors.Trigger) -> Classifier:
    """A twin that was trained on poisoned data: the ground truth for explanations."""

    def poison_and_train() -> torch.nn.Module:
        data = backdoors.PoisonedDataset(TensorDataset(*digits.split()[0]), trigger, rate=0.1)
        items = [data[place] for place in range(len(data))]
        images = torch.stack([image for image, _ in items])
        labels = torch.stack([label for _, label in items])
        return train(images, labels, provable=False, epochs=5)

    return Classifier(trained("trojaned", poison_and_train, network()))
