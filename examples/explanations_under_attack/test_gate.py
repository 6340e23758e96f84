"""The gate: an explanation must not be somewhere else while the prediction stays."""

import digits
import picture
import pytest
import torch
from cache import FOLDER

from pytest_triguard import (
    TriGuardFailure,
    assert_accuracy,
    assert_explanation_robust,
    attribution_attacks,
    attributions,
)

EPS = 0.1
TOP_PIXELS = {
    "attack": attribution_attacks.get("topk", eps=EPS, steps=20),
    "attribution": "saliency",
    "eps": EPS,
    "metric": "topk_intersection",
    "at_least": 0.6,
}
CENTRE = {
    "attack": attribution_attacks.get("mass_center", eps=EPS, steps=20),
    "attribution": "saliency",
    "eps": EPS,
    "metric": "mass_center",
    "at_most": 2.2,
}


def test_digits_are_recognised(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.9)


@pytest.mark.parametrize("gate", [TOP_PIXELS, CENTRE], ids=["top_pixels", "centre"])
def test_explanations_hold(triguard_classifier, triguard_data, gate):
    images, _ = triguard_data
    assert_explanation_robust(triguard_classifier, images, **gate)


@pytest.mark.parametrize("gate", [TOP_PIXELS, CENTRE], ids=["top_pixels", "centre"])
def test_the_gate_catches_the_ordinary_network(ordinary, triguard_data, gate):
    images, labels = triguard_data
    assert_accuracy(ordinary, images, labels, at_least=0.9)
    with pytest.raises(TriGuardFailure) as caught:
        assert_explanation_robust(ordinary, images, **gate)
    assert caught.value.record.verdict == "failed"


def test_the_same_prediction_has_another_heatmap(ordinary):
    images, _ = digits.split()[1]
    images = images[::50]
    saliency = attributions.get("saliency")
    attack = attribution_attacks.get("mass_center", attribution=saliency, eps=EPS, steps=30)
    found = attack(ordinary, images)
    before, after = (ordinary(each).argmax(1) for each in (images, found.adversarial))
    assert torch.equal(before, after)
    assert float((found.adversarial - images).abs().max()) <= EPS + 1e-6
    shown = found.measure.argsort(descending=True)[:4]
    assert float(found.measure[shown].min()) > 3  # pixels
    moved = found.adversarial[shown]
    maps, others = (saliency(ordinary, each, before[shown]) for each in (images[shown], moved))
    path = FOLDER / "moved.png"
    picture.draw(path, images[shown], moved, maps, others, before[shown].tolist())
    assert path.stat().st_size > 10_000
