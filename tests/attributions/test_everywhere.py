"""Every attribution behind the assertions, on transformers, and on images that say nothing."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import pytest
import torch
from torch import nn

from pytest_triguard import assert_drift_below, assert_entropy_below, attacks
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, ModelError
from tests.attributions.table import every_row
from tests.networks import images
from tests.sessions import with_settings

REFUSED = {
    ("deeplift", "vit"): "deeplift has no rule for the operator ",
    ("deeplift", "maxvit"): "deeplift has no rule for the operator ",
}
"""What cannot be explained, and what is said of it."""


@cache
def transformer(name):
    """Return one of torchvision's transformers, tiny, that tells images apart."""
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        if name == "vit":
            module = models.VisionTransformer(8, 2, 2, 2, 8, 12, num_classes=4)
        else:
            module = models.maxvit.MaxVit((8, 8), 4, 2, [4], [1], 2, 0.0, num_classes=4)
        for each in module.parameters():
            each.add_(torch.randn_like(each) / 4)
    return module.double().eval()


@pytest.mark.parametrize("name", ["vit", "maxvit"])
@every_row
def test_torchvisions_transformers_are_explained_or_refused_by_name(row, name):
    subject, inputs = Classifier(transformer(name)), images((3, 8, 8), 3, seed=4)
    if (row.name, name) in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[row.name, name]):
            row.method()(subject, inputs, 1)
        return
    found = row.method()(subject, inputs, 1)
    assert found.shape == inputs.shape
    assert row.method().sound(found).all()
    assert found.abs().flatten(1).sum(1).ne(0).all() or row.never_negative
    with with_settings(chunk=2):
        again = row.method()(subject, inputs, 1)
    assert torch.allclose(again, found, rtol=1e-9, atol=1e-12, equal_nan=True)


@every_row
def test_every_attribution_can_be_measured(row):
    subject, inputs, labels = row.problem(4)
    data = {"labels": labels, "attribution": row.method()}
    entropy = assert_entropy_below(subject, inputs, 1.0, undefined_at_most=1, **data)
    assert 0 <= entropy.value <= 1
    between = ("clean", attacks.get("fgsm", eps=0.1))
    moved = assert_drift_below(subject, inputs, 2.0, between=between, undefined_at_most=1, **data)
    assert 0 < moved.value <= 2
    if "baseline" in {each.name for each in fields(row.method())}:
        drift = assert_drift_below(subject, inputs, 2.0, undefined_at_most=1, **data)
        assert 0 < drift.value <= 2
    else:
        with pytest.raises(InputError, match=f"'clean', attack. for {row.name}, which has no base"):
            assert_drift_below(subject, inputs, 2.0, **data)


@every_row
def test_constant_images_have_finite_maps_and_zero_maps_are_undefined(row):
    subject, inputs, _ = row.problem(2)
    constant = torch.zeros_like(inputs)
    constant[1] = 0.5
    found = row.method()(subject, constant, 1)
    assert found.isfinite().all()
    empty = (found == 0).flatten(1).all(1)
    measured = assert_entropy_below(
        subject,
        constant,
        1.0,
        labels=torch.ones(2).long(),
        attribution=row.method(),
        undefined_at_most=1,
        inconclusive="pass",
    )
    assert measured.undefined == int(empty.sum())


@every_row
def test_one_class_is_refused(row):
    module = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(24, 1)).double()
    with pytest.raises(ModelError, match="must return floating logits of shape"):
        row.method()(Classifier(module), torch.zeros(2, 3, 8, 6).double(), 0)
