"""Occlusion: which windows hide what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError
from tests.attributions.table import close
from tests.networks import bare, images, problem
from tests.sessions import with_settings


@pytest.mark.parametrize(("window", "stride"), [(2, None), (3, 2), (4, 3), (20, 1), (None, None)])
@pytest.mark.parametrize("chunk", [2, 64])
def test_each_pixel_has_the_mean_fall_over_the_windows_that_cover_it(window, stride, chunk):
    subject, inputs, targets = problem("conv", 3)
    network, rows = bare(subject), torch.arange(3)
    method = attributions.get("occlusion", window=window, stride=stride, baseline="midpoint")
    with with_settings(chunk=chunk):
        found = method(subject, inputs, targets)
    side, step = window or 2, stride or max(1, (window or 2) // 2)
    total, count = torch.zeros(3, 8, 6).double(), torch.zeros(8, 6)
    top = 0
    while top == 0 or top - step + side < 8:
        left = 0
        while left == 0 or left - step + side < 6:
            hidden = inputs.clone()
            hidden[:, :, top : top + side, left : left + side] = 0.5
            fall = (network(inputs) - network(hidden))[rows, targets]
            total[:, top : top + side, left : left + side] += fall.view(3, 1, 1)
            count[top : top + side, left : left + side] += 1
            left += step
        top += step
    assert close(found.sum(1, keepdim=True), (total / count).unsqueeze(1), 1e-9)
    assert close(found, found[:, :1].expand_as(found), 1e-12)


def test_a_network_without_a_gradient_is_explained():
    class Steps(nn.Module):
        def forward(self, inputs):
            brightest = (inputs.detach().flatten(1) > 0.5).to(inputs.dtype)
            return torch.stack([brightest.sum(1), -brightest.sum(1)], 1)

    inputs = images((1, 3, 4), 2)
    found = attributions.get("occlusion", window=1)(Classifier(Steps()), inputs, 0)
    assert torch.equal(found, (inputs > 0.5).to(inputs.dtype))


def test_no_gradient_is_taken():
    subject, inputs, targets = problem("conv", 3)
    with subject.prepared() as model:
        batch = Batch((0, 1, 2), (0, 1, 2), torch.arange(3), inputs, targets=targets)
        attributions.get("occlusion", window=4, stride=2).explain(model, batch)
        assert (model.passes.forward, model.passes.backward) == (3 * (3 * 2 + 1), 0)


def test_a_stride_that_would_leave_gaps_is_refused():
    subject, inputs, targets = problem("conv", 3)
    with pytest.raises(InputError, match="stride must be at most the window, 2 pixels here, but 4"):
        attributions.get("occlusion", stride=4)(subject, inputs, targets)
