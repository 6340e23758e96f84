"""Operators that pick, cut, move, repeat, surround or resize are bounded exactly."""

from __future__ import annotations

from operator import getitem

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_triguard import Classifier, verification
from pytest_triguard.errors import ModelError
from pytest_triguard.verification.intervals import Ball, Interval
from pytest_triguard.verification.operators import TABLE, Unsupported, convolution
from tests.verification.enclosures import box, call, exact
from tests.verification.operator_table import MIXED, MOVED, SHAPE

CASES = MOVED | MIXED


@pytest.mark.parametrize("name", MOVED)
def test_what_only_moves_rounds_nothing(name):
    """Bounds are those of the elements, to the last bit."""
    case = MOVED[name]
    arguments = box(case, 0.3, torch.float32)
    for bounds, lower, upper in zip(
        call(case, "interval", arguments),
        exact(case, [arguments[0].lower.double()]),
        exact(case, [arguments[0].upper.double()]),
        strict=True,
    ):
        assert torch.equal(bounds.lower.double(), lower)
        assert torch.equal(bounds.upper.double(), upper)


@pytest.mark.parametrize("name", CASES)
def test_linear_operators_are_exact(name):
    """Both ends of every element are reached, by its interval and by its relaxation."""
    case = CASES[name]
    arguments = box(case, 0.3, torch.float64)
    lower, upper = arguments[0].lower, arguments[0].upper
    zero = torch.zeros_like(lower[:1])
    for number, (bounds, step) in enumerate(
        zip(call(case, "interval", arguments), call(case, "relaxation", arguments), strict=True)
    ):
        size = bounds.shape[1:].numel()
        jacobian = torch.autograd.functional.jacobian(
            lambda value, number=number: exact(case, [value])[number].flatten(), zero
        ).view(size, *lower.shape[1:])
        start = exact(case, [zero])[number].flatten()
        least = torch.where(jacobian > 0, lower.unsqueeze(1), upper.unsqueeze(1))
        least = (jacobian * least).flatten(2).sum(2) + start
        assert torch.allclose(bounds.lower.flatten(1), least, atol=1e-12)
        rows = torch.eye(size, dtype=torch.float64).view(1, size, *bounds.shape[1:])
        carried, constant = step.back(rows.expand(2, *rows.shape[1:]))
        assert torch.allclose(carried[0][1], jacobian.expand(2, *jacobian.shape), atol=1e-14)
        constant = torch.zeros(2, size, dtype=torch.float64) if constant is None else constant
        assert torch.allclose(constant, start.expand(2, size), atol=1e-13)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize(
    "name", ["plain transposed convolution", "transposed convolution", "padding past the stride"]
)
def test_a_transposed_convolution_over_a_ball_holds(name, norm):
    """Sampled points of the ball, single coordinates among them, where an L1 ball reaches."""
    case = MIXED[name]
    generator = torch.Generator().manual_seed(6)
    centre = torch.randn(2, *SHAPE[0], generator=generator, dtype=torch.float64)
    scale = torch.rand(1, 4, 1, 1, generator=generator).double().expand(1, *SHAPE[0]) + 0.5
    radius = torch.tensor([0.3, 2.0], dtype=torch.float64)
    wide = torch.full_like(centre, 1e3)
    found = call(case, "interval", [Interval(-wide, wide, Ball(centre, scale, radius, norm))])[0]
    reached = torch.zeros((), dtype=torch.float64)
    order = 2 if norm == "l2" else 1
    for place in range(300):
        step = torch.randn(centre.shape, generator=generator, dtype=torch.float64)
        if place % 2:
            step = step * (torch.rand(step[0].numel(), generator=generator).argsort() == 0).view(
                step.shape[1:]
            )
        length = torch.linalg.vector_norm(step.flatten(1), ord=order, dim=1)
        step = step * (radius / length).view(2, 1, 1, 1)
        value = exact(case, [centre + scale * step])[0]
        assert (found.lower <= value + 1e-12).all()
        assert (found.upper >= value - 1e-12).all()
        reach = (value - (found.lower + found.upper) / 2).abs() / (found.upper - found.lower)
        reached = torch.maximum(reached, 2 * reach.max())
    assert reached > 0.5


