"""The auto_LiRPA backend: sound where it answers, refused where the library is wrong."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pytest_triguard import verification
from pytest_triguard.verification import auto_lirpa
from pytest_triguard.verification.auto_lirpa import METHODS, AutoLirpa
from pytest_triguard.verification.intervals import Ball
from pytest_triguard.verification.operators import Unsupported
from tests.verification.peer import needs_peer, peer_bounds
from tests.verification.zoo import MEAN, STD, exact_logits, images, points_inside, problem
from tests.verification.zoo import network as zoo_network

FAST = 2
SUPPORTED = ["linear", "mlp", "convolutional head"]
REFUSED = {
    "activations": "Clip",
    "pools": "(MaxPool|AveragePool)",
    "residual": "Conv",
    "gated": "Div",
    "functional": "(Clip|MaxPool|ATen)",
    "shapes": "MatMul",
}
methods = pytest.mark.parametrize("method", METHODS)
few = settings(max_examples=3, deadline=None)


class Forward(nn.Module):
    """Modules, and what is done with them and the input."""

    def __init__(self, forward, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.does = forward

    def forward(self, inputs):
        return self.does(self.parts, inputs)


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


def boxes(eps, count=3, shape=(2, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    return (centre - eps).clamp(0, 1), (centre + eps).clamp(0, 1)


def differences(count, classes=3):
    eye = torch.eye(classes, dtype=torch.float64)
    return (eye[:1] - eye[1:]).expand(count, -1, -1)


def backend(module, method, shape=(2, 4, 4), **options):
    return AutoLirpa(module, None, torch.zeros(1, *shape), method, steps=FAST, **options)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def pooled():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 3, 2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 3),
    )


def dilated():
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def squeezed():
    """Values times a gate that depends on them, and parts joined."""

    def forward(parts, inputs):
        hidden = parts[0](inputs).relu()
        gated = hidden * parts[1](hidden.mean((2, 3), keepdim=True)).relu()
        return parts[2](torch.cat([gated, -inputs * 0.7], 1).permute(0, 2, 3, 1).flatten(1))

    return Forward(forward, nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(96, 3))


# --- sound, and as tight as it should be --------------------------------------------------------


@needs_peer
@methods
@pytest.mark.parametrize("name", SUPPORTED)
@few
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.01, 0.1, 0.5]))
def test_every_output_of_the_box_is_inside_the_bounds(name, method, seed, eps):
    subject, inputs, _ = problem(name, 2, seed, torch.float32)
    lower, upper = ((inputs + by).clamp(0, 1) for by in (-eps, eps))
    bounded = AutoLirpa(
        subject.module, (torch.tensor([MEAN]), torch.tensor([STD])), inputs, method, steps=FAST
    )
    rows = differences(2)
    found = bounded.margins(lower, upper, rows)
    for place in range(2):
        points = points_inside(lower[place], upper[place], 64, seed)
        logits = exact_logits(subject, points)
        assert (logits >= found.logits.lower[place] - 1e-6).all()
        assert (logits <= found.logits.upper[place] + 1e-6).all()
        assert (logits @ rows[place].T >= found.margin[place]).all()


def residual():
    return Forward(
        lambda parts, x: parts[3]((parts[2](parts[1](parts[0](x)).relu()) + x).relu().flatten(1)),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 3, padding=1, bias=False),
        nn.Linear(32, 3),
    )


@needs_peer
@methods
@pytest.mark.parametrize("build", [convolutional, pooled, residual, dilated, squeezed])
@pytest.mark.parametrize("eps", [0.03, 0.3])
def test_no_gradient_descent_gets_below_the_margin(build, method, eps):
    if build is pooled and method == "alpha_crown":
        pytest.skip("refused")
    module = seeded(build, seed=1)
    lower, upper = boxes(eps)
    rows = differences(3)
    margin = backend(module, method).margins(lower, upper, rows).margin
    points = lower + (upper - lower) * torch.rand(64, *lower.shape).double()
    for _ in range(10):
        points = points.detach().requires_grad_()
        logits = module(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        values = torch.einsum("nsk,rnk->rns", rows, logits)
        assert (values >= margin).all()
        values[0::2, :, 0].sum().add(values[1::2, :, 1].sum()).backward()
        step = points.grad.sign() * (upper - lower) / 5
        points = torch.minimum(torch.maximum(points - step, lower), upper)


@needs_peer
@pytest.mark.parametrize("name", SUPPORTED)
def test_intervals_agree_with_this_projects(name):
    subject, inputs, _ = problem(name, 4)
    lower, upper = ((inputs + by).clamp(0, 1) for by in (-0.05, 0.05))
    own = verification.bounds(subject, lower, upper, method="ibp")
    seen = [(end - MEAN) / STD for end in (lower, upper)]
    theirs = peer_bounds(subject.module.eval(), *seen, "ibp")
    for ours, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)


@needs_peer
@methods
@pytest.mark.parametrize("name", REFUSED)
def test_networks_with_other_operators_are_refused_by_name(name, method):
    with pytest.raises(Unsupported, match=rf"{REFUSED[name]} at"):
        AutoLirpa(zoo_network(name), None, images(name, 1), method)


@needs_peer
def test_a_refusal_names_the_module_path():
    module = nn.Sequential()
    module.add_module("body", nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    module.add_module("squash", nn.Sigmoid())
    with pytest.raises(Unsupported, match="Sigmoid at squash is not among"):
        backend(module, "crown")


@needs_peer
@methods
def test_bounds_of_a_linear_network_are_exact(method):
    module = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    lower, upper = boxes(0.1)
    rows = differences(3)
    merged = rows @ module[1].weight.detach()
    centre, radius = (lower + upper).flatten(1) / 2, (upper - lower).flatten(1) / 2
    exact = (merged @ centre.unsqueeze(2) - merged.abs() @ radius.unsqueeze(2)).squeeze(2)
    exact = exact + rows @ module[1].bias.detach()
    found = backend(module, method).margins(lower, upper, rows)
    torch.testing.assert_close(found.margin + found.slack, exact, rtol=1e-12, atol=1e-12)


@needs_peer
@pytest.mark.parametrize(("norm", "dual"), [("l2", 2.0), ("l1", torch.inf)])
@pytest.mark.parametrize("method", ["crown", "ibp"])
def test_bounds_over_a_ball_are_those_of_the_dual_norm(method, norm, dual):
    module = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    lower, upper = boxes(0.1)
    centre, radius = (lower + upper) / 2, torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64)
    rows = differences(3)
    subject = AutoLirpa(module, (torch.tensor([0.4] * 2), torch.tensor([0.5] * 2)), centre, method)
    found = subject.margins(
        lower, upper, rows, Ball(centre, torch.ones_like(centre[:1]), radius, norm)
    )
    merged = rows @ module[1].weight.detach() / 0.5
    clean = (rows @ module((centre - 0.4) / 0.5).detach().unsqueeze(2)).squeeze(2)
    exact = clean - torch.linalg.vector_norm(merged, ord=dual, dim=2) * radius.unsqueeze(1)
    torch.testing.assert_close(found.margin + found.slack, exact, rtol=1e-7, atol=1e-7)


@needs_peer
def test_a_ball_behind_an_uneven_normalisation_is_refused():
    module = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    lower, upper = boxes(0.1)
    uneven = (torch.tensor([0.4, 0.4]), torch.tensor([0.5, 0.6]))
    subject = AutoLirpa(module, uneven, lower, "crown")
    ball = Ball(lower, torch.ones_like(lower[:1]), torch.full((3,), 0.1).double(), "l2")
    found = subject.margins(lower, upper, differences(3), ball)
    assert "no l2 ball behind a normalisation that differs" in found.reasons[0]
    assert found.margin.isnan().all()


# --- the known bugs, one by one -----------------------------------------------------------------


@needs_peer
@methods
def test_division_is_refused(method):
    module = Forward(
        lambda parts, x: parts[0](x.flatten(1)) / (1 + parts[1](x.flatten(1)).relu()),
        nn.Linear(32, 3),
        nn.Linear(32, 3),
    )
    with pytest.raises(Unsupported, match="Div at the top is not among the operators"):
        backend(module, method)


@needs_peer
@methods
@pytest.mark.parametrize("slope", [1.5, -0.5])
def test_a_leaky_relu_that_is_not_convex_is_refused(method, slope):
    """Its chord is no upper line: the library proved what random points broke."""
    activation = nn.LeakyReLU(slope)
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 5), activation, nn.Linear(5, 3))
    with pytest.raises(Unsupported, match=rf"LeakyRelu at 2 has negative_slope={slope:g}"):
        backend(module, method)


@needs_peer
@methods
def test_layer_norm_is_refused(method):
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    with pytest.raises(Unsupported, match="at 2 is not among the operators"):
        backend(module, method)


@needs_peer
@methods
def test_dropout_is_bounded_as_in_evaluation(method):
    plain = seeded(convolutional)
    dropping = nn.Sequential(plain[:5], nn.Dropout(0.9), plain[5], nn.Dropout2d(0.9))
    found = [
        backend(each, method).margins(*boxes(0.05), differences(3)).margin
        for each in (plain, dropping.train())
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def viewed():
    return Forward(
        lambda parts, x: parts[1](parts[0](x).relu().view(x.size(0), -1)),
        nn.Conv2d(2, 4, 3),
        nn.Linear(16, 3),
    )


@needs_peer
@methods
@pytest.mark.parametrize("build", [convolutional, pooled, dilated, viewed, squeezed])
def test_no_result_depends_on_the_other_samples(build, method):
    if build is pooled and method == "alpha_crown":
        pytest.skip("refused")
    subject = backend(seeded(build), method)
    lower, upper = boxes(0.15, count=3)
    together = subject.margins(lower, upper, differences(3)).margin
    alone = [
        subject.margins(lower[[place]], upper[[place]], differences(1)).margin
        for place in (2, 0, 1)
    ]
    torch.testing.assert_close(together[[2, 0, 1]], torch.cat(alone), rtol=1e-9, atol=1e-9)


@needs_peer
@pytest.mark.parametrize("seed", range(4))
def test_alpha_crown_works_where_most_neurons_are_unstable(seed):
    module = seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        ),
        seed,
    )
    lower, upper = boxes(0.4, seed=seed)
    loose, tight = (
        backend(module, method).margins(lower, upper, differences(3)).margin
        for method in ("crown", "alpha_crown")
    )
    assert (tight >= loose).all()


@needs_peer
def test_alpha_crown_optimises():
    lower, upper = boxes(0.1)
    loose, tight = (
        backend(seeded(convolutional), method).margins(lower, upper, differences(3)).margin
        for method in ("crown", "alpha_crown")
    )
    assert (tight >= loose).all()
    assert tight.mean() > loose.mean() + 1e-3


@needs_peer
def test_an_alpha_crown_that_does_not_optimise_is_refused(monkeypatch):
    monkeypatch.setattr(auto_lirpa, "GradientAtTheEnds", torch.no_grad)
    with pytest.raises(
        Unsupported, match=r"alpha-CROWN by auto_LiRPA .*does not|cannot be bounded"
    ):
        backend(seeded(convolutional), "alpha_crown")


@needs_peer
def test_alpha_crown_with_max_pool_is_refused():
    with pytest.raises(
        Unsupported, match=r"MaxPool at 1: alpha-CROWN .* does not work with max-pool"
    ):
        backend(seeded(pooled), "alpha_crown")


@needs_peer
@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1), nn.AvgPool2d(3, 1)])
def test_pools_that_overlap_are_refused(pool):
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), pool, nn.AdaptiveAvgPool2d(1))
    module.append(nn.Flatten())
    with pytest.raises(Unsupported, match="at 1 overlaps or is padded"):
        backend(module, "crown")


@needs_peer
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    module = convolutional()
    with torch.no_grad():
        module[0].bias[0] = value
    with pytest.raises(Unsupported, match=r"0.bias is not finite"):
        backend(module, "ibp")


@needs_peer
@methods
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_the_slack_outweighs_the_rounding_on_tiny_boxes(method, eps):
    module = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3))).float()
    lower, upper = boxes(eps, count=1)
    weights = [[Fraction(value) for value in row] for row in module[1].weight.tolist()]
    bias = [Fraction(value) for value in module[1].bias.tolist()]
    ends = [[Fraction(value) for value in end.flatten().tolist()] for end in (lower, upper)]
    found = backend(module, method).margins(lower, upper, differences(1)).margin[0].tolist()
    for other, margin in enumerate(found, start=1):
        moved = [a - b for a, b in zip(weights[0], weights[other], strict=True)]
        least = (
            bias[0]
            - bias[other]
            + sum(
                min(weight * low, weight * high)
                for weight, low, high in zip(moved, *ends, strict=True)
            )
        )
        assert Fraction(margin) <= least
        assert float(least) - margin < 1e-8


@needs_peer
@pytest.mark.parametrize("build", [dilated, lambda: dilated()[2:]])
def test_convolutions_that_patches_get_wrong_are_stored_as_matrices(build):
    module = seeded(build)
    shape = (2, 4, 4) if len(module) == 6 else (4, 2, 2)
    assert backend(module, "crown", shape).conv_mode == "matrix"
    assert backend(seeded(convolutional), "crown").conv_mode == "patches"
    with pytest.raises(
        Unsupported, match=r"Conv at [02] is not bounded soundly .* in patches mode"
    ):
        backend(module, "crown", shape, conv_mode="patches")


@needs_peer
def test_patches_and_matrices_agree():
    module = seeded(convolutional)
    lower, upper = boxes(0.1)
    low = {
        mode: peer_bounds(module, lower, upper, "crown", conv_mode=mode)[0]
        for mode in ("patches", "matrix")
    }
    torch.testing.assert_close(low["patches"], low["matrix"], rtol=1e-9, atol=1e-9)


@needs_peer
def test_weights_that_depend_on_the_input_are_refused():
    module = Forward(
        lambda parts, x: functional.linear(parts[0](x.flatten(1)), parts[1](x.flatten(1))[:3]),
        nn.Linear(32, 4),
        nn.Linear(32, 4),
    )
    with pytest.raises(Unsupported, match="at the top"):
        AutoLirpa(module, None, torch.zeros(1, 2, 4, 4), "ibp")


@needs_peer
@methods
def test_a_branch_that_tracing_froze_refuses_the_samples_that_take_it(method):
    module = Forward(
        lambda parts, x: parts[0](x.flatten(1)) if x.sum() > 0 else parts[1](x.flatten(1)),
        nn.Linear(32, 3),
        nn.Linear(32, 3),
    )
    ends = torch.tensor([-0.2, 0.1, -0.4]).view(3, 1, 1, 1).expand(3, 2, 4, 4)
    found = backend(module, method).margins(ends, ends + 0.1, differences(3))
    assert found.reasons[0] is found.reasons[2] is None
    assert "auto_LiRPA does not compute what Forward computes" in found.reasons[1]
    assert found.margin.isnan().all(1).tolist() == [False, True, False]


@needs_peer
def test_bounds_that_do_not_hold_the_logits_are_refused(monkeypatch):
    subject = backend(seeded(convolutional), "crown")
    true = AutoLirpa._asked

    def shrunk(self, around, rows, name, *, sparse):
        return true(self, around, rows, name, sparse=sparse) + 5

    monkeypatch.setattr(AutoLirpa, "_asked", shrunk)
    found = subject.margins(*boxes(0.01), differences(3))
    assert "bounds by auto_LiRPA do not hold the module's own logits" in found.reasons[0]
    assert found.margin.isnan().all()


@needs_peer
def test_what_a_proof_means_is_stated():
    subject = backend(seeded(convolutional), "crown")
    assert "sound up to float rounding" in subject.statement
    assert "1e-09" in subject.statement
    found = subject.margins(*boxes(0.01), differences(3))
    largest = torch.maximum(found.logits.lower.abs(), found.logits.upper.abs()).amax(1)
    torch.testing.assert_close(found.slack[:, 0], 1e-9 * largest.clamp_min(1))
