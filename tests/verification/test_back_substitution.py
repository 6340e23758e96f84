"""Back-substitution: the same bounds in windows, in chunks and in another library."""

from __future__ import annotations

import gc
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_triguard import Classifier, verification
from pytest_triguard.verification import alpha_crown, carried, crown, logits
from pytest_triguard.verification.budget import Budget, BudgetSpent, Clock
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import BOUNDS, Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import convolution
from pytest_triguard.verification.relaxations import between, largest, magnitudes, positive
from pytest_triguard.verification.substitution import Substitution, plainly
from pytest_triguard.verification.tunable import Tunable
from pytest_triguard.verification.windows import Grid, Windowed
from tests.verification.peer import needs_peer, peer_bounds
from tests.verification.zoo import ZOO, images, network, problem

CONVOLUTIONAL = ["convolutional head", "pools", "residual", "functional"]


def boxes(name, eps=0.05, count=3):
    subject, clean = Classifier(network(name)), images(name, count)
    return subject, clean - eps, clean + eps


@pytest.mark.parametrize("method", ["crown", "crown_ibp", "alpha_crown"])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_windows_give_the_bounds_of_whole_images(name, method, monkeypatch):
    subject, *box = boxes(name)
    windowed = verification.bounds(subject, *box, method=method)
    monkeypatch.setattr(Grid, "pays", property(lambda grid: False))
    whole = verification.bounds(subject, *box, method=method)
    for one, two in zip(windowed, whole, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-9)


def test_windows_are_used(monkeypatch):
    """Without it the test above would compare a thing with itself."""
    seen = []
    cut = Windowed.dot
    monkeypatch.setattr(Windowed, "dot", lambda *each: seen.append(each) or cut(*each))
    subject, *box = boxes("convolutional head")
    verification.bounds(subject, *box, method="crown")
    assert seen


@pytest.mark.parametrize("name", ZOO)
def test_rows_in_small_chunks_give_the_same_bounds(name, monkeypatch):
    subject, *box = boxes(name)
    at_once = verification.bounds(subject, *box, method="crown")
    monkeypatch.setattr(crown, "HELD", 64)
    in_chunks = verification.bounds(subject, *box, method="crown")
    for one, two in zip(at_once, in_chunks, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "residual", "pools", "attention"])
def test_tighter_methods_are_not_looser_on_average(name):
    subject, *box = boxes(name, 0.02)
    widths = [
        float((high - low).mean())
        for low, high in (
            verification.bounds(subject, *box, method=method)
            for method in ("ibp", "crown_ibp", "crown", "alpha_crown")
        )
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.5 * widths[0]


class Counted(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *product(["mlp", "convolutional head", "residual"], ["ibp", "crown", "crown_ibp"]),
        ("mlp", "alpha_crown"),
    ],
)
def test_a_larger_batch_dispatches_no_more_operations(name, method, monkeypatch):
    monkeypatch.setattr(crown, "HELD", 2**26)  # more rows than there are
    monkeypatch.setattr(alpha_crown, "HELD", 2**26)
    monkeypatch.setattr(logits, "_CACHED", 2**26)
    monkeypatch.setattr(convolution, "_PRODUCTS", 2**26)
    counts = []
    for count in (1, 8):
        subject, *box = boxes(name, 0.5, count)  # all are unstable
        with Counted() as counted:
            verification.bounds(subject, *box, method=method)
        counts.append(counted.count)
    assert counts[1] <= counts[0]


def test_what_is_held_at_a_time_is_bounded(monkeypatch):
    """The rows on their way never have more elements than is allowed, but for a first row."""
    sizes = []
    back = carried.back

    def watched(relaxation, rows, choice, **options):
        held = rows.rows if isinstance(rows, Windowed) else rows
        sizes.append(held.numel())
        return back(relaxation, rows, choice, **options)

    monkeypatch.setattr(carried, "back", watched)
    monkeypatch.setattr(crown, "HELD", 4096)
    subject, *box = boxes("convolutional head", count=1)
    verification.bounds(subject, *box, method="crown")
    assert max(sizes) <= 4096


@pytest.mark.parametrize(
    ("function", "exact", "slopes"),
    [
        (lambda rows: positive(rows, 2), lambda rows: rows.clamp_min(0), [1, 0.5, 0.5, 0.5, 0, 0]),
        (lambda rows: magnitudes(rows, 2), torch.abs, [1, 0, 0, 0, -1, -1]),
    ],
    ids=["positive", "magnitudes"],
)
def test_noise_has_the_middle_slope_and_keeps_its_value(function, exact, slopes):
    """Its sign says nothing; a value that was left out would move the bound."""
    values = torch.tensor([1.0, 1e-14, 0.0, -1e-14, -0.5, -3.0], dtype=torch.float64)
    rows = torch.stack([values, 1e-14 * values]).view(1, 2, 6).requires_grad_()
    found = function(rows)
    assert torch.equal(found, exact(rows))
    assert torch.equal(function(rows.detach()), exact(rows))
    (slope,) = torch.autograd.grad(found.sum(), rows)
    assert slope.tolist() == [[slopes] * 2]


def test_a_slope_of_zero_gives_zero():
    """And a slope of one gives the rows: a difference of products would leave noise."""
    rows = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    above, slope = rows.clamp_min(0), torch.full((2, 1, 50), 0.3, dtype=torch.float64)
    zero, one = torch.zeros_like(slope), torch.ones_like(slope)
    assert torch.equal(between(rows, above, zero, slope), 0.3 * rows.clamp_max(0))
    assert torch.equal(between(rows, above, one, one), rows)


