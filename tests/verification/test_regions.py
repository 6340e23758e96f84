"""The set a sample is verified over: a ball cut by the valid range, and what counts as inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier
from pytest_triguard.engine import draws
from pytest_triguard.engine.geometry import project, random_offset
from pytest_triguard.engine.samples import Batch
from pytest_triguard.verification.regions import holds, region

CLEAN = torch.tensor([[0.5, 0.5, 0.02, 1.0], [0.3, 0.9, 0.5, 0.0]]).view(2, 1, 2, 2)


def around(eps, norm, clean=CLEAN, dtype=torch.float64):
    places = tuple(range(len(clean)))
    block = Batch(places, places, torch.tensor(places), clean)
    with Classifier(nn.Flatten()).prepared() as model:
        return region(eps, norm, None, None, model).around(model, block, dtype)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_box_is_cut_by_the_valid_range(norm):
    box = around(0.1, norm)
    assert torch.allclose(box.lower, (CLEAN.double() - 0.1).clamp(0, 1), atol=1e-5)
    assert torch.allclose(box.upper, (CLEAN.double() + 0.1).clamp(0, 1), atol=1e-5)
    assert ((box.lower >= 0) & (box.upper <= 1)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_at_eps_zero_only_the_sample_is_inside(norm):
    box = around(0.0, norm)
    assert torch.equal(box.lower, CLEAN.double())
    assert torch.equal(box.upper, CLEAN.double())
    assert holds(box, CLEAN).all()
    assert not holds(box, CLEAN.clamp(0.25, 0.75)).any()


def test_each_sample_has_its_own_radius():
    box = around(torch.tensor([0.1, 0.2]), "linf")
    assert torch.allclose(box.upper[:, 0, 0, 0], torch.tensor([0.6, 0.5]).double(), atol=1e-5)


def test_a_corner_of_the_box_is_outside_the_ball():
    corner = torch.tensor([0.09, 0.09, 0.0, 0.0]).view(1, 1, 2, 2)
    inside = {norm: holds(around(0.1, norm), CLEAN + corner) for norm in ("linf", "l2", "l1")}
    assert inside["linf"][0]
    assert not inside["l2"][0]
    assert holds(around(0.13, "l2"), CLEAN + corner)[0]
    assert not holds(around(0.13, "l1"), CLEAN + corner)[0]
    assert holds(around(0.19, "l1"), CLEAN + corner)[0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 32, 32)])
def test_points_that_an_attack_rounds_onto_the_border_are_inside(norm, shape):
    """Projection in float32 leaves points a rounding beyond the ball; they are verified too."""
    clean = torch.rand(50, *shape, generator=torch.Generator().manual_seed(0))
    keys = draws.row_keys(torch.arange(50), seed=0, method="test")
    eps = torch.full((50,), 0.3)
    bounds = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    far = clean + 3 * random_offset(keys, clean, eps, norm).sign()
    assert holds(around(0.3, norm, clean), project(far, clean, eps, norm, bounds)).all()


def test_a_sample_that_rounding_put_outside_the_range_stays_inside_its_box():
    clean = CLEAN.clone()
    clean[0, 0, 0, 0], clean[0, 0, 0, 1] = -5e-7, 1 + 5e-7
    for eps in (0.0, 1e-8, 0.1):
        assert holds(around(eps, "linf", clean), clean).all()
