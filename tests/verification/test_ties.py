"""Maxima that are nearly multiples of others: what cancels costs nothing; no bound is broken."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_triguard import Classifier, verification
from pytest_triguard.verification import boxes as halves
from pytest_triguard.verification import substitution
from pytest_triguard.verification.budget import Clock
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import max_pooling
from pytest_triguard.verification.relaxations import Kernel
from pytest_triguard.verification.ties import Origin, Tied, ties
from pytest_triguard.verification.windows import Grid, Windowed
from tests.verification import soundness
from tests.verification.mixed_integer import Program
from tests.verification.zoo import points_inside

METHODS = ["crown", "crown_ibp"]


def network(*, rectified=True, noise=0.01, seed=0, stride=1):
    """Channels 0 to 3 see one pixel each, moved by 0 or 2; 4 and 5 see something of their own."""
    torch.manual_seed(seed)
    first = nn.Conv2d(1, 6, 3, padding=1, stride=stride)
    with torch.no_grad():
        first.weight[:4].zero_()
        for channel, (row, column, factor) in enumerate(
            ((2, 2, 1.0), (0, 0, 0.6), (2, 0, 1.4), (2, 2, 0.9))
        ):
            first.weight[channel, 0, row, column] = factor
            first.bias[channel] = -0.4 * factor
        first.weight[:4] += noise * torch.randn(4, 1, 3, 3)
    between = [nn.ReLU()] if rectified else []
    second = nn.Conv2d(6, 4, 3, padding=1)
    return nn.Sequential(
        first,
        *between,
        nn.MaxPool2d(2),
        second,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def boxes(module, eps, size=8):
    """Return boxes around images of black and white, in part."""
    torch.manual_seed(1)
    clean = torch.rand(2, 1, size, size, dtype=torch.float64)
    clean[:, :, : size // 2] = clean[:, :, : size // 2].round()
    module(clean[:1].float())
    return Classifier(module.double().eval()), (clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1)


def test_channels_that_repeat_cancel():
    """Each logit is a maximum minus a multiple that is the same maximum, from another channel."""
    first = nn.Conv2d(1, 3, 3, padding=1)
    last = nn.Conv2d(3, 2, 2)
    with torch.no_grad():
        for each in (first.weight, last.weight, last.bias):
            each.zero_()
        first.weight[0, 0, 2, 2], first.weight[1, 0, 0, 0], first.weight[2, 0, 2, 2] = 1, 2, 3
        first.bias.copy_(torch.tensor([-0.25, -0.5, -0.75]))
        last.weight[0, 0, 0, 0], last.weight[0, 1, 1, 1] = -2, 1
        last.weight[1, 0, 1, 1], last.weight[1, 2, 1, 1] = 3, -1
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    module = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), last, head)
    subject, lower, upper = boxes(module, 0.2, size=6)
    low, high = verification.bounds(subject, lower, upper, method="crown_ibp")
    assert float((high - low).max()) < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("eps", [0.03, 0.3])
def test_sampled_outputs_are_inside_the_bounds(method, rectified, eps):
    for seed, stride in ((0, 1), (1, 2)):
        module = network(rectified=rectified, seed=seed, stride=stride, noise=0.05)
        subject, lower, upper = boxes(module, eps)
        low, high = verification.bounds(subject, lower, upper, method=method)
        for place in range(len(lower)):
            points = points_inside(lower[place], upper[place], 200, seed)
            logits = subject.module(points)
            assert bool(((logits >= low[place]) & (logits <= high[place])).all())


def test_ties_are_used_and_tighten(monkeypatch):
    subject, *box = boxes(network(), 0.1)
    tied = verification.bounds(subject, *box, method="crown")
    monkeypatch.setattr(substitution.Substitution, "_origin", lambda *_: None)
    alone = verification.bounds(subject, *box, method="crown")
    assert bool((tied[1] - tied[0] < alone[1] - alone[0]).all())


@pytest.mark.parametrize("rectified", [True, False])
def test_windows_give_the_bounds_of_whole_images(rectified, monkeypatch):
    subject, *box = boxes(network(rectified=rectified), 0.1)
    windowed = verification.bounds(subject, *box, method="crown")
    monkeypatch.setattr(Grid, "pays", property(lambda grid: False))
    whole = verification.bounds(subject, *box, method="crown")
    for one, two in zip(windowed, whole, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-9)


def test_a_sample_does_not_depend_on_those_beside_it():
    subject, lower, upper = boxes(network(), 0.1)
    both = verification.bounds(subject, lower, upper, method="crown")
    for place in range(2):
        part = slice(place, place + 1)
        one = verification.bounds(subject, lower[part], upper[part], method="crown")
        for each, other in zip(both, one, strict=True):
            assert torch.allclose(each[part], other, rtol=0, atol=1e-9)


# --- one tie at a time --------------------------------------------------------------------------

LAYERS = {
    "plain": ({"kernel_size": 3, "padding": 1}, {"kernel_size": 2}),
    "strided": ({"kernel_size": 4, "stride": 2, "padding": 2}, {"kernel_size": 2, "stride": 1}),
    "uneven": (
        {"kernel_size": (2, 5), "stride": (1, 2), "padding": (0, 1), "bias": False},
        {"kernel_size": (1, 2), "stride": (2, 1)},
    ),
    "overlapping": ({"kernel_size": 4}, {"kernel_size": 3, "stride": (1, 2)}),
    "dilated": ({"kernel_size": 3}, {"kernel_size": 2, "stride": 1, "dilation": 2}),
}


def repeating(layers, seed, noise):
    """Return a convolution whose kernels are alike, some turned around, and a pooling."""
    torch.manual_seed(seed)
    first, pool = nn.Conv2d(2, 6, **LAYERS[layers][0]), nn.MaxPool2d(**LAYERS[layers][1])
    with torch.no_grad():
        weight, bias = noise * torch.randn(first.weight.shape), -0.3
        high, wide = weight.shape[2:]
        seen = ((0, 0), (0, wide - 1), (high - 1, 0), (0, 0), (0, 0), (high - 1, wide - 1))
        for channel, (row, column) in enumerate(seen):
            factor = (1.0, 0.6, 1.4, 1 / 3, -1.0, 2.0)[channel]
            weight[channel, :, row, column] += factor
            if first.bias is not None:
                first.bias[channel] = factor * bias
        first.weight.copy_(weight)
    return first, pool


def walked(subject, lower, upper, *, composed=False):
    with subject.prepared() as model, torch.no_grad():
        model.logits(lower[:1])
        region = Interval(lower, upper)
        walk = substitution.Substitution(
            Network(model, lower.dtype), region, 2**20, Clock.of(None), composed=composed
        )
        walk.forward(substitution.plainly)
    return walk


def tied_in(walk):
    """Return the tie of a walk, if there is one."""
    known = [link.relaxation for link in walk._links.values()]
    return next((each for each in known if isinstance(each, Tied)), None)


def beyond(tied, values):
    """Return how far values `(n, C, h, w)` of the maxima are beyond what a tie says."""
    flat = values.flatten(1)
    rest = flat - tied.factor.double().flatten() * flat[:, tied.place.flatten()]
    lower, upper = tied.lower.double().flatten(), tied.upper.double().flatten()
    return torch.maximum(lower - rest, rest - upper)


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("layers", LAYERS)
def test_what_is_beside_a_multiple_is_inside_its_ends(layers, rectified):
    """At corners, and at points searched for each end; the sizes of images leave pixels over."""
    count = 0
    for seed, noise, eps in product(range(2), (0.0, 0.03), (0.1, 0.4)):
        front = [*repeating(layers, seed, noise), nn.Flatten(), nn.LazyLinear(3)]
        module = nn.Sequential(front[0], *[nn.ReLU()] * rectified, *front[1:])
        torch.manual_seed(seed)
        clean = torch.rand(1, 2, 8, 9)
        module(clean)
        module, clean = module.double(), clean.double().round(decimals=1)
        lower, upper = (clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1)
        subject = Classifier(module, mean=0.2, std=0.7)
        tied = tied_in(walked(subject, lower, upper))
        if tied is None:
            continue
        count += 1
        part = module[: 2 + rectified]
        points = points_inside(lower[0], upper[0], 64, seed)
        for _ in range(5):
            points.requires_grad_()
            away = beyond(tied, part((points - 0.2) / 0.7))
            assert float(away.detach().max()) < 1e-12
            chosen = (tied.factor != 1).flatten().nonzero().flatten()
            aims = chosen[torch.randint(len(chosen), (len(points),))]
            (slope,) = torch.autograd.grad(away.gather(1, aims[:, None]).sum(), points)
            points = torch.where(slope > 0, upper, torch.where(slope < 0, lower, points.detach()))
    assert count >= 2


def test_ends_hold_for_the_weights_as_they_are():
    """In float32 the differences of thirds round to nothing, and are not nothing."""
    first, pool = repeating("plain", 0, 0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        first.weight[1] = first.weight[0].copy_(torch.rand(2, 3, 3)) / 3
        first.bias[0], first.bias[1] = -0.3, first.bias[0] / 3
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    module, clean = nn.Sequential(first, nn.ReLU(), pool, head), torch.rand(1, 2, 8, 8)
    module(clean)
    lower, upper = (clean - 0.2).clamp(0, 1), (clean + 0.2).clamp(0, 1)
    with soundness.without_float64():
        tied = tied_in(walked(Classifier(module), lower, upper))
    assert tied.factor.dtype == torch.float32
    assert bool((tied.factor[:, :2] != 1).any())
    values = copy.deepcopy(module[:3]).double()(points_inside(lower[0], upper[0], 200, 0).double())
    assert float(beyond(tied, values.detach()).max()) <= 0


def test_windows_that_reach_outside_are_not_tied():
    for arguments in ({"padding": 1, "stride": 4}, {"padding": 1}, {"ceil_mode": True}):
        first, _ = repeating("plain", 0, 0.0)
        module = nn.Sequential(first, nn.MaxPool2d(2, **arguments), nn.Flatten(), nn.LazyLinear(3))
        clean = torch.rand(1, 2, 7, 7)
        module(clean)
        subject = Classifier(module.double())
        walk = walked(subject, clean.double() - 0.3, clean.double() + 0.3)
        assert tied_in(walk) is None


@pytest.mark.parametrize(
    ("arguments", "between"),
    [
        ({"groups": 2}, []),
        ({"dilation": 2}, []),
        ({"padding": "same"}, []),
        ({}, [nn.LeakyReLU(0.1)]),
        ({}, [nn.BatchNorm2d(6)]),
    ],
    ids=["groups", "dilation", "padding", "leaky", "norm"],
)
def test_only_plain_convolutions_are_tied(arguments, between):
    first, pool = nn.Conv2d(2, 6, 3, **arguments), nn.MaxPool2d(2, 1)
    with torch.no_grad():
        first.weight.copy_(first.weight[:1].expand_as(first.weight))
    module = nn.Sequential(first, *between, pool, nn.Flatten(), nn.LazyLinear(3)).eval()
    clean = torch.rand(1, 2, 8, 8)
    module(clean)
    subject, lower, upper = Classifier(module.double()), clean.double() - 0.3, clean.double() + 0.3
    assert tied_in(walked(subject, lower, upper)) is None


def test_rows_in_windows_are_carried_as_whole_rows_are():
    """Windows that lie inside the image, and that reach beyond it; rows are carried far enough."""
    module = nn.Sequential(*repeating("plain", 0, 0.03), nn.Flatten(), nn.LazyLinear(3))
    clean = torch.rand(2, 2, 16, 16)
    module(clean)
    lower, upper = (clean.double() - 0.2).clamp(0, 1), (clean.double() + 0.2).clamp(0, 1)
    tied = tied_in(walked(Classifier(module.double()), lower, upper))
    grid = Grid((-1, 0), (3, 2), (3, 4), (2, 2), (8, 8))
    rows = Windowed(torch.randn(2, 12, 3, 6, 2, 2).double(), grid, clean=False).cleaned()
    [(_, slid)], constant = tied.slide(rows)
    [(_, carried)], expected = tied.back(rows.whole())
    assert torch.allclose(slid.whole(), carried, rtol=0, atol=1e-12)
    assert torch.allclose(constant, expected, rtol=0, atol=1e-12)
    assert float(expected.abs().min()) > 0


class Largest(TorchDispatchMode):
    """Notes the most elements of any result."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // 8)
        return result


