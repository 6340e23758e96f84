"""Starts of attacks: in the ball, at the places they name, shrunk to the sample."""

import re

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from pytest_triguard import Classifier, attacks
from pytest_triguard.errors import InputError
from pytest_triguard.strategies import adversarial_starts
from pytest_triguard.strategies.balls import Ball
from pytest_triguard.strategies.starts import PLACES, Start, _Placed
from tests.networks import images

FEW = settings(max_examples=20, deadline=None, database=None, derandomize=True)
SHAPE, COUNT, EPS = (3, 5, 4), 2, 0.1
ORDERS = {"linf": torch.inf, "l2": 2}


def clean(dtype=torch.float32):
    return images(SHAPE, COUNT, dtype) * 0.6 + 0.2


def placed(start, norm="linf", eps=EPS):
    return _Placed(Ball.around(clean(), eps, norm, (0.0, 1.0)), norm)(start)


def distances(points, norm):
    offset = (points.double() - clean().double()).flatten(1)
    return torch.linalg.vector_norm(offset, ord=ORDERS[norm], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@FEW
@given(data=st.data(), eps=st.sampled_from([0.0, 0.03, 0.7]))
def test_every_draw_is_in_ball_and_range(norm, data, eps):
    points = data.draw(adversarial_starts(clean(), eps, norm))
    assert (points.shape, points.dtype) == (clean().shape, torch.float32)
    assert (distances(points, norm) <= eps * (1 + 4e-16)).all()
    assert points.min() >= 0
    assert points.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("place", PLACES)
def test_it_is_at_the_place_it_names_as_far_as_it_is_strong(norm, place):
    points = placed(Start(place=place, seed=3), norm)
    offset = (points - clean()).double()
    if place == "sample":
        assert torch.equal(points, clean())
        return
    assert not torch.equal(points, placed(Start(place=place, seed=4), norm))
    half = (placed(Start(place=place, seed=3, strength=0.5), norm) - clean()).double()
    torch.testing.assert_close(half, offset / 2, atol=1e-6, rtol=0)
    if place == "uniform":
        return
    assert distances(points, norm) == pytest.approx(EPS, rel=1e-5)
    size = offset.abs()
    torch.testing.assert_close(size, size.mean().expand_as(size), atol=1e-6, rtol=0)
    columns = (offset.sign() == offset.sign()[:, :, :1]).all()
    assert bool(columns) == (place == "stripes")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_uniform_start_is_that_of_pgd_with_its_seed(norm):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 3))
    attack = attacks.get("pgd", eps=EPS, norm=norm, seed=7, steps=1, stop="never", trajectory=True)
    labels = torch.zeros(COUNT, dtype=torch.int64)
    found = attack(Classifier(module), clean(), labels).trajectory.points[:, 0]
    torch.testing.assert_close(placed(Start(place="uniform", seed=7), norm), found)


def test_all_places_are_drawn_and_it_shrinks_to_the_sample():
    starts = adversarial_starts(clean(), EPS)
    assert torch.equal(find(starts, lambda _: True), clean())
    inner = find(starts, lambda points: ((points - clean()).abs().std() > 1e-4).item())
    assert 0 < distances(inner, "linf").max() < EPS * 0.02, "weak, where strength does not matter"
    corner = find(starts, lambda points: (distances(points, "linf") > EPS * 0.999).all().item())
    assert (corner - clean()).abs().std() < 1e-6, "a corner, the simplest place so far away"


def test_one_sample_with_radii_and_ranges_of_its_own():
    one, eps = clean()[0], torch.tensor([0.3])
    points = find(adversarial_starts(one, eps), lambda each: (each - one).abs().max() > 0.2)
    assert points.shape == SHAPE
    bounds = ([0.1, 0.0, 0.1], [0.9, 1.0, 0.9])
    points = find(
        adversarial_starts(one, 0.3, bounds=bounds), lambda each: (each - one).abs().max() > 0.2
    )
    assert points[0].min() >= 0.1


def test_wrong_arguments_are_refused():
    for message, options in (
        ("norm must be one of 'linf', 'l2', but 'l1' came", {"norm": "l1"}),
        ("eps must be at least 0, but -1 came", {"eps": -1}),
        ("eps must not exceed the range of the inputs, 1 in linf, but 2 came", {"eps": 2}),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}"):
            adversarial_starts(clean(), **({"eps": EPS} | options))
