"""Bounds of input gradients hold, for every operator, and are as tight as theory says."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_triguard import Classifier, strategies
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification import derivatives
from pytest_triguard.verification.gradient_bounds import gradient_bounds
from pytest_triguard.verification.intervals import Interval
from tests.module_state import state_of
from tests.simulated_accelerator import simulated_accelerator
from tests.verification import zoo
from tests.verification.piecewise import exact_gradients, names, problem
from tests.verification.zoo import CLASSES

few = settings(max_examples=10, deadline=None)


def assert_inside(found: Tensor, low: Tensor, high: Tensor) -> None:
    room = 1e-12 * found.abs().max()
    assert (found >= low - room).all()
    assert (found <= high + room).all()


@names
@few
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([1e-4, 0.01, 0.1, 1.0]))
def test_every_gradient_in_the_box_is_inside_the_bounds(name, seed, eps):
    subject, clean = problem(name, 2, seed)
    lower, upper = clean - eps, clean + eps
    target = seed % CLASSES
    low, high = gradient_bounds(subject, lower, upper, target)
    for row in range(len(clean)):
        points = zoo.points_inside(lower[row], upper[row], 40, seed)
        assert_inside(exact_gradients(subject, points, target), low[row], high[row])


@settings(max_examples=40, deadline=None)
@given(
    drawn=strategies.random_networks(dtype=torch.float64),
    eps=st.sampled_from([1e-3, 0.03, 0.3]),
    target=st.integers(0, 1),
)
def test_gradients_of_random_networks_are_inside_the_bounds(drawn, eps, target):
    subject, clean = Classifier(drawn.module), drawn.inputs(2)
    low, high = gradient_bounds(subject, clean - eps, clean + eps, target)
    for row in range(2):
        points = zoo.points_inside(clean[row] - eps, clean[row] + eps, 40)
        assert_inside(exact_gradients(subject, points, target), low[row], high[row])


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_of_a_point_are_the_gradient(name, dtype):
    subject, clean = problem(name, 4, dtype=dtype)
    low, high = gradient_bounds(subject, clean, clean, 1)
    assert low.dtype == high.dtype == torch.float64
    assert torch.allclose(low, exact_gradients(subject, clean, 1), rtol=0, atol=1e-10)
    assert torch.allclose(high, exact_gradients(subject, clean, 1), rtol=0, atol=1e-10)


@names
def test_bounds_of_a_larger_box_hold_those_of_a_smaller_one(name):
    subject, clean = problem(name)
    last = gradient_bounds(subject, clean, clean, 0)
    for eps in (0.01, 0.05, 0.2):
        low, high = gradient_bounds(subject, clean - eps, clean + eps, 0)
        room = 1e-12 * torch.maximum(low.abs(), high.abs()).amax()
        assert (low <= last[0] + room).all()
        assert (high >= last[1] - room).all()
        last = low, high


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 4, 2)])
def test_a_linear_network_has_its_weights_for_bounds(shape):
    module = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 4)).double()
    clean = torch.rand(3, *shape, dtype=torch.float64)
    targets = torch.tensor([2, 0, 3])
    std = torch.linspace(0.2, 0.6, shape[0], dtype=torch.float64)
    subject = Classifier(module, mean=0.0, std=std.tolist())
    exact = module[1].weight.detach()[targets].view(3, *shape) / std.view(-1, 1, 1)
    for eps in (0.0, 0.1, 100.0):
        low, high = gradient_bounds(subject, clean - eps, clean + eps, targets)
        assert (low <= exact).all()
        assert (high >= exact).all()
        assert torch.allclose(high, low, rtol=0, atol=1e-13)


@few
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.02, 0.1, 0.5]))
def test_one_hidden_layer_has_the_extremes_over_all_its_patterns(seed, eps):
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(6, 7).double(), nn.Linear(7, 3).double()
    with torch.no_grad():
        for each in (*first.parameters(), *last.parameters()):
            each.copy_(torch.randn(each.shape, generator=generator, dtype=torch.float64))
    clean = torch.rand(1, 1, 2, 3, generator=generator, dtype=torch.float64)
    subject = Classifier(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last))
    low, high = gradient_bounds(subject, clean - eps, clean + eps, 1)
    centre = first(clean.flatten(1))[0]
    reach = eps * first.weight.abs().sum(1)
    choices = [
        (1.0,) if c - r > 0 else (0.0,) if c + r < 0 else (0.0, 1.0)
        for c, r in zip(centre, reach, strict=True)
    ]
    patterns = torch.tensor(list(product(*choices)), dtype=torch.float64)
    gradients = (patterns * last.weight[1]) @ first.weight
    assert torch.allclose(low.flatten(), gradients.amin(0), rtol=0, atol=1e-11)
    assert torch.allclose(high.flatten(), gradients.amax(0), rtol=0, atol=1e-11)


@few
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_holds_the_exact_rational_range_of_its_transpose(dtype, data):
    number = st.floats(width=32, allow_nan=False, min_value=-1, max_value=1)
    scale = data.draw(st.sampled_from([1e-8, 1.0, 1e8]))
    columns = [[data.draw(number) * scale for _ in range(5)] for _ in range(2)]
    weight = torch.tensor(columns, dtype=dtype).T.contiguous()
    middle = torch.tensor([[data.draw(number) for _ in range(5)]], dtype=dtype)
    eps = data.draw(st.sampled_from([0.0, 1e-8, 0.25]))
    cotangent = Interval(middle - eps, middle + eps)
    input = Interval(torch.zeros(1, 2, dtype=dtype), torch.zeros(1, 2, dtype=dtype))
    (found,) = derivatives._linear(cotangent, input, weight)
    for place in range(2):
        ends = [
            (Fraction(w) * Fraction(low), Fraction(w) * Fraction(high))
            for w, low, high in zip(
                weight[:, place].tolist(),
                cotangent.lower[0].tolist(),
                cotangent.upper[0].tolist(),
                strict=True,
            )
        ]
        assert Fraction(found.lower[0, place].item()) <= sum(map(min, ends))
        assert Fraction(found.upper[0, place].item()) >= sum(map(max, ends))


# --- kinks ----------------------------------------------------------------------------------------


class Kinked(nn.Module):
    def __init__(self, activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.activation(inputs).flatten(1)
        return torch.cat([hidden, -hidden], 1)


@pytest.mark.parametrize(
    ("activation", "kink", "low", "high"),
    [
        (nn.ReLU(), 0.0, 0.0, 1.0),
        (nn.LeakyReLU(0.25), 0.0, 0.25, 1.0),
        (nn.LeakyReLU(2.0), 0.0, 1.0, 2.0),
        (nn.ReLU6(), 6.0, 0.0, 1.0),
        (nn.Hardtanh(-0.5, 0.5), -0.5, 0.0, 1.0),
        (lambda values: values.clamp(max=0.5), 0.5, 0.0, 1.0),
        (lambda values: values.clamp_min(0.5), 0.5, 0.0, 1.0),
        (torch.abs, 0.0, -1.0, 1.0),
        (nn.Hardsigmoid(), 3.0, 0.0, 1 / 6),
    ],
)
def test_at_a_kink_every_choice_of_a_framework_is_inside(activation, kink, low, high):
    point = torch.full((1, 1, 1, 1), kink, dtype=torch.float64)
    found = gradient_bounds(Classifier(Kinked(activation), bounds=(-9, 9)), point, point, 0)
    for bound, exact in zip(found, (low, high), strict=True):
        assert bound.item() == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d((2, 3), 1, (0, 1))])
def test_in_a_tie_each_argument_takes_anything(pool):
    tied = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    low, high = gradient_bounds(Classifier(Kinked(pool)), tied, tied, 0)
    assert torch.allclose(low, torch.zeros_like(low), atol=1e-14)
    assert (high >= 1 - 1e-14).all()


def test_in_a_maximum_the_winner_takes_all_and_a_loser_nothing():
    values = torch.tensor([[[[0.9, 0.5, 0.45, 0.1]]]]).double()
    module = Kinked(lambda inputs: inputs.amax(3))
    low, high = gradient_bounds(Classifier(module), values - 0.1, values + 0.1, 0)
    assert low.flatten().tolist() == pytest.approx([1, 0, 0, 0], abs=1e-14)
    assert high.flatten().tolist() == pytest.approx([1, 0, 0, 0], abs=1e-14)
    low, high = gradient_bounds(Classifier(module), values - 0.21, values + 0.21, 0)
    assert low.flatten().tolist() == pytest.approx([0, 0, 0, 0], abs=1e-14)
    assert high.flatten().tolist() == pytest.approx([1, 1, 0, 0], abs=1e-14)


def test_dead_neurons_give_zero():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        module[1].bias.fill_(-1e3)
    clean = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    low, high = gradient_bounds(Classifier(module), clean - 0.5, clean + 0.5, 0)
    assert low.abs().max() < 1e-300
    assert high.abs().max() < 1e-300


# --- floating point -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-8, 1e8, 1e102])
def test_extreme_weights_give_bounds_that_hold_or_say_nothing(scale):
    subject, clean = problem("mlp")
    with torch.no_grad():
        for each in subject.module.parameters():
            each.mul_(scale)
    low, high = gradient_bounds(subject, clean - 0.1, clean + 0.1, 0)
    assert not low.isnan().any()
    assert not high.isnan().any()
    gradients = exact_gradients(subject, clean, 0)
    finite = gradients.isfinite()
    assert (low <= gradients)[finite].all()
    assert (high >= gradients)[finite].all()


@pytest.mark.parametrize("name", ["pools", "residual", "activated", "arithmetic"])
def test_an_accelerator_without_float64_has_looser_bounds_that_hold(name):
    subject, clean = problem(name, dtype=torch.float32)
    box = clean - 0.02, clean + 0.02
    exact = gradient_bounds(subject, *box, 1)
    for float64 in (True, False):
        with (
            simulated_accelerator(float64=float64),
            use_session(Session(settings=Settings(device="sim"))),
        ):
            low, high = gradient_bounds(subject, *box, 1)
        assert torch.allclose(low.double(), exact[0], atol=0.02)
        room = 1e-12 if float64 else 0.0
        assert (low.double() <= exact[0] + room).all()
        assert (high.double() >= exact[1] - room).all()


def test_the_chunk_changes_nothing():
    subject, clean = problem("pools", 5)
    low, high = gradient_bounds(subject, clean - 0.01, clean + 0.01, 1)
    with use_session(Session(settings=Settings(chunk=2))):
        again = gradient_bounds(subject, clean - 0.01, clean + 0.01, 1)
    assert torch.allclose(low, again[0], rtol=0, atol=1e-9)
    assert torch.allclose(high, again[1], rtol=0, atol=1e-9)


# --- what is refused ------------------------------------------------------------------------------


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.body(inputs.flatten(1))
        return self.head(hidden) + self.head(inputs.flatten(1))


def _hooked() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    module[1].register_full_backward_hook(lambda layer, inputs, outputs: (inputs[0] * 2,))
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Sigmoid()),
            "operator Sigmoid in module '2'",
        ),
        (Kinked(lambda values: values * values), "operator mul at the top of the module"),
        (Kinked(torch.tanh), "operator tanh at the top of the module"),
        (Kinked(lambda values: 1 / (values + 1)), "operator truediv at the top of the module"),
        (Frozen(), "the gradient of Frozen is not that of the function it computes"),
        (_hooked(), "the gradient of Sequential is not that of the function it computes"),
        (
            nn.Sequential(nn.Flatten(1, 2), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
            "operator MaxPool2d in module '1' is not covered: a value of 3 dimensions",
        ),
    ],
    ids=["sigmoid", "product", "tanh", "quotient", "frozen", "hooked", "no channels"],
)
def test_what_has_no_sound_bound_is_refused_by_name(module, reason):
    clean = torch.rand(2, 1, 2, 2)
    with pytest.raises(ModelError, match=f"the gradient cannot be bounded: {reason}"):
        gradient_bounds(Classifier(module), clean, clean, 0)


IMAGES = torch.rand(3, 3, 2, 2, dtype=torch.float64)
WRONG = {
    "targets": ((IMAGES, IMAGES, 3), InputError, "targets must be classes from 0 to 2, but 3 came"),
    "negative": ((IMAGES, IMAGES, -1), InputError, "targets must be at least 0, but -1 came"),
    "count": ((IMAGES, IMAGES, torch.tensor([0, 1])), InputError, "targets must be one class or a"),
    "floating": (
        (IMAGES, IMAGES, torch.rand(3)),
        InputTypeError,
        "targets must hold whole numbers",
    ),
    "type": ((IMAGES, IMAGES, "cat"), InputTypeError, "targets must be a whole number"),
    "order": ((IMAGES + 1, IMAGES, 0), InputError, "lower must be at most upper"),
    "dtype": (
        (IMAGES.float(), IMAGES.float(), 0),
        InputTypeError,
        "lower and upper must be torch.float64",
    ),
    "infinite": ((IMAGES, IMAGES / 0, 0), InputError, "upper must be finite"),
    "shape": ((IMAGES[0], IMAGES[0], 0), InputError, "lower must have shape"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        gradient_bounds(problem("mlp")[0], *arguments)


def test_something_else_than_a_classifier_is_named():
    with pytest.raises(InputTypeError, match="classifier must be a pytest_triguard"):
        gradient_bounds(nn.Linear(2, 2), IMAGES, IMAGES, 0)


def test_the_module_is_left_as_it_came():
    subject, clean = problem("residual")
    before = state_of(subject.module)
    gradient_bounds(subject, clean, clean, 0)
    assert state_of(subject.module) == before
