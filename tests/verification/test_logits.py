"""Rows on the logits, merged with the last product and carried back from there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_triguard import Classifier
from pytest_triguard.verification.budget import Budget
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.logits import least
from pytest_triguard.verification.methods import BOUNDS, Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.specification import Differences
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