def test_what_is_held_at_a_time_is_bounded(monkeypatch):
    """A wide stem has many pairs of channels, and each difference is a kernel and an image."""
    asked = []
    keep = lambda *args: asked.append(args) or ties(*args)  # noqa: E731
    monkeypatch.setattr(max_pooling, "ties", keep)
    torch.manual_seed(0)
    first = nn.Conv2d(3, 24, 7, stride=2, padding=3)
    with torch.no_grad():
        first.weight.copy_(first.weight[:1] + 0.02 * torch.randn(24, 3, 7, 7))
    module = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3))
    clean = torch.rand(2, 3, 16, 16)
    module(clean)
    walked(Classifier(module.double()), clean.double() - 0.05, clean.double() + 0.05)
    [(origin, *others)] = asked
    found = []
    for held in (2**30, 2**12):
        with Largest() as most:
            found.append((ties(replace(origin, held=held), *others), most.elements))
    (whole, much), (parts, little) = found
    for name in ("place", "factor", "lower", "upper"):
        one, two = getattr(whole, name), getattr(parts, name)
        assert torch.allclose(one.double(), two.double(), rtol=0, atol=1e-12), name
    assert bool((whole.factor != 1).any())
    assert 8 * little < much


def test_nothing_is_tied_to_what_is_not_known():
    kernel = Kernel(torch.tensor([2.0, 1.0]).view(2, 1, 1, 1).double(), None, (1, 1), (0, 0))
    images = Interval(*torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1, 1).expand(2, 1, 1, 1, 4))
    lower, upper = (kernel.weight.view(1, 2, 1, 1) * each for each in (images.lower, images.upper))

    def found(low):
        values = Interval(low, upper)
        pooled = Interval(*(each.unfold(3, 2, 2).amax(-1) for each in (low, upper)))
        cut = lambda each: each.unfold(3, 2, 2)  # noqa: E731
        return ties(Origin(kernel, images, values, False, 2**20), pooled, cut, (1, 2))

    assert bool((found(lower).factor != 1).any())
    for channel in range(2):
        low = lower.clone()
        low[:, channel] = torch.nan
        assert found(low) is None


