"""The bound on the drift of saliency holds wherever a sample can be moved to."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import Classifier, metrics, strategies
from pytest_triguard.errors import InputError, ModelError
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification.saliency_drift import saliency_drift_bound
from tests.verification import zoo
from tests.verification.piecewise import exact_gradients, names, problem

few = settings(max_examples=10, deadline=None)
FORMS = ("allocation", "l2", "completeness_orthogonal")


@names
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_point_of_the_ball_drifts_farther_than_the_bound(name, norm):
    subject, clean = problem(name, 2)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(20, *clean.shape, generator=generator, dtype=torch.float64)
    if norm == "linf":
        offsets = offsets.sign()
    offsets = offsets / torch.linalg.vector_norm(offsets, ord=order, dim=(2, 3, 4), keepdim=True)
    own = exact_gradients(subject, clean, 1)
    for eps in (0.003, 0.05) if norm == "linf" else (0.05,):
        points = [(clean + eps * each).clamp(0, 1) for each in offsets]
        others = [exact_gradients(subject, each, 1) for each in points]
        for form in FORMS:
            bound = saliency_drift_bound(subject, clean, 1, eps=eps, norm=norm, form=form)
            for other in others:
                drift = metrics.get("drift", form=form)(own, other)
                assert not (drift > bound * (1 + 1e-12) + 1e-14).any()


@few
@given(drawn=strategies.random_networks(dtype=torch.float64), eps=st.sampled_from([1e-3, 0.02]))
@pytest.mark.parametrize("form", FORMS)
def test_random_networks_never_drift_farther_than_the_bound(form, drawn, eps):
    subject, clean = Classifier(drawn.module), drawn.inputs(1)
    bound = saliency_drift_bound(subject, clean, 0, eps=eps, form=form)
    points = zoo.points_inside((clean[0] - eps).clamp(0, 1), (clean[0] + eps).clamp(0, 1), 30)
    other = exact_gradients(subject, points, 0)
    own = exact_gradients(subject, clean, 0).expand_as(other)
    drift = metrics.get("drift", form=form)(own.contiguous(), other)
    assert not (drift > bound * (1 + 1e-12) + 1e-14).any()


def test_one_neuron_that_may_switch_drifts_by_its_own_weights():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.0], [3.0, 1.0, 0.0, 1.0]]))
        module[1].bias.copy_(torch.tensor([0.29, 5.0]))
        module[3].weight.copy_(torch.tensor([[1.5, 0.25], [0.0, 1.0]]))
    clean = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    off = torch.tensor([3.0, 1.0, 0.0, 1.0]).double() * 0.25
    on = off + 1.5 * torch.tensor([1.0, -2.0, 0.5, 0.0]).double()
    maps = [each.view(1, 1, 2, 2) for each in (on, off)]
    for form in FORMS:
        found = saliency_drift_bound(Classifier(module), clean, 0, eps=0.05, form=form)
        exact = metrics.get("drift", form=form)(*maps)
        assert found >= exact
        if form == "l2":
            assert torch.allclose(found, exact, rtol=1e-12)
        assert found <= max(2.5 * exact.item(), 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_linear_network_does_not_drift(form):
    subject, clean = problem("linear")
    bound = saliency_drift_bound(subject, clean, eps=0.5, form=form)
    assert bound.shape == (3,)
    assert (bound >= 0).all()
    assert (bound < 1e-12).all()


@pytest.mark.parametrize("name", ["mlp", "pools", "partly", "arithmetic"])
def test_the_bound_grows_with_the_ball(name):
    subject, clean = problem(name)
    for form in FORMS:
        found = [
            saliency_drift_bound(subject, clean, 0, eps=eps, form=form)
            for eps in (0.0, 0.001, 0.03, 1.0)
        ]
        for small, large in pairwise(found):
            assert (small <= large * (1 + 1e-9) + 1e-12).all()
        assert (found[0] < 1e-9).all() or name == "partly"  # which has zero maps
        assert (found[-1] <= 2).all() or form != "allocation"


def test_a_zero_map_leaves_the_allocation_at_its_largest():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        module[1].bias.fill_(-1e3)
    found = saliency_drift_bound(
        Classifier(module), torch.rand(2, 1, 2, 2, dtype=torch.float64), 0, eps=0.1
    )
    assert found.tolist() == [2.0, 2.0]


def test_samples_have_radii_of_their_own_and_company_changes_nothing():
    subject, clean = problem("pools", 5)
    eps = torch.tensor([0.0, 0.001, 0.01, 0.0, 0.02])
    whole = saliency_drift_bound(subject, clean, 1, eps=eps, form="l2")
    for row in range(5):
        alone = saliency_drift_bound(
            subject, clean[row : row + 1], 1, eps=eps[row].item(), form="l2"
        )
        assert torch.allclose(alone, whole[row : row + 1], rtol=1e-9)
    with use_session(Session(settings=Settings(chunk=2))):
        again = saliency_drift_bound(subject, clean, 1, eps=eps, form="l2")
    assert torch.allclose(again, whole, rtol=1e-9)


def test_a_loader_brings_what_is_explained():
    subject, clean = problem("mlp", 4)
    labels = torch.tensor([0, 2, 1, 0])
    loader = DataLoader(TensorDataset(clean, labels), batch_size=3)
    found = saliency_drift_bound(subject, loader, eps=0.01, form="l2")
    assert torch.equal(found, saliency_drift_bound(subject, clean, labels, eps=0.01, form="l2"))


def test_a_network_with_curves_is_refused_by_name():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Sigmoid())
    clean = torch.rand(2, 1, 2, 2)
    with pytest.raises(ModelError, match="the gradient cannot be bounded: operator Sigmoid in"):
        saliency_drift_bound(Classifier(module), clean, 0, eps=0.1)


WRONG = {
    "form": ({"form": "l1"}, InputError, "form must be one of 'allocation', 'l2'"),
    "norm": ({"norm": "l0"}, InputError, "norm must be one of"),
    "eps": ({"eps": -0.1}, InputError, "eps must be at least 0, but -0.1 came"),
    "large eps": ({"eps": 8}, InputError, "eps must not exceed the range of the inputs, 1"),
    "eps count": ({"eps": torch.ones(4)}, InputError, "eps must hold one value for each of 3"),
}


@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(change, error, message):
    with pytest.raises(error, match=message):
        saliency_drift_bound(
            problem("mlp")[0],
            torch.rand(3, 3, 2, 2, dtype=torch.float64),
            0,
            **({"eps": 0.1} | change),
        )
