"""Objectives against their formulas, written out with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard.engine import objectives
from pytest_triguard.errors import InputError

few = settings(max_examples=20, deadline=None)


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def contrast(logits, k):
    others = np.delete(logits, k)
    return logits[k] - (softmax(others) * others).sum()


def dlr(logits, k):
    ordered = np.sort(logits)[::-1]
    return (np.delete(logits, k).max() - logits[k]) / (ordered[0] - ordered[2])


FORMULAS = {
    "logit": lambda logits, k: logits[k],
    "probability": lambda logits, k: softmax(logits)[k],
    "log_probability": lambda logits, k: np.log(softmax(logits)[k]),
    "cross_entropy": lambda logits, k: -np.log(softmax(logits)[k]),
    "contrast": contrast,
    "margin": lambda logits, k: logits[k] - np.delete(logits, k).max(),
    "dlr": dlr,
}
cases = {
    "seed": st.integers(0, 10**6),
    "classes": st.integers(3, 8),
    "scale": st.sampled_from([0.1, 1.0, 10.0]),
}


def problem(seed, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(classes, (5,), generator=generator)


@pytest.mark.parametrize("name", FORMULAS)
@few
@given(**cases)
def test_an_objective_is_its_formula(name, seed, classes, scale):
    logits, chosen = problem(seed, classes, scale)
    found = getattr(objectives, name)(logits, chosen)
    pairs = zip(logits.numpy(), chosen.tolist(), strict=True)
    expected = [FORMULAS[name](row, k) for row, k in pairs]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@few
@given(seed=st.integers(0, 10**6), classes=st.integers(4, 8), scale=st.just(3.0))
def test_the_targeted_ratio_is_its_formula(seed, classes, scale):
    logits, labels = problem(seed, classes, scale)
    targets = (labels + 1) % classes
    found = objectives.targeted_dlr(logits, labels, targets)
    ordered = logits.sort(1, descending=True).values
    rows = torch.arange(5)
    expected = (logits[rows, targets] - logits[rows, labels]) / (
        ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    )
    assert torch.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_equal_and_extreme_logits_give_no_nan(name):
    logits = torch.tensor([[1.0, 1, 1], [1e4, -1e4, 0], [-1e4, 0, 1e4]], dtype=torch.float64)
    logits.requires_grad_()
    values = getattr(objectives, name)(logits, torch.tensor([0, 1, 1]))
    (slope,) = torch.autograd.grad(values.sum(), logits)
    assert torch.isfinite(values).all()
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_the_slope_of_equal_logits_leaves_room_for_the_way_back_through_a_network(dtype):
    """As in a network without biases at a black image."""
    logits = torch.zeros(1, 4, dtype=dtype, requires_grad=True)
    chosen, target = torch.tensor([0]), torch.tensor([1])
    for ratio in (objectives.dlr(logits, chosen), objectives.targeted_dlr(logits, chosen, target)):
        (slope,) = torch.autograd.grad(ratio.sum(), logits)
        assert 0 < slope.abs().max() < math.sqrt(torch.finfo(dtype).max)


@few
@given(**cases)
def test_the_margin_is_positive_exactly_where_the_class_is_predicted(seed, classes, scale):
    logits, chosen = problem(seed, classes, scale)
    predicted = logits.argmax(1) == chosen
    assert torch.equal(objectives.margin(logits, chosen) > 0, predicted)
    assert torch.equal(objectives.dlr(logits, chosen) < 0, predicted)


def test_outputs_are_found_by_name():
    assert set(objectives.EXPLAINED) == {"logit", "probability", "log_probability", "contrast"}
    for name, objective in objectives.EXPLAINED.items():
        assert objectives.explained(name) is objective is getattr(objectives, name)
    with pytest.raises(InputError, match="did you mean 'logit'"):
        objectives.explained("logits")
