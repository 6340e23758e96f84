"""Bounds computed in float32 hold the exact rational outputs of networks made to cancel.

Here what the computation of a bound rounds is far larger than what the bound leaves open: a bound
that forgets some of it is above the truth.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, verification
from pytest_triguard.verification import carried
from tests.verification.mixed_integer import Residual
from tests.verification.soundness import few_steps, without_float64

METHODS = ["alpha_crown", "branch_and_bound", "crown", "crown_ibp", "ibp"]
INPUTS, HIDDEN, CLASSES = 16, 12, 3


def exact_outputs(module, values):
    """Return the exact outputs for exact inputs."""
    for layer in module:
        if isinstance(layer, nn.Linear):
            values = [
                sum((Fraction(w) * x for w, x in zip(row, values, strict=True)), Fraction(b))
                for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            ]
        elif isinstance(layer, nn.LeakyReLU | nn.ReLU):
            slope = Fraction(getattr(layer, "negative_slope", 0))
            values = [max(x, 0) + slope * min(x, 0) for x in values]
        elif isinstance(layer, Residual):
            own = exact_outputs(layer.body, values)
            values = [one + two for one, two in zip(values, own, strict=True)]
        elif isinstance(layer, nn.MaxPool2d):
            windows = layer(torch.eye(len(values)).view(len(values), 1, *layer.image))
            windows = windows.flatten(1).T > 0.5
            values = [max(values[place] for place in row.nonzero()[:, 0]) for row in windows]
        else:
            assert isinstance(layer, nn.Flatten | nn.Unflatten)
    return values


def deep():
    """A network whose first layer cancels its inputs, and whose second its large biases."""
    module = nn.Sequential(
        nn.Flatten(),
        nn.Linear(INPUTS, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.LeakyReLU(0.25),
        nn.Linear(HIDDEN, CLASSES),
    )
    half = HIDDEN // 2
    _paired(module[1].weight)
    module[1].bias.add_(1e3)
    module[3].weight[:, half:] = -module[3].weight[:, :half]
    module[3].bias[:half] += 1e3
    module[3].bias[half:] -= 1e3
    module[5].weight[:, :half] *= 1e-3
    return module


def merged():
    """A network whose branches undo what they are added to."""
    first, second = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)
    for layer in (first, second):
        layer.weight.copy_(-torch.eye(INPUTS) + 1e-6 * torch.randn(INPUTS, INPUTS))
    return nn.Sequential(
        nn.Flatten(), Residual(first), Residual(second, nn.ReLU()), nn.Linear(INPUTS, CLASSES)
    )


def pooled():
    """A network with overlapping windows of nearly equal elements."""
    pool = nn.MaxPool2d(2, 1)
    pool.image = (4, 4)
    module = nn.Sequential(
        nn.Flatten(),
        nn.Linear(INPUTS, INPUTS),
        nn.Unflatten(1, (1, 4, 4)),
        pool,
        nn.Flatten(),
        nn.Linear(9, CLASSES),
    )
    _paired(module[1].weight)
    module[1].bias.add_(1e3)
    module[5].weight[:, 4:8] = -module[5].weight[:, :4]
    return module


def _paired(weight):
    """Let the second half of the weights undo the first."""
    half = weight.shape[1] // 2
    weight[:, half:] = -weight[:, :half]


@pytest.mark.parametrize("width", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("build", [deep, merged, pooled])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_computed_in_float32_hold_exact_outputs(method, build, width):
    for seed in range(4):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            module = build()
            half = torch.rand(3, INPUTS // 2) / 2 + 0.25
            inputs = torch.cat([half, half * (1 + 1e-6)], 1).view(3, 1, 4, 4)
            corners = torch.rand(2, *inputs.shape).round()
        lower, upper = inputs - width, inputs + width
        with few_steps(), without_float64():
            low, high = verification.bounds(Classifier(module), lower, upper, method=method)
        assert low.dtype == torch.float32
        for corner in corners:
            points = torch.where(corner > 0, upper, lower)
            for place, point in enumerate(points.flatten(1).tolist()):
                exact = exact_outputs(module, [Fraction(x) for x in point])
                assert all(map(_at_most, low[place].tolist(), exact))
                assert all(map(_at_most, exact, high[place].tolist()))


def _at_most(one, two):
    """Compare exactly; a bound that is not finite holds."""
    if any(isinstance(each, float) and not abs(each) < torch.inf for each in (one, two)):
        return True
    return Fraction(one) <= Fraction(two)


def test_parts_of_a_bound_add_up_to_less_than_their_exact_sum():
    torch.manual_seed(0)
    parts = [torch.randn(1, 300) * 10.0 ** (place % 3) for place in range(7)]
    found = carried.summed(parts)[0].tolist()
    for each, *values in zip(found, *(part[0].tolist() for part in parts), strict=True):
        assert Fraction(each) <= sum(map(Fraction, values))
