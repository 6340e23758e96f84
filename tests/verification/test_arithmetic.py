"""Proofs for the module's own float32: they hold in any order of summation, or are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_triguard import Classifier, verification
from pytest_triguard.errors import InputError
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import BOUNDS, Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import TABLE
from tests.verification.zoo import ZOO, images, network, points_inside, problem

METHODS = ("ibp", "crown_ibp", "crown", "alpha_crown")
EPS = 1e-4


class Ordered(TorchFunctionMode):
    """Computes products with weights by adding one float32 product after the other.

    Args:
        seed: Of the order.
    """

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is functional.linear:
            return self.linear(*args, **kwargs)
        if func in (functional.conv2d, torch.conv2d) and self.plain(*args, **kwargs):
            return self.conv2d(*args, **kwargs)
        return func(*args, **kwargs)

    def linear(self, values, weight, bias=None):
        terms = torch.randperm(
            weight.shape[1], generator=torch.Generator().manual_seed(self.seed)
        ).tolist()
        total = values.new_zeros(*values.shape[:-1], len(weight))
        for term in terms:
            total = total + values[..., term, None] * weight[:, term]
        return total if bias is None else total + bias

    def plain(self, values, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        return groups == 1 and not isinstance(padding, str)

    def conv2d(self, values, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        columns = functional.unfold(values, weight.shape[2:], dilation, padding, stride)
        found = self.linear(columns.mT, weight.flatten(1), bias).mT
        shape = functional.conv2d(values[:1], weight, None, stride, padding, dilation).shape
        return found.reshape(len(values), *shape[1:])


@contextmanager
def threads(count) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_mkldnn() -> Iterator[None]:
    before = torch.backends.mkldnn.set_flags(False)[0]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before)


def runs(subject, points) -> Iterator[torch.Tensor]:
    """Hand out the module's own logits, computed in many ways that IEEE float32 allows."""
    for size in (1, 7, len(points)):
        yield torch.cat([subject(part) for part in points.split(size)])
    yield subject(points.contiguous(memory_format=torch.channels_last))
    with threads(2):
        yield subject(points)
    with without_mkldnn(), torch.backends.nnpack.flags(enabled=False):
        yield subject(points)
    for seed in range(2):
        with Ordered(seed):
            yield subject(points)


def rounded_bounds(subject, lower, upper, method, *, rounded=True):
    with subject.prepared() as model, torch.no_grad():
        net = Network(model, torch.float32, rounded=rounded)
        region = Interval(lower.to(net.dtype), upper.to(net.dtype))
        net.enclose(region)
        return BOUNDS.get(method).logits(net, region, Effort())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ZOO)
def test_what_the_module_computes_in_any_order_is_inside_the_bounds(name, method):
    subject = Classifier(network(name, 3, torch.float32), mean=0.4, std=0.3)
    clean = images(name, 3, 3, torch.float32)
    lower, upper = (clean - EPS).clamp(0, 1), (clean + EPS).clamp(0, 1)
    bounds = rounded_bounds(subject, lower, upper, method)
    points = torch.cat([points_inside(*box, 24) for box in zip(lower, upper, strict=True)])
    low, high = (end.repeat_interleave(24, 0) for end in (bounds.lower, bounds.upper))
    with torch.no_grad():
        for logits in runs(subject, points):
            assert logits.dtype == torch.float32
            assert (logits.double() >= low).all()
            assert (logits.double() <= high).all()


@pytest.mark.parametrize("name", ["linear", "mlp", "functional", "shapes", "convolutional head"])
def test_the_widening_is_small_and_not_nothing(name):
    subject, clean = Classifier(network(name, 0, torch.float32)), images(name, 4, 0, torch.float32)
    real, own = (rounded_bounds(subject, clean, clean, "crown", rounded=each) for each in (0, 1))
    assert (own.lower < real.lower).all()
    assert (own.upper > real.upper).all()
    assert (own.upper - own.lower).max() < 1e-3


def cancelling(size=1e8):
    """Return a network of one input x whose first logit is `size x + 0.5 - size x`, exactly 0.5.

    The second logit is 0.25; in float32 the first one may be 0 where x is not.
    """
    first, last = nn.Linear(1, 3), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [0.0], [1.0]]))
        first.bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
        last.weight.copy_(torch.tensor([[size, 1.0, -size], [0.0, 0.5, 0.0]]))
        last.bias.zero_()
    return Classifier(nn.Sequential(nn.Flatten(), first, last))


