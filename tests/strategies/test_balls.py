"""Perturbations: always inside, corners and sparse ones among them, shrunk to what matters."""

import copy
import re

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from pytest_triguard.backdoors.base import per_channel
from pytest_triguard.engine.geometry import project
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.strategies import perturbations
from tests.networks import images
from tests.simulated_accelerator import simulated_accelerator

FEW = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
MANY = settings(FEW, derandomize=True, max_examples=300, phases=[Phase.generate])
SEARCH = settings(FEW, max_examples=1000)
ORDERS = {"linf": torch.inf, "l2": 2, "l1": 1}
SHAPE = (3, 5, 4)
COUNT = 3


def distances(points, clean, norm):
    offset = (points.double() - clean.double()).flatten(1)
    return torch.linalg.vector_norm(offset, ord=ORDERS[norm], dim=1)


def drawn(strategy, profile=MANY):
    """Return what a strategy draws."""
    found = []

    @profile
    @given(strategy)
    def keep(value):
        found.append(value)

    keep()
    return found


def small(count=COUNT, shape=SHAPE):
    return images(shape, count, torch.float32) * 0.6 + 0.2


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@FEW
@given(data=st.data(), eps=st.sampled_from([0.0, 1e-7, 0.03, 1 / 255, 0.7]))
def test_every_draw_is_inside_as_an_exact_number_and_where_projection_leaves_it(
    norm, dtype, data, eps
):
    clean = images(SHAPE, COUNT, dtype)
    before = clean.clone()
    points = data.draw(perturbations(clean, eps, norm))
    assert (points.shape, points.dtype, points.device) == (clean.shape, dtype, clean.device)
    assert (points >= 0).all()
    assert (points <= 1).all()
    # In float64 the distance itself is rounded.
    assert (distances(points, clean, norm) <= eps * (1 + 4e-16)).all()
    assert ((points - clean).abs().flatten(1).amax(1) <= eps).all()
    if norm != "l1":
        bounds = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
        radii = torch.full((COUNT,), eps, dtype=dtype)
        assert torch.equal(project(points, clean, radii, norm, bounds), points)
    points.fill_(7)
    assert torch.equal(clean, before)


@FEW
@given(data=st.data())
def test_each_sample_has_its_radius_and_each_channel_its_range(data):
    clean, eps = images(SHAPE, COUNT, torch.float32) - 0.5, torch.tensor([0.0, 0.02, 0.3])
    bounds = ([-0.5, -1.0, -0.6], [0.5, 0.5, 2.0])
    points = data.draw(perturbations(clean, eps, bounds=bounds))
    assert (distances(points, clean, "linf") <= eps.double()).all()
    low, high = (per_channel(end, clean) for end in bounds)
    assert ((points >= low) & (points <= high)).all()


@FEW
@given(points=perturbations(small()[0], 0.1))
def test_one_sample_stays_one_sample(points):
    assert points.shape == SHAPE
    assert (points - small()[0]).abs().max() <= 0.1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 1), (3, 1, 9)])
def test_images_of_any_shape_can_be_perturbed(shape):
    clean = small(1, shape)
    assert any(not torch.equal(each, clean) for each in drawn(perturbations(clean, 0.1), FEW))


def test_corners_and_sparse_perturbations_are_common():
    clean, eps = small(2, (3, 12, 10)), 0.1
    offsets = torch.stack([each - clean for each in drawn(perturbations(clean, eps))])
    corner = (offsets.abs() >= eps * (1 - 1e-4)).flatten(1).all(1)
    share = (offsets != 0).flatten(1).double().mean(1)
    assert corner.double().mean() >= 0.1
    assert ((share > 0) & (share <= 0.1)).double().mean() >= 0.05
    assert (offsets[corner] > 0).any()
    assert (offsets[corner] < 0).any()
    mixed = (offsets[corner] > 0).flatten(1).double().mean(1)
    assert ((mixed > 0) & (mixed < 1)).any(), "a corner with both signs"
    samples = (offsets != 0).flatten(2).any(2)
    assert (samples[:, 0] ^ samples[:, 1]).any(), "one sample alone"
    inner = (offsets.abs() > 0) & (offsets.abs() < eps * 0.99)
    assert 0 < inner.flatten(1).any(1).double().mean() < 0.9, "the interior, sometimes"


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_full_strength_reaches_the_sphere(norm):
    clean = small(1)
    lengths = torch.cat(
        [distances(each, clean, norm) for each in drawn(perturbations(clean, 0.2, norm))]
    )
    assert (lengths > 0.2 * (1 - 1e-4)).double().mean() > 0.3


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_shrinks_to_the_inputs_as_they_are(norm):
    clean = images(SHAPE, COUNT, torch.float32)
    assert torch.equal(find(perturbations(clean, 0.1, norm), lambda _: True), clean)


@pytest.mark.parametrize("sign", [1, -1])
def test_it_shrinks_to_the_element_that_matters(sign):
    clean, place = small(2, (2, 5, 4)), (1, 1, 3, 2)
    points = find(
        perturbations(clean, 0.1),
        lambda points: sign * (points - clean)[place] >= 0.05,
        settings=SEARCH,
    )
    offset = points - clean
    assert offset.nonzero().tolist() == [list(place)]
    assert 0.05 <= sign * offset[place] <= 0.0505


