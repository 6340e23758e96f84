"""Rows on the logits, merged with the last product and carried back from there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_triguard import Classifier
from pytest_triguard.verification import logits as subject_of
from pytest_triguard.verification.budget import Budget
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.logits import least
from pytest_triguard.verification.methods import BOUNDS, Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.specification import Differences, Matrix
from pytest_triguard.verification.substitution import Substitution
from tests.verification.zoo import ZOO, images, network


def captured(module, inputs, dtype):
    module.eval()
    with Classifier(module).prepared() as model, torch.no_grad():
        model.logits(inputs[:1])
        return Network(model, dtype)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
    classes=st.integers(2, 40),
)
def test_merging_pays_for_what_it_rounds(seed, scale, offset, classes):
    """Rows of weights that are nearly equal, and a large bias, leave little of a difference."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, classes))
    with torch.no_grad():
        module[1].weight.copy_(scale * (1 + 1e-3 * torch.randn(classes, 6)))
        module[1].bias.copy_(offset * (1 + 1e-5 * torch.randn(classes)))
    inputs = torch.rand(2, 1, 2, 3)
    lower, upper = inputs - 0.1, inputs + 0.1
    subject = captured(module, inputs, torch.float32).own
    walk = Substitution(subject, Interval(lower, upper), 2**20, Effort().clock)
    labels = torch.tensor([0, classes - 1])
    with torch.no_grad():
        walk.forward()
        found = least(walk, Differences(labels, None, classes))
    weight, bias = (each.detach().double() for each in (module[1].weight, module[1].bias))
    centre, radius = (upper.double() + lower.double()) / 2, (upper.double() - lower.double()) / 2
    for sample, label in enumerate(labels.tolist()):
        others = [k for k in range(classes) if k != label]
        rows, shift = weight[label] - weight[others], bias[label] - bias[others]
        exact = rows @ centre[sample].flatten() - rows.abs() @ radius[sample].flatten() + shift
        assert (found[sample] <= exact).all()
        size = scale + offset
        assert (found[sample] >= exact - 1e-3 * size).all()


@pytest.mark.parametrize("method", ["crown_ibp", "crown"])
@pytest.mark.parametrize("name", ZOO)
def test_what_was_found_without_derivatives_serves_where_they_are_taken(name, method):
    """Of the same region, by the same network, with what both keep."""
    inputs = images(name, 2).float()  # weights are converted, and the conversion kept
    subject = captured(network(name).float(), inputs, torch.float32)
    region = Interval(inputs.double() - 0.02, inputs.double() + 0.02)
    rows = Differences(torch.tensor([0, 1]), None, 3)
    effort = Effort(budget=Budget(steps=2))
    bound = BOUNDS.get(method)
    first = bound.margins(subject, region, rows, effort)
    logits = bound.logits(subject, region, effort)
    ascended = BOUNDS.get("alpha_crown").margins(subject, region, rows, effort).margin
    fresh = captured(network(name).float(), inputs, torch.float32)
    alone = Interval(region.lower, region.upper)
    expected = BOUNDS.get("alpha_crown").margins(fresh, alone, rows, effort).margin
    torch.testing.assert_close(ascended, expected, rtol=1e-9, atol=1e-9)
    ends = first.logits.lower, first.logits.upper, logits.lower, logits.upper
    for each in (first.margin, region.largest, *ends):
        assert not each.is_inference()
        each.add_(0.0)


class Gained(nn.Module):
    """Weights that are computed in every forward, from weights alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 2, 3), nn.Linear(8, 6), nn.Linear(6, 3)
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, inputs):
        hidden = functional.conv2d(inputs, self.conv.weight * self.gain, self.conv.bias).relu()
        hidden = functional.linear(hidden.flatten(1), self.hidden.weight * self.gain).relu()
        return functional.linear(hidden, self.head.weight * self.gain)


def normed():
    flat, hidden = weight_norm(nn.Linear(16, 6)), weight_norm(nn.Linear(6, 6))
    return nn.Sequential(nn.Flatten(), flat, nn.ReLU(), hidden, nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [Gained, normed])
def test_weights_that_are_computed_serve_where_derivatives_are_taken(make, dtype):
    """They are made in inference mode, unless something is done about it, and then kept."""
    torch.manual_seed(0)
    module, inputs = make().to(dtype), torch.rand(2, 1, 4, 4, dtype=dtype)
    subject, alone = captured(module, inputs, dtype), captured(module, inputs, dtype)
    region = Interval(inputs.double() - 0.1, inputs.double() + 0.1)
    rows = Differences(torch.tensor([0, 1]), None, 3)
    effort = Effort(budget=Budget(steps=2))
    BOUNDS.get("crown").margins(subject, region, rows, effort)
    found = BOUNDS.get("alpha_crown").margins(subject, region, rows, effort).margin
    expected = BOUNDS.get("alpha_crown").margins(alone, region.alike(), rows, effort).margin
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class Magnitudes(TorchDispatchMode):
    """Counts how often magnitudes of a shape are taken."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.abs.default and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def test_what_merging_rounds_takes_the_weights_once(monkeypatch):
    """However few rows are carried back together: the last weights may be most of a network."""
    module, inputs = nn.Sequential(nn.Flatten(), nn.Linear(5, 12)), torch.rand(2, 1, 1, 5)
    subject = captured(module, inputs, torch.float32)
    region = Interval(inputs.double() - 0.1, inputs.double() + 0.1)
    walk = Substitution(subject, region, 2**20, Effort().clock)
    rows = Differences(torch.tensor([0, 11]), None, 12)
    with torch.no_grad():
        walk.forward()
        expected = least(walk, rows)
        monkeypatch.setattr(subject_of, "_CACHED", 1)
        with Magnitudes((12, 5)) as seen:
            found = least(walk, rows)
    assert seen.count == 1
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
def test_rows_pay_for_what_underflows_in_the_logits(method):
    """Each product of a weight, the least float32 number, is rounded up by a third."""
    module, inputs = (
        nn.Sequential(nn.Flatten(), nn.Linear(30, 2, bias=False)),
        torch.rand(1, 1, 1, 30),
    )
    least_number = 2.0**-149
    with torch.no_grad():
        module[1].weight.fill_(least_number)
        inputs.fill_(0.75)
    subject = captured(module, inputs, torch.float32).own
    rows = Matrix(torch.tensor([[1e10, 0.0]]), 1e10)
    found = BOUNDS.get(method).margins(subject, Interval(inputs, inputs), rows, Effort()).margin
    assert float(found) <= 30 * 0.75 * least_number * 1e10
