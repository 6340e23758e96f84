"""Certificates of smoothed maps hold where the map is known, and are attained where theory says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_triguard import Classifier
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification import smoothed_maps
from pytest_triguard.verification.smoothed_maps import certify_smoothgrad
from tests.simulated_accelerator import simulated_accelerator

NOISE = 0.3
SLOPE, REACH = 2 * math.exp(-0.5) / math.sqrt(2 * math.pi), math.sqrt(2 / math.pi)


def density(values):
    return torch.exp(-(values**2) / 2) / math.sqrt(2 * math.pi)


class Steps(nn.Module):
    """Class 1 has probability 1 where `direction . x` is between two ends, else 0."""

    def __init__(self, direction: Tensor, low: float, high: float, steep: float = 1e9) -> None:
        super().__init__()
        self.register_buffer("direction", direction)
        self.low, self.high, self.steep = low, high, steep

    def forward(self, inputs: Tensor) -> Tensor:
        along = (inputs.flatten(1) @ self.direction.to(inputs.dtype)).clamp(-1e6, 1e6)
        inside = torch.minimum(along - self.low, self.high - along) * self.steep
        return torch.stack([torch.zeros_like(inside), inside], 1)

    def expectation(self, inputs: Tensor, noise: float = NOISE) -> Tensor:
        """Return the exact expectation map, in float64."""
        direction = self.direction.double()
        along = inputs.double().flatten(1) @ direction
        slope = density((self.low - along) / noise) - density((self.high - along) / noise)
        return (slope / noise).unsqueeze(1).mul(direction).view(inputs.shape)


class Smooth(nn.Module):
    """A small network with a smooth output, for two grey pixels."""

    def __init__(self, seed: int, gain: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.last = nn.Linear(2, 8).double(), nn.Linear(8, 3).double()
        self.gain = gain

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.gain * self.first(inputs.flatten(1)))) * self.gain


def unit(seed: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(math.prod(shape), generator=generator, dtype=torch.float64)
    return values / values.norm()


def images(shape, count=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator, dtype=torch.float64).to(dtype)


# --- how far the map moves ------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.05, 0.3, 2.0])
def test_a_slab_as_wide_as_the_noise_attains_the_slope(noise):
    shape = (1, 2, 3)
    network = Steps(unit(1, shape), -noise, noise)
    clean = torch.zeros(1, *shape, dtype=torch.float64)
    move = 1e-3 * noise
    moved = clean + move * network.direction.view(1, *shape)
    gap = (network.expectation(moved, noise) - network.expectation(clean, noise)).norm()
    bound = smoothed_maps.displacement(torch.tensor([move]).double(), noise)
    assert 0.9999 * bound < gap <= bound


@pytest.mark.parametrize("noise", [0.05, 0.3, 2.0])
def test_two_edges_far_apart_attain_the_reach(noise):
    shape = (1, 1, 2)
    network = Steps(unit(2, shape), 0.0, 12 * noise)
    ends = torch.stack([0 * network.direction, 12 * noise * network.direction]).view(2, *shape)
    gap = network.expectation(ends, noise).diff(dim=0).norm()
    bound = smoothed_maps.displacement(torch.tensor([12 * noise]).double(), noise)
    assert 0.9999 * bound < gap <= bound


def test_the_displacement_is_the_lesser_of_both_and_grows_with_the_ball():
    lengths = torch.linspace(0, 4, 401, dtype=torch.float64) * NOISE
    bound = smoothed_maps.displacement(lengths, NOISE)
    assert bound[0] == 0
    assert (bound.diff() >= 0).all()
    assert torch.allclose(bound[:160], SLOPE * lengths[:160] / NOISE**2, rtol=1e-11, atol=0)
    crossing = math.exp(0.5) * NOISE
    assert torch.allclose(bound[lengths > crossing], torch.tensor(REACH / NOISE).double())


@pytest.mark.parametrize(
    ("network", "least"),
    [
        (Steps(unit(4, (2,)), -NOISE, NOISE, steep=60.0), 0.9),
        (Steps(unit(5, (2,)), NOISE, 50.0, steep=60.0), 0.45),
        (Smooth(1, 4.0), 0.02),
        (Smooth(1, 8.0), 0.02),
    ],
    ids=["slab", "edge", "network", "steep network"],
)
def test_an_attack_on_the_exact_expectation_map_never_moves_it_farther(network, least):
    """The expectation is a sum over a fine grid, so that the attack has its gradient."""
    nodes = torch.linspace(-6, 6, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(nodes, nodes)
    weight = (density(grid).prod(1) * (nodes[1] - nodes[0]) ** 2).unsqueeze(1)

    def expectation(point):
        values = network(point + NOISE * grid).softmax(1)[:, 1:2]
        return (values * weight * grid).sum(0) / NOISE

    own = expectation(torch.zeros(2, dtype=torch.float64)).detach()
    attained = []
    for radius in (0.02, 0.3, 1.0):
        bound = smoothed_maps.displacement(torch.tensor([radius]).double(), NOISE).item()
        best = 0.0
        for start in range(2):
            move = radius * unit(start, (2,))
            for _ in range(8):
                move = move.detach().requires_grad_()
                gap = (expectation(move) - own).square().sum()
                best = max(best, gap.sqrt().item())
                (ascent,) = torch.autograd.grad(gap, move)
                move = move + radius * ascent / ascent.norm().clamp_min(1e-30)
                move = move * (radius / move.norm()).clamp_max(1)
        attained.append(best / bound)
    assert least < max(attained) <= 1


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 4, 2)])
@pytest.mark.parametrize(
    ("norm", "stretch"), [("l2", lambda d: 1.0), ("linf", math.sqrt), ("l1", lambda d: 1.0)]
)
def test_a_ball_counts_by_the_l2_ball_that_holds_it(shape, norm, stretch):
    subject = Classifier(Steps(unit(0, shape), 0.0, 1.0))
    found = certify_smoothgrad(subject, images(shape), eps=0.01, k=1, norm=norm, copies=4)
    expected = SLOPE * 0.01 * stretch(math.prod(shape)) / 0.15**2
    assert torch.allclose(found.displacement, torch.full((3,), expected).double())


def test_summed_channels_move_by_the_root_of_their_number():
    shape = (3, 2, 2)
    subject = Classifier(Steps(unit(0, shape), 0.0, 1.0))
    one, many = (
        certify_smoothgrad(subject, images(shape), eps=0.01, k=1, copies=4, channels=channels)
        for channels in ("separate", "sum")
    )
    assert torch.allclose(many.displacement, one.displacement * math.sqrt(3))
    assert many.estimate.shape == many.radius.shape == (3, 1, 2, 2)


def test_every_sample_can_have_a_radius_of_its_own():
    subject, eps = Classifier(Steps(unit(0, (1, 2, 2)), 0.0, 1.0)), torch.tensor([0.0, 0.1, 0.01])
    found = certify_smoothgrad(subject, images((1, 2, 2)), eps=eps, k=1, copies=4)
    assert torch.allclose(found.displacement, SLOPE / 0.15**2 * eps.double())
    assert found.overlap.tolist()[0] == 1


# --- the map at the sample ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 2, 3)])
@pytest.mark.parametrize("channels", ["separate", "sum"])
def test_the_exact_map_is_within_the_radius_of_the_estimate(shape, dtype, channels):
    network = Steps(unit(3, shape), 0.2, 0.9).to(dtype)
    clean = images(shape, 4, dtype=dtype)
    exact = network.expectation(clean)
    if channels == "sum":
        exact = exact.sum(1, keepdim=True)
    for copies in (50, 5000):
        found = certify_smoothgrad(
            Classifier(network),
            clean,
            1,
            eps=0.1,
            k=2,
            noise=NOISE,
            copies=copies,
            channels=channels,
        )
        assert found.estimate.dtype == torch.float64
        assert ((found.estimate - exact).abs() <= found.radius).all()
    assert (found.estimate - exact).abs().max() < 0.2
    assert found.radius.max() < 0.8


def test_the_radius_covers_in_more_seeds_than_it_has_to():
    """A radius without its union over the elements, or of one standard error, fails here."""
    shape = (1, 4, 5)
    network = Steps(unit(5, shape), 0.3, 1.5)
    clean = images(shape, 40)
    found = certify_smoothgrad(
        Classifier(network), clean, 1, eps=0.1, k=2, noise=NOISE, copies=300, confidence=0.9
    )
    inside = (found.estimate - network.expectation(clean)).abs() <= found.radius
    assert inside.flatten(1).all(1).double().mean() >= 0.9


def test_the_radius_is_the_inequality_of_maurer_and_pontil():
    copies, cutoff, elements, confidence = 400, 3.0, 6, 0.9
    generator = torch.Generator().manual_seed(0)
    terms = torch.rand(copies, 1, elements, generator=generator, dtype=torch.float64) - 0.5
    moments = torch.stack([terms.sum(0), terms.square().sum(0)])
    found = smoothed_maps._radius(moments, copies, cutoff, confidence)
    share = math.log(2 / ((1 - confidence) / elements / 2))
    expected = (2 * terms.var(0) * share / copies).sqrt() + 7 * cutoff * share / 3 / (copies - 1)
    beyond = torch.arange(0, 8, 1e-4, dtype=torch.float64)
    cut = (beyond * density(cutoff + beyond)).sum().item() * 1e-4
    assert torch.allclose(found, expected + cut, rtol=1e-6, atol=0)
    assert (found > expected + cut * 0.999).all()


def test_the_estimate_is_the_mean_gradient_that_smoothgrad_takes():
    network = Smooth(4, 2.0)
    subject = Classifier(network, mean=0.4, std=0.5)
    clean = images((1, 1, 2), 2)
    found = certify_smoothgrad(subject, clean, 0, eps=0.1, k=1, noise=NOISE, copies=20000)
    noise = torch.randn(20000, 1, 1, 2, generator=torch.Generator().manual_seed(1)).double()
    for row in range(2):
        points = (clean[row] + NOISE * noise).requires_grad_()
        (gradient,) = torch.autograd.grad(subject(points).softmax(1)[:, 0].sum(), points)
        error = 5 * gradient.std(0) / math.sqrt(20000)
        assert ((gradient.mean(0) - found.estimate[row]).abs() <= found.radius[row] + error).all()
        assert torch.allclose(gradient.mean(0), found.estimate[row], atol=0.03)


def test_more_draws_make_a_smaller_radius():
    subject, clean = Classifier(Steps(unit(0, (1, 2, 3)), 0.0, 1.0)), images((1, 2, 3))
    radii = [
        certify_smoothgrad(subject, clean, eps=0.1, k=1, copies=copies).radius.amax()
        for copies in (100, 1000, 10000)
    ]
    assert radii[0] > 2 * radii[1] > 4 * radii[2]


# --- what stays on top ----------------------------------------------------------------------------


def overlap(one, two, k):
    return len(set(one.topk(k).indices.tolist()) & set(two.topk(k).indices.tolist()))


@pytest.mark.parametrize("absolute", [False, True])
def test_the_guaranteed_overlap_is_kept_by_the_exact_map_all_over_the_ball(absolute):
    """A band between two pixels far above the rest; the exact map is followed along its axis."""
    shape = (1, 3, 3)
    direction = torch.full((9,), 0.05, dtype=torch.float64)
    direction[4], direction[7] = 0.75, -0.65
    direction = direction / direction.norm()
    network = Steps(direction, 0.1, 5.0)
    clean = images(shape, 2) * 0.2
    found = certify_smoothgrad(
        Classifier(network), clean, 1, eps=0.02, k=2, noise=NOISE, copies=20000, absolute=absolute
    )
    assert not found.vacuous.any()
    assert (found.overlap == (2 if absolute else 1)).all()
    own = network.expectation(clean)
    for share in torch.linspace(-1, 1, 21):
        moved = network.expectation(clean + 0.02 * share * direction.view(1, *shape))
        for row in range(2):
            maps = [
                each[row].flatten().abs() if absolute else each[row].flatten()
                for each in (own, moved)
            ]
            assert overlap(*maps, 2) >= found.overlap[row]
            assert (maps[1] - maps[0]).norm() <= found.displacement[row]


def test_a_large_ball_says_so():
    subject, clean = Classifier(Steps(unit(0, (1, 3, 3)), 0.0, 1.0)), images((1, 3, 3))
    found = certify_smoothgrad(subject, clean, eps=1.0, k=6, copies=1000)
    assert torch.allclose(found.displacement, torch.tensor(REACH / 0.15).double())
    assert found.vacuous.all()
    assert (found.overlap == 3).all()
    assert "vacuous for 3 of 3" in found.describe()


def test_all_elements_are_always_on_top_and_that_says_nothing():
    subject, clean = Classifier(Steps(unit(0, (1, 2, 2)), 0.0, 1.0)), images((1, 2, 2))
    found = certify_smoothgrad(subject, clean, eps=0.01, k=4, copies=10)
    assert (found.overlap == 4).all()
    assert (found.estimate_overlap == 4).all()
    assert found.vacuous.all()


def test_a_ball_that_is_a_point_keeps_everything():
    subject, clean = Classifier(Steps(unit(0, (1, 3, 3)), 0.0, 1.0)), images((1, 3, 3))
    found = certify_smoothgrad(subject, clean, eps=0, k=3, copies=10)
    assert (found.overlap == 3).all()
    assert not found.vacuous.any()
    assert (found.estimate_overlap < 3).all()


# --- draws, company, devices ----------------------------------------------------------------------


def test_neither_company_nor_chunk_changes_a_sample():
    subject, clean = Classifier(Smooth(0, 2.0)), images((1, 1, 2), 7)
    asked = {"eps": 0.01, "k": 1, "copies": 50, "seed": 3}
    whole = certify_smoothgrad(subject, clean, 1, **asked)
    for chunk in (1, 3, 64):
        with use_session(Session(settings=Settings(chunk=chunk))):
            part = certify_smoothgrad(subject, clean[2:5], 1, ids=[2, 3, 4], **asked)
        assert torch.allclose(part.estimate, whole.estimate[2:5], rtol=0, atol=1e-10)
        assert torch.allclose(part.radius, whole.radius[2:5], rtol=0, atol=1e-10)
    other = certify_smoothgrad(subject, clean, 1, **(asked | {"seed": 4}))
    assert not torch.allclose(other.estimate, whole.estimate)


def test_without_targets_the_prediction_is_explained():
    subject, clean = Classifier(Smooth(0, 2.0)), images((1, 1, 2), 5)
    asked = {"eps": 0.01, "k": 1, "copies": 20}
    given = certify_smoothgrad(subject, clean, subject(clean).argmax(1), **asked)
    assert torch.equal(certify_smoothgrad(subject, clean, **asked).estimate, given.estimate)


@pytest.mark.parametrize("float64", [True, False])
def test_an_accelerator_finds_what_the_host_finds(float64):
    shape = (3, 2, 4)
    subject, clean = Classifier(Steps(unit(0, shape), 0.3, 1.0, 5.0).float()), images(shape).float()
    asked = {"eps": 0.01, "k": 2, "copies": 40, "channels": "sum"}
    expected = certify_smoothgrad(subject, clean, 1, **asked)
    with (
        simulated_accelerator(float64=float64),
        use_session(Session(settings=Settings(device="sim"))),
    ):
        found = certify_smoothgrad(subject, clean, 1, **asked)
    assert torch.allclose(found.estimate.double(), expected.estimate, atol=1e-4)
    assert (found.radius.double() >= expected.radius - 1e-5).all()
    assert (found.displacement.double() >= expected.displacement).all()


# --- bad input ------------------------------------------------------------------------------------

WRONG = {
    "eps": ({"eps": -1.0}, InputError, "eps must be at least 0, but -1 came"),
    "eps type": ({"eps": "1"}, InputTypeError, "eps must be a number, but '1' came"),
    "eps count": ({"eps": torch.ones(2)}, InputError, "eps must hold one value for each of 3"),
    "norm": ({"norm": "l3"}, InputError, "norm must be one of 'linf', 'l2', 'l1', but 'l3' came"),
    "noise": ({"noise": 0.0}, InputError, "noise must be greater than 0, but 0 came"),
    "copies": ({"copies": 1}, InputError, "copies must be at least 2, but 1 came"),
    "k": ({"k": 0}, InputError, "k must be at least 1, but 0 came"),
    "large k": ({"k": 13}, InputError, "k must not exceed the 12 elements of a map, but 13 came"),
    "summed k": (
        {"k": 7, "channels": "sum"},
        InputError,
        "k must not exceed the 6 elements of a map, but 7 came",
    ),
    "k type": ({"k": 1.5}, InputTypeError, "k must be a whole number, but 1.5 came"),
    "confidence": ({"confidence": 1.0}, InputError, "confidence must be below 1, but 1 came"),
    "no confidence": ({"confidence": 0}, InputError, "confidence must be from 0 to 1"),
    "channels": ({"channels": "mean"}, InputError, "channels must be one of 'separate', 'sum'"),
    "absolute": ({"absolute": 1}, InputTypeError, "absolute must be True or False, but 1 came"),
    "seed": ({"seed": -1}, InputError, "seed must be at least 0, but -1 came"),
    "target": ({"targets": 2}, InputError, "targets must"),
}


@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(change, error, message):
    subject, clean = Classifier(Steps(unit(0, (2, 2, 3)), 0.0, 1.0)), images((2, 2, 3))
    with pytest.raises(error, match=message):
        certify_smoothgrad(subject, clean, **({"eps": 0.1, "k": 2, "copies": 4} | change))


class Bursting(nn.Module):
    """Finite in the valid range alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        total = inputs.flatten(1).sum(1)
        bad = torch.where(inputs.flatten(1).amin(1) < -0.2, torch.nan, total)
        return torch.stack([bad, -total], 1)


def test_logits_that_are_not_finite_beyond_the_range_are_refused():
    with pytest.raises(ModelError, match="a noisy copy of sample 0 are not finite"):
        certify_smoothgrad(Classifier(Bursting()), images((1, 2, 2)), eps=0.1, k=1, noise=1.0)


def test_the_module_is_left_as_it_came():
    network = Smooth(0, 1.0).train()
    state = torch.get_rng_state()
    certify_smoothgrad(Classifier(network), images((1, 1, 2)), eps=0.1, k=1, copies=4)
    assert network.training
    assert all(each.requires_grad for each in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