def test_noise_of_cancelled_rows_is_left_out_and_paid_for():
    value = Interval(
        torch.tensor([[-2.0, 1.0, 0.5]]).double(), torch.tensor([[1.0, 3.0, 0.5]]).double()
    )
    first = torch.tensor([[[0.1, 2.0, -7.0]]], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([[[-0.1 + 1e-16, 1e-13, 7.0]]], dtype=torch.float64)
    pending, constants = {"key": first}, []
    carried.merge(pending, {}, constants, "key", second, value)
    assert pending["key"].tolist() == [[[0.0, 2.0 + 1e-13, 0.0]]]
    noise = float((first.detach() + second)[0, 0, 0])
    assert 0 < abs(noise) < 1e-15
    assert [each.tolist() for each in constants] == [[[-2 * 2.0 * abs(noise)]]]
    (slope,) = torch.autograd.grad(pending["key"].sum(), first)
    assert slope.tolist() == [[[1, 1, 1]]]
    pending, constants = {"key": first.detach()}, []
    carried.merge(pending, {}, constants, "key", second, value)
    assert torch.equal(pending["key"], first.detach() + second)
    assert not constants


def test_the_largest_elements_share_the_slope():
    """Which of those that differ by noise is the largest says nothing."""
    values = torch.tensor([[[3.0, 3.0 - 1e-14, 1.0, 3.0 + 1e-14]]], dtype=torch.float64)
    values.requires_grad_()
    found = largest(values)
    assert torch.equal(found, values.amax(2))
    (slope,) = torch.autograd.grad(found, values)
    assert torch.allclose(slope, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]).double(), atol=1e-15)


def test_time_that_is_over_stops_it_at_once():
    subject, lower, upper = boxes("mlp")
    with subject.prepared() as model:
        model.logits(lower[:1])
        captured = Network(model, lower.dtype)
        walk = Substitution(captured, Interval(lower, upper), 2**20, Clock.of(0.0))
        with pytest.raises(BudgetSpent):
            walk.forward(plainly)


@needs_peer
@pytest.mark.parametrize("method", ["crown_ibp", "crown"])
@pytest.mark.parametrize("name", ["linear", "mlp", "convolutional head"])
def test_another_library_finds_the_same(name, method):
    """Up to the outward rounding, with the same choice of slopes."""
    subject, lower, upper = boxes(name, 0.03)
    low, high = verification.bounds(subject, lower, upper, method=method)
    found = peer_bounds(subject.module.eval(), lower, upper, method)
    assert torch.allclose(low, found[0], rtol=1e-6, atol=1e-8) or bool(
        (low >= found[0] - 1e-8).all()
    )
    assert torch.allclose(high, found[1], rtol=1e-6, atol=1e-8) or bool(
        (high <= found[1] + 1e-8).all()
    )


@needs_peer
@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("name", ["mlp", "convolutional head"])
def test_as_many_steps_lead_as_far_as_in_another_library(name, steps):
    module, clean = network(name).double().eval(), images(name, 4).double()
    lower, upper = clean - 0.15, clean + 0.15
    with Classifier(module).prepared() as model:
        model.logits(clean[:1])
        captured = Network(model, torch.float64)
    module.eval()
    theirs = peer_bounds(module, lower, upper, "alpha_crown", iterations=steps)
    effort = Effort(budget=Budget(steps=steps))
    ours = BOUNDS.get("alpha_crown").logits(captured, Interval(lower, upper), effort)
    allowed = 1e-5 * (theirs[1] - theirs[0]).mean()
    assert ours.lower.mean() >= theirs[0].mean() - allowed
    assert ours.upper.mean() <= theirs[1].mean() + allowed


def test_a_domain_budget_bounds_the_search():
    subject, inputs, labels = problem("mlp", 30)
    spent = []
    for domains in (1, 60):
        result = verification.verify(
            subject,
            inputs,
            labels,
            eps=0.15,
            method="branch_and_bound",
            budget=Budget(domains=domains, steps=3),
        )
        spent.append(result)
    few, many = (sum(each.counts[key] for key in ("proven", "falsified")) for each in spent)
    assert few < many
    for one, two in zip(spent[0].status, spent[1].status, strict=True):
        assert one in (two, "unknown")


class Shared(torch.nn.Module):
    """Two ReLUs, one behind a sum that reads the value of the other as it is."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(2))
        self.last = torch.nn.Linear(36, 3)

    def forward(self, images):
        first = self.first(images)
        return self.last((first.relu() + (first.relu() + self.second(images)).relu()).flatten(1))


def test_rows_are_overwritten_only_where_nothing_else_reads_them(monkeypatch):
    """The bounds are those without overwriting, and what is handed in stays as it was."""
    torch.manual_seed(0)
    subject = torch.nn.Sequential(Shared().double(), torch.nn.ReLU()).eval()
    clean = torch.rand(3, 1, 6, 6).double()
    box = Classifier(subject), clean - 0.1, clean + 0.1
    found = verification.bounds(*box, method="crown")
    monkeypatch.setattr(Tunable, "overwrite", Tunable.back)
    wanted = verification.bounds(*box, method="crown")
    for ours, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_a_walk_is_freed_when_it_ends():
    """Nothing waits for the garbage collector, which would hold the bounds of several walks."""
    subject, *box = boxes("convolutional head", count=1)
    gc.collect()
    gc.disable()
    try:
        verification.bounds(subject, *box, method="crown")
        assert not [each for each in gc.get_objects() if type(each) is Substitution]
    finally:
        gc.enable()
