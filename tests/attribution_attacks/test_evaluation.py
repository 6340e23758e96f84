"""Curves over eps, their areas, and what an attack on one method does to the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pytest_triguard import attribution_attacks, attributions, metrics
from tests.attribution_attacks.table import method
from tests.networks import problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator

MEASURES = ("topk_intersection", "spearman", "mass_center", "cosine")
TOPK = attribution_attacks.get("topk", steps=4)


@pytest.mark.parametrize("unit", [1, 255])
def test_a_constant_has_an_area_of_three_times_itself(unit):
    eps = [each / unit for each in (2, 4, 8, 16)]
    assert attribution_attacks.area_over_log_eps([1.0] * 4, eps) == pytest.approx(3.0)
    assert attribution_attacks.area_over_log_eps([0.0] * 4, eps) == 0.0
    assert attribution_attacks.area_over_log_eps([1, 0.5, 0.25, 0], eps) == pytest.approx(1.25)
    assert attribution_attacks.area_over_log_eps([1, 0], [1, 8]) == pytest.approx(1.5)


def test_the_radii_are_those_of_smoothed_geometry():
    assert attribution_attacks.EPS_255 == (2 / 255, 4 / 255, 8 / 255, 16 / 255)


@pytest.mark.parametrize("chunk", [2, 64])
def test_a_curve_is_the_attack_at_each_radius_judged_by_each_measure(chunk):
    subject, inputs, targets = problem("smooth", 5)
    explained = method("smoothgrad", seed=0)
    with with_settings(chunk=chunk):
        curve = attribution_attacks.attack_curve(
            subject, inputs, targets, attack=TOPK, attribution=explained
        )
    maps = explained(subject, inputs, targets)
    for place, eps in enumerate(curve.eps):
        attack = replace(TOPK, attribution=explained, eps=eps)
        found = attack(subject, inputs, targets)
        assert torch.equal(curve.success[place], found.success)
        others = explained(subject, found.adversarial, targets)
        for name in MEASURES:
            expected = metrics.get(name)(maps, others).masked_fill(~found.kept, torch.nan)
            values = curve.values[name][place]
            assert torch.allclose(values, expected, rtol=0, atol=1e-8, equal_nan=True)
            assert curve.means[name][place] == pytest.approx(float(values.nanmean()))
    for name in MEASURES:
        area = attribution_attacks.area_over_log_eps(curve.means[name], curve.eps)
        assert curve.areas[name] == pytest.approx(area)
    assert curve.areas["topk_intersection"] < 3
    assert curve.areas["cosine"] > 0


def test_a_network_whose_maps_cannot_move_has_no_curve():
    subject, inputs, _ = problem("linear", 3)
    curve = attribution_attacks.attack_curve(
        subject, inputs, attack=TOPK, attribution=attributions.get("saliency")
    )
    assert curve.values["cosine"].isnan().all()
    assert not curve.success.any()


def test_an_attack_made_for_another_map_keeps_it():
    subject, inputs, targets = problem("smooth", 4)
    saliency, other = attributions.get("saliency"), method("integrated_gradients")
    curve = attribution_attacks.attack_curve(
        subject, inputs, targets, attack=replace(TOPK, attribution=saliency), attribution=other
    )
    found = replace(TOPK, attribution=saliency, eps=curve.eps[-1])(subject, inputs, targets)
    maps, others = (other(subject, each, targets) for each in (inputs, found.adversarial))
    expected = metrics.get("cosine")(maps, others)
    assert torch.allclose(curve.values["cosine"][-1], expected)


def test_a_transfer_judges_every_attack_on_every_map():
    subject, inputs, targets = problem("smooth", 4)
    methods = [attributions.get("saliency"), method("integrated_gradients")]
    found = attribution_attacks.transfer_between(
        subject, inputs, targets, attack=TOPK, methods=methods, metric="cosine"
    )
    assert found.methods == ("saliency", "integrated_gradients")
    assert found.metric == "cosine distance"
    assert found.values.shape == (2, 2, 4)
    for row, made_for in enumerate(methods):
        points = replace(TOPK, attribution=made_for)(subject, inputs, targets).adversarial
        for column, judged in enumerate(methods):
            maps, others = (judged(subject, each, targets) for each in (inputs, points))
            expected = metrics.get("cosine")(maps, others)
            assert torch.allclose(found.values[row, column], expected, rtol=0, atol=1e-9)
    assert torch.allclose(found.means, found.values.nanmean(2))


def test_an_accelerator_gives_the_curve_and_the_transfer_of_the_cpu():
    subject, inputs, targets = problem("smooth", 4)
    options = {"attack": TOPK, "attribution": attributions.get("saliency"), "eps": (0.02, 0.04)}
    expected = attribution_attacks.attack_curve(subject, inputs, targets, **options)
    pair = {"attack": TOPK, "methods": ["saliency", "gradient_x_input"], "metric": "spearman"}
    moved = attribution_attacks.transfer_between(subject, inputs, targets, **pair)
    with simulated_accelerator(), with_settings(device="sim"):
        found = attribution_attacks.attack_curve(subject, inputs, targets, **options)
        there = attribution_attacks.transfer_between(subject, inputs, targets, **pair)
    assert found.areas == pytest.approx(expected.areas)
    assert torch.allclose(there.values, moved.values, rtol=0, atol=1e-9)