class Folded(nn.Module):
    """Takes every channel for a sample of its own, and puts them together again."""

    def __init__(self, turned):
        super().__init__()
        torch.manual_seed(0)
        self.each, self.last, self.turned = nn.Linear(4, 5), nn.Linear(10, 2), turned

    def forward(self, inputs):
        rows = inputs.flatten(2)
        if self.turned:
            return self.last(self.each(rows.permute(1, 0, 2)).permute(1, 0, 2).flatten(1))
        return self.last(self.each(rows.flatten(0, 1)).reshape(rows.shape[0], -1))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_ball_of_samples_that_are_folded_is_lost(turned, norm, count):
    """Radii and scales belong to samples; the second channel's scale is a hundred times larger."""
    module = Folded(turned).eval().double()
    subject = Classifier(module, bounds=(-9.0, 9.0), mean=(0.0, 0.0), std=(1.0, 0.01))
    clean = torch.rand(count, 2, 2, 2, generator=torch.Generator().manual_seed(3)).double()
    radii = torch.tensor([0.001, 0.1], dtype=torch.float64)[-count:]
    labels = subject(clean).argmax(1)
    found = verification.verify(subject, clean, labels, eps=radii, norm=norm, method="ibp")
    margin = found.margin - 1e-9
    for place in range(8):
        for side in (1, -1):
            moved = clean.flatten(1).clone()
            moved[:, place] += side * radii
            logits = subject(moved.view_as(clean))
            own = logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])
            assert (own.squeeze(1) >= margin).all()


class Body(nn.Module):
    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 24)
        self.last = nn.LazyLinear(3)
        self.middle = middle

    def forward(self, inputs):
        hidden = self.first(inputs.flatten(1)).view(-1, 4, 2, 3)
        return self.last(self.middle(hidden).flatten(1))


def halves(x):
    first, second = x.chunk(2, 1)
    return first * second


def every_row(x):
    one, two = x.unbind(2)
    return torch.stack([one, two, one - two], dim=2)


