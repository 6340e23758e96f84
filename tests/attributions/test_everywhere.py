"""Every attribution behind the assertions, on a transformer, and on images that say nothing."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import nn

from pytest_triguard import assert_drift_below, assert_entropy_below, attacks
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, ModelError
from tests.attributions.table import every_row
from tests.networks import problem
from tests.sessions import with_settings

SIZE, TOKENS = 8, 16


class Block(nn.Module):
    """Attention and a perceptron, each behind a normalisation and with a way round it."""

    def __init__(self):
        super().__init__()
        self.before = nn.LayerNorm(SIZE)
        self.attention = nn.MultiheadAttention(SIZE, 2, batch_first=True)
        self.between = nn.LayerNorm(SIZE)
        self.mlp = nn.Sequential(nn.Linear(SIZE, 12), nn.GELU(), nn.Linear(12, SIZE))

    def forward(self, tokens):
        normal = self.before(tokens)
        tokens = tokens + self.attention(normal, normal, normal, need_weights=False)[0]
        return tokens + self.mlp(self.between(tokens))


class Transformer(nn.Module):
    """A vision transformer in the way of torchvision's."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.patches = nn.Conv2d(3, SIZE, 2, stride=2)
            self.first = nn.Parameter(torch.randn(1, 1, SIZE))
            self.places = nn.Parameter(torch.randn(1, TOKENS + 1, SIZE) / 4)
            self.blocks = nn.Sequential(Block(), Block())
            self.norm = nn.LayerNorm(SIZE)
            self.head = nn.Linear(SIZE, 4)
        self.double()

    def forward(self, inputs):
        patches = self.patches(inputs).flatten(2).mT
        tokens = torch.cat([self.first.expand(len(inputs), -1, -1), patches], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


@every_row
def test_a_vision_transformer_is_explained_or_refused_by_name(row):
    subject = Classifier(Transformer())
    inputs = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()
    if row.name == "deeplift":
        with pytest.raises(ModelError, match="deeplift has no rule for the operator"):
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
    subject, inputs, labels = problem("conv", 4)
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
    subject, inputs, _ = problem("conv", 2)
    images = torch.zeros_like(inputs)
    images[1] = 0.5
    found = row.method()(subject, images, 1)
    assert found.isfinite().all()
    empty = (found == 0).flatten(1).all(1)
    measured = assert_entropy_below(
        subject,
        images,
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
