"""What engines run: constants per channel, logits, predictions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.equality import same_values
from pytest_triguard.errors import InputError
from tests.engine.models import ready
from tests.networks import SHAPES, images, network

X = images(SHAPES["conv"], 5)


def test_bounds_are_tensors_per_channel_in_the_dtype_asked_for():
    model = ready(network("conv"), bounds=((0.0, -1.0, 0.2), (1.0, 1.0, 0.8)))
    for dtype in (torch.float32, torch.float64):
        low, high = model.bounds(dtype)
        assert low.shape == high.shape == (1, 3, 1, 1)
        assert low.dtype == high.dtype == dtype
        assert torch.allclose(low.flatten(), torch.tensor([0.0, -1.0, 0.2], dtype=dtype))
    assert model.bounds(torch.float32)[0] is model.bounds(torch.float32)[0]


def test_inputs_are_normalised_per_channel():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = ready(network("conv"), normalization=(mean, std))
    expected = torch.stack([(X[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.allclose(model.normalized(X), expected, rtol=1e-12)
    assert torch.allclose(model.logits(X), ready(network("conv")).logits(expected), rtol=1e-12)


@pytest.mark.parametrize(
    "pair", [((0.1, 0.2), (0.3,)), ((0.1,), (0.3, 0.4)), ((0.1,) * 4, (0.2,) * 4)]
)
def test_normalisation_of_other_channels_than_the_inputs_is_refused(pair):
    model = ready(network("residual"), normalization=pair)
    message = r"^inputs must have the \d channels that mean and std name, but a Tensor of shape \(2"
    with pytest.raises(InputError, match=message):
        model.logits(images(SHAPES["residual"], 2))


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_predictions_go_chunk_by_chunk_and_are_counted(chunk):
    model = ready(network("conv"), chunk)
    expected = model.module(X).argmax(1)
    assert torch.equal(model.predict(X), expected)
    assert model.passes.to_dict() == {"forward": 5, "backward": 0}
    assert model.num_classes == 4


class Marked(Tensor):
    """A tensor with a name of its own."""


def test_subclasses_of_tensors_do_not_spread():
    class Marking(nn.Module):
        def forward(self, inputs):
            return inputs.as_subclass(Marked).flatten(1)[:, :3]

    inputs = images((1, 3, 4), 3)
    marked = inputs.as_subclass(Marked)
    maps = attributions.get("saliency")(Classifier(nn.Flatten()), marked)
    assert type(maps) is Tensor
    points = inputs.clone().requires_grad_()
    logits = Classifier(Marking())(points)
    logits.sum().backward()
    assert type(logits) is type(points.grad) is Tensor
    assert points.grad.sum() == 9


def test_values_are_the_same_with_nan_and_not_with_another_dtype():
    values = torch.tensor([1.0, torch.nan, torch.inf])
    assert same_values(values, values.clone())
    assert not same_values(values, values.double())
    assert not same_values(values, values[:2])
    assert not same_values(values, torch.tensor([1.0, 2.0, torch.inf]))
    assert not same_values(values, torch.tensor([1.0, torch.nan, -torch.inf]))
