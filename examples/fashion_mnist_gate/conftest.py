"""What the gate in test_gate.py is about: the classifier, and the images it is judged on."""

import os

import pytest
from fashion import VARIABLE, DataError, dataset
from network import MEAN, STD, quantized, shipped
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST

from pytest_triguard import Classifier

BITS = 4
ONLY_SHOWN = "collectonly", "showfixtures", "show_fixtures_per_test"
"""Options of runs that run no test, and so need no images."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-root",
        metavar="DIR",
        default=os.environ.get(VARIABLE),
        help=f"folder with FashionMNIST/raw (default: the environment variable {VARIABLE})",
    )
    parser.addoption(
        "--model",
        choices=("shipped", "quantized"),
        default="shipped",
        help=f"the network to judge: the shipped one, or one of {BITS}-bit weights",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the run before its first test where there are no images: a skipped gate would be open."""
    if any(map(session.config.getoption, ONLY_SHOWN)):
        return
    try:
        dataset(session.config.getoption("data_root"), train=False)
    except DataError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def triguard_classifier(pytestconfig: pytest.Config) -> Classifier:
    """The network this repository ships, or the twin that --model asks for."""
    model = shipped()
    if pytestconfig.getoption("model") == "quantized":
        model = quantized(model, bits=BITS)
    return Classifier(
        model, bounds=(0.0, 1.0), mean=(MEAN,), std=(STD,), classes=FashionMNIST.classes
    )


@pytest.fixture(scope="session")
def triguard_data(pytestconfig: pytest.Config) -> DataLoader:
    """The 10,000 test images, brought by a loader that does not shuffle."""
    return DataLoader(dataset(pytestconfig.getoption("data_root"), train=False), batch_size=500)