@pytest.mark.parametrize("seed", [0, 3])
def test_a_search_comes_to_an_end_where_ties_are_looser_than_maxima(seed, monkeypatch):
    """Once all is decided nothing is tied, so that a margin that is hardly positive is proven."""
    for name in ("MOST", "FEW"):
        monkeypatch.setattr(halves, name, 0)
    torch.manual_seed(seed)
    first = nn.Conv2d(1, 3, (1, 3), padding=(0, 1))
    with torch.no_grad():
        first.weight.mul_(0.3)
        for channel, factor in enumerate((1.0, 1.5, 0.7)):
            first.weight[channel, 0, 0, 2 * (channel == 1)] += 2 * factor
            first.bias[channel] = factor * first.bias[0]
    layers = first, nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Flatten(), nn.LazyLinear(4), nn.ReLU()
    module, clean = nn.Sequential(*layers, nn.LazyLinear(2)), torch.rand(1, 1, 1, 4).double()
    module(clean.float())
    module, row = module.double(), torch.tensor([1.0, -1.0]).double()
    lower, upper = (clean - 0.3).clamp(0, 1), (clean + 0.3).clamp(0, 1)
    walk = walked(Classifier(module), lower, upper, composed=True)
    assert tied_in(walk) is not None
    assert walk.piecewise  # else a tie of one sample would be a reason to halve all boxes
    with torch.no_grad():
        module[-1].bias[0] -= Program(module, lower[0], upper[0]).least(row) - 0.001
    with soundness.without_attacks():
        result = verification.verify(
            Classifier(module),
            clean,
            torch.tensor([0]),
            eps=0.3,
            method="branch_and_bound",
            budget=verification.Budget(domains=2000, steps=3),
        )
    assert result.status == ("proven",)
    assert result.margin.item() <= 0.001 + 1e-6