def test_it_shrinks_to_the_strength_that_flips_a_linear_classifier():
    """The least that flips is known: the margin over the 1-norm of the weights' difference."""
    clean = small(1, (1, 6, 5))
    weight = torch.zeros(1, 6, 5)
    weight[:, 1:3, 2:5] = -1.0
    least = 0.04
    margin = float((weight * clean[0]).sum()) + least * float(weight.abs().sum())
    strategy = perturbations(clean, 0.1)
    points = find(strategy, lambda x: float((weight * x).sum()) > margin, settings=SEARCH)
    offset = points - clean
    assert least <= float(offset.abs().max()) <= least * 1.05
    assert torch.equal(offset[0] != 0, weight != 0)


def test_it_shrinks_to_two_strokes_where_two_matter():
    clean = small(2, (1, 6, 5))

    def both(points):
        offset = points - clean
        return bool(offset[0, 0, 1, 1] > 0.02) and bool(offset[1, 0, 3, 4] < -0.02)

    offset = find(perturbations(clean, 0.1), both, settings=SEARCH) - clean
    assert {(0, 0, 1, 1), (1, 0, 3, 4)} <= {tuple(each) for each in offset.nonzero().tolist()}
    assert float(offset.abs().max()) < 0.05


def test_a_failure_prints_the_strokes_and_not_the_tensor():
    clean = small(COUNT, (3, 9, 8))

    @settings(FEW, max_examples=200)
    @given(points=perturbations(clean, 0.1))
    def fails(points):
        assert (points - clean)[0, 0, 0, 0] <= 0.05

    with pytest.raises(AssertionError) as caught:
        fails()
    note = "\n".join(caught.value.__notes__)
    assert "Ball(eps=0.1, norm='linf')" in note
    assert "Stroke(samples=(0, 1)" in note
    assert "tensor(" not in note


def test_the_inputs_are_read_when_the_strategy_is_made():
    clean = small(1)
    strategy = perturbations(clean, 0.1)
    expected = clean.clone()
    clean.zero_()
    assert torch.equal(find(strategy, lambda _: True), expected)


def test_a_sample_at_the_edge_of_the_tolerance_stays_itself():
    clean = small(1)
    clean[0, 0, 0, 0], clean[0, 0, 0, 1] = 1 + 5e-7, -5e-7
    for points in drawn(perturbations(clean, 0.1), FEW):
        assert points.min() >= clean.min()
        assert points.max() <= clean.max()
    assert torch.equal(find(perturbations(clean, 0.0), lambda _: True), clean)


def test_it_takes_inputs_that_need_gradients_and_returns_a_leaf():
    clean = small(1).requires_grad_()
    points = find(perturbations(clean, 0.1), lambda _: True)
    assert not points.requires_grad
    assert clean.grad is None


def test_no_generator_is_used_and_no_default_device():
    before, clean = torch.get_rng_state(), small(1)
    with torch.device("meta"):
        points = drawn(perturbations(clean, 0.1), FEW)
    assert all(each.device.type == "cpu" for each in points)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_on_an_accelerator_are_those_of_the_cpu_there():
    clean = small()
    expected = drawn(perturbations(clean, 0.1, "l2"), FEW)
    with simulated_accelerator():
        there = clean.to("sim")
        eps = torch.full((COUNT,), 0.1, dtype=torch.float64).to("sim")
        found = drawn(perturbations(there, eps, "l2"), FEW)
        assert {each.device for each in found} == {there.device}
        found = [each.cpu() for each in found]
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


X = small()
BAD = [
    ({"inputs": [1.0]}, InputTypeError, "inputs must be a tensor"),
    ({"inputs": X.long()}, InputTypeError, "inputs must be floating"),
    ({"inputs": X[0, 0]}, InputError, "inputs must have shape"),
    ({"inputs": X[:0]}, InputError, "inputs must have shape"),
    ({"inputs": X * torch.nan}, InputError, "inputs must be finite"),
    ({"inputs": X + 1}, InputError, "inputs must lie inside the bounds, [0, 1], but values"),
    ({"eps": "big"}, InputTypeError, "eps must be a number"),
    ({"eps": -0.1}, InputError, "eps must be at least 0"),
    ({"eps": float("nan")}, InputError, "eps must be at least 0"),
    ({"eps": 8.0}, InputError, "eps must not exceed the range of the inputs, 1 in linf"),
    ({"eps": 8.0, "norm": "l2"}, InputError, "eps must not exceed the range of the inputs, 7.7"),
    ({"eps": torch.full((2,), 0.1)}, InputError, "eps must be one number or a tensor of shape (3"),
    ({"eps": torch.tensor([0.1, -1, 0.1])}, InputError, "eps must be finite and at least 0"),
    ({"norm": "l3"}, InputError, "norm must be one of 'linf', 'l2', 'l1', but 'l3' came"),
    ({"norm": 2}, InputTypeError, "norm must be one of"),
    ({"bounds": (1, 0)}, InputError, "bounds must rise from low to high"),
    ({"bounds": 1.0}, InputTypeError, "bounds must be a pair"),
    ({"bounds": ([0, 0], [1, 1])}, InputError, "inputs must have the 2 channels"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_a_bad_argument_is_named_when_the_strategy_is_made(arguments, error, message):
    given = {"inputs": X, "eps": 0.1} | arguments
    with pytest.raises(error, match=re.escape(message)) as caught:
        perturbations(**copy.copy(given))
    assert "\n" not in str(caught.value)
