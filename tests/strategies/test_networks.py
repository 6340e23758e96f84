"""Random networks: small, sound, made without torch's generators, shrunk to the smallest."""

import copy
import re

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_triguard import Classifier, attacks
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.strategies import perturbations, random_networks
from pytest_triguard.verification import verify

FEW = settings(max_examples=20, deadline=None, database=None, derandomize=True)


def drawn(count, **arguments):
    found = []

    @settings(FEW, max_examples=count)
    @given(network=random_networks(**arguments))
    def keep(network):
        found.append(network)

    keep()
    return found


def state(network):
    return copy.deepcopy(network.module.state_dict())


@FEW
@given(network=random_networks())
def test_a_network_takes_its_inputs_and_is_in_evaluation_mode(network):
    inputs = network.inputs(3)
    assert inputs.shape == (3, *network.shape)
    assert inputs.dtype == torch.float32
    assert 0 <= inputs.min() <= inputs.max() < 1
    assert torch.equal(inputs, network.inputs(3))
    assert torch.equal(inputs[:2], network.inputs(2))
    logits = Classifier(network.module)(inputs)
    assert logits.shape == (3, network.classes)
    assert torch.isfinite(logits).all()
    assert not any(each.training for each in network.module.modules())
    alone = torch.cat([network.module(each[None]) for each in inputs])
    torch.testing.assert_close(alone, logits)


@FEW
@given(network=random_networks(dtype=torch.float64))
def test_no_class_is_out_of_reach_of_a_grey_image(network):
    logits = network.module(torch.full((1, *network.shape), 0.5, dtype=torch.float64))[0]
    torch.testing.assert_close(logits, torch.zeros_like(logits))


def test_every_kind_of_layer_and_image_is_drawn():
    networks = drawn(100)
    kinds = {type(layer) for network in networks for layer in network.module}
    assert kinds == {
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Linear)
    }
    shapes = {network.shape for network in networks}
    assert {channels for channels, _, _ in shapes} == {1, 3}
    assert any(height != width for _, height, width in shapes)
    assert {network.classes for network in networks} == {2, 3, 4, 5}
    undecided = [
        each for each in networks if len(each.module(each.inputs(64)).argmax(1).unique()) > 1
    ]
    assert len(undecided) > 50, "most predict more than one class"


def test_the_draw_decides_and_no_generator_is_used():
    def hashes():
        return [
            [float(value.double().sum()) for value in state(each).values()] for each in drawn(10)
        ]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = hashes()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert hashes() == first


def test_it_shrinks_to_the_smallest_network():
    network = find(random_networks(), lambda _: True)
    assert [type(each) for each in network.module] == [nn.Flatten, nn.Linear]
    assert (network.shape, network.classes) == ((1, 1, 1), 2)


def test_it_shrinks_to_the_layer_that_matters():
    network = find(
        random_networks(),
        lambda network: any(isinstance(each, nn.BatchNorm2d) for each in network.module),
        settings=settings(FEW, max_examples=500),
    )
    kinds = [type(each) for each in network.module]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, nn.Linear]
    assert network.module[0].weight.numel() == 1


@FEW
@given(network=random_networks(shape=(2, 3, 5), classes=7, dtype=torch.float64))
def test_what_is_given_is_not_drawn(network):
    assert (network.shape, network.classes) == ((2, 3, 5), 7)
    assert network.module(network.inputs(2)).dtype == torch.float64


@settings(FEW, max_examples=10)
@given(data=st.data(), network=random_networks(dtype=torch.float64))
def test_what_is_proven_is_not_broken(data, network):
    """The property test that these strategies are there for, on methods of this project."""
    subject, inputs, eps = Classifier(network.module), network.inputs(3), 0.05
    labels = subject(inputs).argmax(1)
    status = verify(subject, inputs, labels, eps=eps).status
    points = data.draw(perturbations(inputs, eps))
    attacked = attacks.get("pgd", eps=eps, steps=3)(subject, inputs, labels).adversarial
    for row, found in enumerate(status):
        if found == "proven":
            assert subject(points[row : row + 1]).argmax() == labels[row]
            assert subject(attacked[row : row + 1]).argmax() == labels[row]


BAD = [
    ({"shape": 3}, InputTypeError, "shape must be three whole numbers, but 3 came"),
    ({"shape": (1, 2)}, InputTypeError, "shape must be three whole numbers, but (1, 2) came"),
    ({"shape": (1, 0, 2)}, InputError, "shape must be at least 1, but 0 came"),
    ({"shape": (1, 2.5, 2)}, InputTypeError, "shape must be a whole number, but 2.5 came"),
    ({"classes": 1}, InputError, "classes must be at least 2, but 1 came"),
    ({"classes": "two"}, InputTypeError, "classes must be a whole number"),
    ({"dtype": "float32"}, InputTypeError, "dtype must be a floating torch.dtype"),
    ({"dtype": torch.int64}, InputTypeError, "dtype must be a floating torch.dtype"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_a_bad_argument_is_named_when_the_strategy_is_made(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        random_networks(**arguments)


def test_a_bad_count_of_images_is_named():
    network = find(random_networks(), lambda _: True)
    with pytest.raises(InputError, match="count must be at least 1, but 0 came"):
        network.inputs(0)
