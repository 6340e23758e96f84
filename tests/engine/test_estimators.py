"""The gradient reduced over copies, on networks whose gradient is known everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_triguard.engine.estimators import MEAN_SQUARE, Copies, Mean, expected_gradient
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.objectives import logit
from pytest_triguard.errors import TriGuardWarning
from tests.engine.models import ready
from tests.networks import CLASSES, Quadratic, images

SHAPE, SIZE = (1, 2, 3), 6
X, KEYS = images(SHAPE, 5), torch.arange(5)
Y = torch.tensor([0, 1, 2, 3, 1])
FORMS = torch.randn(CLASSES, SIZE, SIZE, generator=torch.Generator().manual_seed(4)).double()
FORMS = (FORMS + FORMS.mT) / 2


def slope(points: Tensor) -> Tensor:
    """Return the gradient of the quadratic network at `(..., 5, C, H, W)` points."""
    return torch.einsum("...ni,nij->...nj", points.flatten(-3), FORMS[Y]).view_as(points)


def estimated(chunk=64, module=None, **options):
    network = Quadratic(FORMS) if module is None else module
    return expected_gradient(ready(network, chunk), X, Y, KEYS, logit, **options)


def scaled(copies: Copies) -> Tensor:
    return copies.inputs * per_row(0.5**copies.numbers, copies.inputs)


def same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-12, atol=1e-12)


def test_copies_that_change_nothing_give_the_plain_gradient():
    assert same(estimated(copies=3, make=lambda copies: copies.inputs), slope(X))


def test_at_the_copy_the_gradient_is_that_of_the_copy():
    factors = [1, 0.5, 0.25, 0.125]
    expected = torch.stack([slope(X * factor) for factor in factors]).mean(0)
    assert same(estimated(copies=4, make=scaled), expected)


def test_at_the_input_the_gradient_brings_the_factor_of_the_chain_rule():
    factors = [1, 0.5, 0.25, 0.125]
    expected = torch.stack([factor * slope(X * factor) for factor in factors]).mean(0)
    assert same(estimated(copies=4, through=scaled), expected)


every_way = pytest.mark.parametrize("way", ["make", "through"])


def test_the_gradient_at_a_copy_is_taken_through_what_the_network_sees_of_it():
    def shifted(copies):
        return copies.inputs + 1

    points = [X + 1, X + 1]
    factors = [1, 0.5]
    expected = sum(f * slope(f * each) for f, each in zip(factors, points, strict=True)) / 2
    assert same(estimated(copies=2, make=shifted, through=scaled), expected)


@every_way
def test_a_shift_has_no_factor(way):
    def shifted(copies):
        return copies.inputs + per_row(copies.numbers.to(X.dtype), copies.inputs)

    expected = torch.stack([slope(X), slope(X + 1), slope(X + 2)]).mean(0)
    assert same(estimated(copies=3, **{way: shifted}), expected)


def test_copies_may_be_weighted():
    weights = [0.5, 0.2, 0.3]
    found = estimated(copies=3, make=scaled, reduction=Mean(weights))
    expected = sum(weight * slope(X * 0.5**i) for i, weight in enumerate(weights))
    assert same(found, expected)


def test_the_mean_of_squares_is_not_the_square_of_the_mean():
    squares = torch.stack([slope(X * 0.5**i) ** 2 for i in range(3)])
    assert same(estimated(copies=3, make=scaled, reduction=MEAN_SQUARE), squares.mean(0))
    weighted = Mean([0.5, 0.2, 0.3], power=2)
    expected = torch.einsum("k,knchw->nchw", torch.tensor([0.5, 0.2, 0.3], dtype=X.dtype), squares)
    assert same(estimated(copies=3, make=scaled, reduction=weighted), expected)


class Listing:
    """A reduction that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[tuple[range, Tensor, Tensor]] = []

    def start(self, inputs: Tensor) -> Tensor:
        return torch.zeros_like(inputs)

    def add(self, state: Tensor, gradients: Tensor, points: Tensor, copies: range) -> Tensor:
        self.seen.append((copies, gradients.clone(), points.clone()))
        return state + gradients.sum(0)

    def finish(self, state: Tensor, copies: int) -> Tensor:
        return state * copies


@pytest.mark.parametrize("chunk", [5, 10, 15, 64])
def test_a_reduction_sees_every_copy_once_and_in_order(chunk):
    reduction = Listing()
    found = estimated(chunk, copies=7, make=scaled, reduction=reduction)
    assert [number for numbers, *_ in reduction.seen for number in numbers] == list(range(7))
    for numbers, gradients, points in reduction.seen:
        assert len(gradients) == len(points) == len(numbers)
        expected = torch.stack([X * 0.5**number for number in numbers])
        assert same(points, expected)
        assert same(gradients, slope(expected))
    assert same(found, 7 * sum(slope(X * 0.5**i) for i in range(7)))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 13, 64])
@every_way
def test_the_chunk_does_not_matter_and_is_kept(way, chunk):
    module, rows = Quadratic(FORMS), []
    module.register_forward_hook(lambda module, given, logits: rows.append(len(logits)))
    found = estimated(chunk, module, copies=7, **{way: scaled})
    assert same(found, estimated(64, copies=7, **{way: scaled}))
    assert max(rows) <= chunk
    assert sum(rows) == 5 * 7
    # As few passes as blocks of samples, each with as many copies as fit, allow.
    blocks = [min(chunk, 5 - start) for start in range(0, 5, chunk)]
    assert len(rows) == sum(-(-7 // max(1, chunk // block)) for block in blocks)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_what_makes_a_copy_goes_along_with_its_sample(chunk):
    start, keys = images(SHAPE, 5, seed=9), torch.tensor([10, 11, 12, 13, 14])
    seen = []

    def make(copies):
        (origin,) = copies.context
        names = zip(copies.keys.tolist(), copies.numbers.tolist(), strict=True)
        for (key, number), inputs, own in zip(names, copies.inputs, origin, strict=True):
            place = key - 10
            assert torch.equal(inputs, X[place])
            assert torch.equal(own, start[place])
            seen.append((place, number))
        return torch.lerp(origin, copies.inputs, 0.5)

    model = ready(Quadratic(FORMS), chunk)
    found = expected_gradient(model, X, Y, keys, logit, copies=4, make=make, context=(start,))
    assert same(found, slope((X + start) / 2))
    assert sorted(seen) == [(place, number) for place in range(5) for number in range(4)]


def test_passes_are_counted_by_row():
    model = ready(Quadratic(FORMS), 4)
    expected_gradient(model, X, Y, KEYS, logit, copies=6, make=scaled)
    assert model.passes.to_dict() == {"forward": 30, "backward": 30}


class Small(Quadratic):
    """Runs out of memory above some rows."""

    most = 3
    refused = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("too many rows")
        return super().forward(inputs)


@every_way
def test_when_memory_runs_out_the_result_is_the_same_and_the_lesson_is_kept(way):
    module = Small(FORMS)
    model = ready(module, 20)
    options = {"copies": 7, way: scaled}
    with pytest.warns(TriGuardWarning, match=r"^memory ran out with 20 rows in a pass") as caught:
        found = expected_gradient(model, X, Y, KEYS, logit, **options)
    assert same(found, estimated(64, **options))
    assert len(caught) == 1
    assert module.refused == 3  # 20, 10 and 5 rows, once each
    assert model.chunk.used == 2


class Detached(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.detach().flatten(1)


@every_way
def test_a_network_without_gradient_gives_zero(way):
    assert not estimated(module=Detached(), copies=3, **{way: scaled}).any()
