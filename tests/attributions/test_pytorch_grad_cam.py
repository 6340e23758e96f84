"""Class activation maps against those of pytorch-grad-cam, which scales each map to [0, 1]."""

from __future__ import annotations

import warnings

import pytest
import torch

from pytest_triguard import attributions
from tests.networks import bare, problem

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")

from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

LAYERS = {"conv": "2", "smooth": "1", "bias_free": "1", "residual": "stem"}
"""A layer with places, by network: of the size of the input, and smaller."""


def rescaled(maps):
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


@pytest.mark.parametrize(("name", "layer"), LAYERS.items())
def test_grad_cam_up_to_scale(name, layer):
    subject, inputs, targets = problem(name, 4, torch.float32)
    module = bare(subject).requires_grad_()
    found = attributions.get("grad_cam", layer=layer)(subject, inputs, targets).sum(1)
    with pytorch_grad_cam.GradCAM(module, [module.get_submodule(layer)]) as cam:
        there = cam(inputs, [ClassifierOutputTarget(each) for each in targets.tolist()])
    there = torch.from_numpy(there)
    defined = found.amax((1, 2)) > 0
    assert int(defined.sum()) >= 2
    assert torch.allclose(rescaled(found[defined]), rescaled(there[defined]), atol=1e-4)
    assert not there[~defined].any()