class Token(nn.Module):
    """Puts a learnt row in front of all others, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.tensor([[[0.5, -1.0, 2.0]]]))

    def forward(self, hidden):
        rows = hidden.flatten(1, 2)
        token = self.token.expand(rows.shape[0], -1, -1)
        return torch.cat([token, rows], dim=1)[:, 0:3].add(0.1).relu()


MIDDLES = {
    "halves": halves,
    "every row": every_row,
    "class token": Token(),
    "expanded": lambda x: x[:, :1].expand_as(x) + x,
    "normalised": lambda x: functional.normalize(x + 3, dim=1),
    "added product": lambda x: torch.baddbmm(
        x[:, 0], x[:, 1], x[:, 2].transpose(1, 2) @ x[:, 3], alpha=0.5
    ),
    "resized": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "dropout": lambda x: functional.dropout2d(x, 0.5, training=False),
    "quotient": lambda x: x[:, :2] / (1.5 + x[:, 2:].square()),
}


def module_of(name):
    module = Body(MIDDLES[name]).eval()
    module.double()(torch.zeros(1, 3, 2, 2, dtype=torch.float64))
    return module.double()


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
@pytest.mark.parametrize("name", MIDDLES)
def test_networks_that_take_values_apart_are_bounded(name, method):
    module = module_of(name)
    clean = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    for eps in (0.0, 0.05):
        low, high = verification.bounds(Classifier(module), clean - eps, clean + eps, method=method)
        noise = torch.rand(50, *clean.shape, generator=torch.Generator().manual_seed(2)).double()
        with torch.no_grad():
            logits = module((clean + eps * (2 * noise.round() - 1)).flatten(0, 1)).view(50, 2, 3)
        assert (logits >= low - 1e-12).all()
        assert (logits <= high + 1e-12).all()
        assert eps or ((high - low) < 1e-11).all()


VALUE = Interval(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("key", "arguments", "words"),
    [
        (getitem, (0,), "picks samples"),
        (getitem, ((slice(0, 1), 2),), "picks samples"),
        (getitem, (None,), "picks samples"),
        (getitem, ((..., 0, 0, 0, 0),), "picks samples"),
        (getitem, ((slice(None), torch.tensor([0])),), "index of type Tensor"),
        ("chunk", (2,), "taken apart"),
        ("split", (1,), "taken apart"),
        ("unbind", (), "taken apart"),
        ("select", (-4, 0), "taken apart"),
        ("roll", (1,), "moved"),
        ("roll", (1, 0), "moved"),
        ("flip", (-4,), "moved"),
        ("repeat", (2, 1, 1, 1), "repeated"),
        (functional.pad, ((0, 0, 0, 0, 0, 0, 1, 0),), "padding of samples"),
        (functional.interpolate, ((8, 8), None, "bicubic"), "mode='bicubic'"),
        (functional.interpolate, ((8, 8), None, "bilinear", False, None, True), "antialias=True"),
        (torch.softmax, (1, torch.float16), "dtype=torch.float16"),
        ("sum", (), "over the samples"),
    ],
)
def test_a_call_that_a_rule_does_not_know_is_refused(key, arguments, words):
    with pytest.raises(Unsupported, match=words):
        TABLE[key].interval(VALUE, *arguments)


def test_a_transposed_convolution_of_an_unbatched_image_is_refused():
    value = Interval(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))
    with pytest.raises(Unsupported, match="a value of 3 dimensions"):
        TABLE[nn.ConvTranspose2d].interval(value, torch.ones(2, 1, 2, 2))


@pytest.mark.parametrize(
    "copied", [lambda x: x.repeat(1, 2), lambda x: x.unsqueeze(1).expand(-1, 2, -1).flatten(1)]
)
def test_copies_are_not_taken_for_values_of_their_own(copied):
    """The difference of two copies is nothing, which a box around both does not show."""

    class Difference(nn.Module):
        def forward(self, inputs):
            hidden = copied(inputs.flatten(1))
            return functional.linear(
                functional.relu(functional.linear(hidden, WEIGHTS)), torch.eye(2)
            )

    box = torch.full((1, 1, 1, 2), 0.5)
    low, high = verification.bounds(Classifier(Difference()), box - 0.5, box + 0.5, method="crown")
    assert (high - low).max() < 1e-3


WEIGHTS = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])


def test_the_nearest_element_is_bounded_where_every_dtype_copies_the_same():
    """Of 45 elements stretched to 129, float32 copies others than float64 does."""
    rule = TABLE[functional.interpolate]
    for dtype in (torch.float64, torch.float32):
        value = Interval(*(torch.full((1, 1, 1, 45), end, dtype=dtype) for end in (0.0, 1.0)))
        assert rule.interval(value, (1, 128)).upper.eq(1).all()
        if dtype == torch.float64:
            with pytest.raises(Unsupported, match="float32 copies other elements"):
                rule.interval(value, (1, 129))


def test_an_average_over_a_large_area_pays_for_all_that_it_sums():
    """In float32, sums of a quarter of a million numbers drift by thousands of roundings."""
    rule, size, unit = TABLE[functional.interpolate], (2, 2), torch.finfo(torch.float32).eps / 2
    for number in (0.7, 0.9):
        images = torch.full((1, 1, 1024, 1024), number)
        own = functional.interpolate(images, size, mode="area").double()
        wide = images.double()
        real = functional.interpolate(wide, size, mode="area")
        error = rule.evaluation(Interval(wide, wide), size, mode="area", unit=unit)
        assert ((own - real).abs() <= error).all()
        bounds = rule.interval(Interval(images, images), size, mode="area")
        assert ((bounds.lower.double() <= real) & (real <= bounds.upper.double())).all()


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(2)]
)
def test_pooling_without_channels_is_bounded_or_refused_by_name(pool, method):
    module = nn.Sequential(nn.Flatten(1, 2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2))
    clean = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    subject = Classifier(module)
    if isinstance(pool, nn.MaxPool2d) and method != "ibp":
        with pytest.raises(ModelError, match="MaxPool2d in module '2' is not covered: a value of"):
            verification.bounds(subject, clean - 0.1, clean + 0.1, method=method)
        return
    low, high = verification.bounds(subject, clean - 0.1, clean + 0.1, method=method)
    for shift in (-0.1, 0.0, 0.1):
        logits = subject(clean + shift)
        assert ((logits >= low - 1e-5) & (logits <= high + 1e-5)).all()


def test_stochastic_depth_is_nothing_in_evaluation_mode():
    ops = pytest.importorskip("torchvision.ops")
    module = nn.Sequential(nn.Flatten(), ops.StochasticDepth(0.5, "row"), nn.Linear(12, 3)).eval()
    clean = torch.rand(2, 3, 2, 2)
    with torch.no_grad():
        logits = module(clean)
    low, high = verification.bounds(Classifier(module), clean, clean, method="ibp")
    assert torch.allclose(low.float(), logits, atol=1e-5)
    assert torch.allclose(high.float(), logits, atol=1e-5)


def test_an_unknown_mode_is_named_with_its_operator():
    module = nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bicubic"), nn.Flatten(), nn.Linear(48, 3)
    )
    clean = torch.rand(1, 3, 2, 2)
    with pytest.raises(ModelError, match=r"Upsample in module '0' is not covered: mode='bicubic'"):
        verification.bounds(Classifier(module), clean, clean, method="ibp")


def test_a_gap_in_a_kernel_of_one_place_says_nothing():
    """With it, torch's float32 kernel for channels last takes the whole process down."""
    images = torch.rand(4, 6, 3, 1).contiguous(memory_format=torch.channels_last)
    around = Interval(images - 0.1, images + 0.1)
    weight, bias = torch.rand(2, 6, 2, 1), torch.rand(2)
    found, plain = (
        convolution.conv2d(around, weight, bias, (1, 2), (1, 1), gaps) for gaps in ((1, 2), 1)
    )
    assert torch.equal(found.lower, plain.lower)
    assert torch.equal(found.upper, plain.upper)