def tent():
    """Return the network before, of an x that is 0 at both ends of [0, 1] and 0.5 in the middle.

    At the ends, where the graph is held against the module, nothing is rounded in any order.
    """
    first, second = nn.Linear(1, 3), nn.Linear(3, 1)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.copy_(torch.tensor([0.0, -0.5, 0.0]))
        second.weight.copy_(torch.tensor([[1.0, -2.0, 0.0]]))
        second.bias.zero_()
    flat, *last = cancelling().module
    return Classifier(nn.Sequential(flat, first, nn.ReLU(), second, *last))


def test_an_exact_margin_that_rounding_takes_away_is_proven_in_real_arithmetic_alone():
    subject, clean, label = tent(), torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)
    orders = []
    with torch.no_grad():
        for seed in range(6):
            with Ordered(seed):
                orders.append(int(subject(torch.full((1, 1, 1, 1), 0.25)).argmax()))
    assert 1 in orders
    found = {
        arithmetic: verification.verify(
            subject, clean, label, eps=1.0, method="crown", arithmetic=arithmetic
        )
        for arithmetic in ("real", "float32")
    }
    assert found["real"].status == ("proven",)
    assert found["float32"].status == ("unknown",)
    assert found["float32"].slack.tolist() == [0.0]
    assert found["float32"].arithmetic == "float32"


def test_a_module_that_rounds_its_margin_away_where_it_is_looked_at_is_not_proven():
    subject, label = cancelling(), torch.zeros(1, dtype=torch.int64)
    ends = torch.tensor([0.0, 1.0]).view(-1, 1, 1, 1)
    for seed in range(6):
        with Ordered(seed):
            found = verification.verify(subject, ends[:1], label, eps=1.0, method="crown")
            wrong = subject(ends).argmax(1).any()
        assert found.status == (("unsupported",) if wrong else ("proven",))
        if wrong:
            assert "or it rounds by more" in found.reason[0]


@pytest.mark.parametrize("size", [1e3, 1e5, 1e6])
@pytest.mark.parametrize("method", METHODS)
def test_a_float32_proof_holds_in_every_order(method, size):
    subject = cancelling(size)
    clean, label = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    found = verification.verify(
        subject, clean, label, eps=0.01, method=method, arithmetic="float32"
    )
    if found.status == ("proven",):
        points = torch.linspace(0.49, 0.51, 200).view(-1, 1, 1, 1)
        with torch.no_grad():
            for seed in range(6):
                with Ordered(seed):
                    logits = subject(points).double()
                assert (logits[:, 0] - logits[:, 1] >= found.margin).all()


def test_a_tie_of_two_float32_logits_is_not_proven():
    last = nn.Linear(1, 2)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[1.0], [1.0]]))
        last.bias.copy_(torch.tensor([1e-9, 0.0]))
    subject, clean = Classifier(nn.Sequential(nn.Flatten(), last)), torch.ones(1, 1, 1, 1)
    label = torch.zeros(1, dtype=torch.int64)
    assert subject(clean).diff().item() == 0
    found = verification.verify(
        subject, clean, label, eps=0.0, method="crown", arithmetic="float32"
    )
    assert found.status == ("unknown",)


def test_what_overflows_in_float32_alone_is_not_proven():
    subject = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    )
    with torch.no_grad():
        for layer, scale in zip(list(subject.module)[1:], (1e25, 1e25, 1e-25), strict=True):
            layer.weight.fill_(scale)
            layer.bias.zero_()
        subject.module[3].bias[0] = 1.0
    clean, label = torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)
    assert not torch.isfinite(subject(clean + 0.5)).any()
    for method in METHODS:
        found = verification.verify(
            subject, clean, label, eps=0.5, method=method, arithmetic="float32"
        )
        assert found.status == ("unknown",)
        assert found.reason == ("the bound is not finite",)


def test_numbers_flushed_to_zero_stay_inside_the_bounds():
    subject = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in subject.module.parameters():
            each.copy_(torch.randn(each.shape, generator=generator) * 1e-20)
    clean = torch.rand(5, 1, 2, 2, generator=generator) * 1e-19
    bounds = rounded_bounds(subject, clean, clean, "ibp")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        with torch.no_grad():
            logits = subject(clean).double()
    finally:
        torch.set_flush_denormal(False)
    assert (logits >= bounds.lower).all()
    assert (logits <= bounds.upper).all()


# --- what is refused ----------------------------------------------------------------------------


