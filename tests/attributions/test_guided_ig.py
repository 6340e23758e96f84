"""Guided integrated gradients: the path of one image followed by hand, and its sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytest_triguard import attributions
from tests.attributions.table import close
from tests.networks import SHAPES, bare, images, problem
from tests.sessions import with_settings


def by_hand(network, end, start, target, *, steps, fraction, distance, mode):
    """Follow the path of one flat image, group by group, until each step's way is covered."""
    shape = end.shape
    end, start = end.flatten().numpy(), start.flatten().numpy()
    point, total, away = start.copy(), np.zeros_like(end), np.abs(end - start).sum()
    for step in range(1, steps + 1):
        leaf = torch.from_numpy(point.copy()).view(1, *shape).requires_grad_()
        (slope,) = torch.autograd.grad(network(leaf)[0, target], leaf)
        slope = slope.numpy().ravel()
        low, high = (
            (1 - place) * start + place * end
            for place in (max(step / steps - distance, 0), min(step / steps + distance, 1))
        )
        old = point.copy()
        behind = np.sign(end - start) * (point - low) < 0
        point[behind] = low[behind]
        while True:
            over = np.abs(end - point).sum() - away * (1 - step / steps)
            free = np.abs(point - high) > 1e-12
            if over <= 1e-12 or not free.any():
                break
            candidates = np.where(free, np.abs(slope), np.inf)
            pool = candidates[free] if mode == "canonical" else candidates
            bound = np.quantile(pool, fraction, method="lower")
            chosen = free & (candidates <= bound)
            share = min(1.0, over / np.abs(high - point)[chosen].sum())
            point[chosen] += share * (high - point)[chosen]
            if share < 1:
                break
            point[chosen] = high[chosen]
        total += (point - old) * slope
    return torch.from_numpy(total).view(shape)


@pytest.mark.parametrize("mode", ["canonical", "reference"])
@pytest.mark.parametrize(
    ("steps", "fraction", "distance"), [(6, 0.25, 0.02), (15, 0.25, 0.3), (9, 0.01, 0.1)]
)
def test_the_path_is_that_of_one_image_at_a_time(steps, fraction, distance, mode):
    subject, inputs, targets = problem("conv", 5)
    inputs[1, :, :2] = 0  # features that have nowhere to go
    inputs[2] = 0
    options = {"steps": steps, "fraction": fraction, "max_distance": distance, "mode": mode}
    begin = images(SHAPES["conv"], 5, seed=2)
    found = attributions.get("guided_ig", baseline=begin, **options)(subject, inputs, targets)
    expected = torch.stack(
        [
            by_hand(
                bare(subject),
                inputs[i],
                begin[i],
                int(targets[i]),
                steps=steps,
                fraction=fraction,
                distance=distance,
                mode=mode,
            )
            for i in range(5)
        ]
    )
    assert close(found, expected, 1e-9)


def test_maps_sum_to_the_change_of_the_output_ever_closer():
    subject, inputs, targets = problem("smooth", 4)
    errors = [
        float(
            attributions.get("guided_ig", steps=n)
            .completeness_error(subject, inputs, targets)
            .max()
        )
        for n in (10, 40, 160)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_a_sample_that_is_the_baseline_has_a_zero_map():
    subject, inputs, targets = problem("conv", 2)
    method = attributions.get("guided_ig", steps=4)
    assert not method(subject, inputs * 0, targets).any()


def test_wide_bands_let_low_gradients_go_first():
    subject, inputs, targets = problem("conv", 3)
    straight = attributions.get("guided_ig", steps=30, max_distance=0.0)(subject, inputs, targets)
    integral = attributions.get("integrated_gradients", points=300)(subject, inputs, targets)
    guided = attributions.get("guided_ig", steps=30, max_distance=1.0)(subject, inputs, targets)
    assert close(straight, integral, 0.2)
    assert not close(guided, integral, 0.2)
    assert guided.abs().sum() < integral.abs().sum()
    with with_settings(chunk=1):
        again = attributions.get("guided_ig", steps=30, max_distance=1.0)(subject, inputs, targets)
    assert close(again, guided, 1e-9)