class Mixed(nn.Module):
    """Computes its first layer in bfloat16, which no graph shows."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.first(inputs.flatten(1))
        return self.last(hidden.to(self.last.weight.dtype))


@contextmanager
def precision(name) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


SETTINGS = {
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), "is_autocast_enabled"),
    "matmul precision": (lambda: precision("medium"), "get_float32_matmul_precision"),
    "nnpack": (without_mkldnn, "mkldnn.enabled"),
}


def check(subject, inputs, labels):
    return verification.verify(subject, inputs, labels, eps=EPS, method="ibp", arithmetic="float32")


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_allow_other_products_are_refused(name):
    setting, named = SETTINGS[name]
    subject, inputs, labels = problem("mlp", 2, dtype=torch.float32)
    with setting(), pytest.raises(InputError, match=named):
        check(subject, inputs, labels)
    assert "proven" in check(subject, inputs, labels).status


def test_a_library_told_to_use_fewer_digits_is_refused(monkeypatch):
    subject, inputs, labels = problem("mlp", 2, dtype=torch.float32)
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    with pytest.raises(
        InputError, match="ONEDNN_DEFAULT_FPMATH_MODE is 'BF16'; set it to 'STRICT'"
    ):
        check(subject, inputs, labels)


def test_a_module_that_casts_inside_is_refused():
    subject = Classifier(Mixed())
    with pytest.raises(InputError, match=r"returned torch\.bfloat16"):
        check(subject, torch.rand(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64))


def test_a_float64_module_is_refused():
    subject, inputs, labels = problem("mlp", 2)
    with pytest.raises(InputError, match="needs a float32 module, but this one computes in"):
        check(subject, inputs, labels)


def test_an_operator_of_unknown_rounding_is_unsupported_by_name(monkeypatch):
    monkeypatch.setitem(TABLE, nn.Sigmoid, replace(TABLE[nn.Sigmoid], evaluation=None))
    subject, inputs, labels = problem("activations", 2, dtype=torch.float32)
    found = check(subject, inputs, labels)
    assert set(found.status) == {"unsupported"}
    assert found.reason[0] == (
        "operator Sigmoid in module '8' has no bound on the rounding of the module that runs"
    )


# --- in which dtype bounds are computed ----------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-3, 1e-2])
@pytest.mark.parametrize("name", ZOO)
def test_bounds_in_float32_first_decide_what_those_in_float64_decide(name, eps, monkeypatch):
    subject, inputs, labels = problem(name, 8, dtype=torch.float32)
    found = verification.verify(subject, inputs, labels, eps=eps, method="ibp")
    monkeypatch.setattr(Network, "own", property(lambda network: network))
    assert (
        found.status == verification.verify(subject, inputs, labels, eps=eps, method="ibp").status
    )


def test_a_bound_that_overflows_in_float32_is_computed_again_in_float64():
    subject, inputs, _ = problem("mlp", 6, dtype=torch.float32)
    with torch.no_grad():
        for place, scale in ((1, 1e30), (3, 1e30), (5, 1e-30)):
            layer = subject.module[place]
            layer.weight.mul_(scale)
            layer.bias.mul_(scale if place == 1 else 0.0)
    with subject.prepared() as model:
        net = Network(model, torch.float32)
        region = Interval(inputs.double(), inputs.double())
        assert not torch.isfinite(
            net.own.enclose(region.converted(torch.float32)).logits.upper
        ).all()
        assert torch.isfinite(net.enclose(region).logits.upper).all()


@pytest.mark.parametrize("setting", [lambda: precision("medium"), without_mkldnn])
def test_bounds_are_computed_in_float64_at_once_where_float32_may_be_another(setting):
    subject, inputs, labels = problem("pools", 4, dtype=torch.float32)
    plain, own = (
        verification.verify(subject, inputs, labels, eps=1e-3, method="ibp").margin for _ in "ab"
    )
    assert torch.equal(plain, own)
    with setting():
        found = verification.verify(subject, inputs, labels, eps=1e-3, method="ibp").margin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "own", property(lambda network: network))
        exact = verification.verify(subject, inputs, labels, eps=1e-3, method="ibp").margin
    assert torch.allclose(found, exact, rtol=0, atol=1e-11)
    assert not torch.allclose(plain, exact, rtol=0, atol=1e-11)


def test_the_stage_tells_how_many_were_bounded_again():
    subject, inputs, labels = problem("activations", 8, dtype=torch.float32)
    stages = verification.verify(subject, inputs, labels, eps=1e-3, method="ibp").stages
    assert stages[-1].name == "ibp"
    assert 0 < stages[-1].retried < 8
    assert stages[-1].forward == 2 * (8 + stages[-1].retried) + stages[-1].retried


def test_rows_that_float32_does_not_hold_are_bounded_in_float64_at_once():
    subject, inputs, _ = problem("mlp", 4, dtype=torch.float32)
    rows = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    for third, dtype in ((1.0, torch.float32), (1 / 3, torch.float64)):
        seen = []
        bound = Network.enclose

        def watched(network, region, seen=seen, bound=bound):
            seen.append(network.dtype)
            return bound(network, region)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Network, "enclose", watched)
            verification.verify(subject, inputs, eps=1.0, method="ibp", specification=rows * third)
        assert seen[1] == dtype
