"""Attacks that accumulate gradients: what they reduce to, and the equations by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard import attacks
from pytest_triguard.attacks import transforms
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.baselines import blurred
from pytest_triguard.errors import InputError, InputTypeError
from tests.attacks.table import CASES, EPS, refused, stepping_cases
from tests.networks import CLASSES, bare, problem
from tests.sessions import with_settings

both_goals = pytest.mark.parametrize("targeted", [False, True])
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])
STILL = {"rho": 0.0, "sigma": 0.0}


def run(name, norm, targeted=False, network="conv", trajectory=False, **options):
    subject, inputs, labels = problem(network, 6)
    attack = attacks.get(name, norm=norm, eps=2 * EPS[norm], trajectory=trajectory, **options)
    targets = (labels + 1) % CLASSES if targeted else None
    return attack(subject, inputs, labels, targets=targets)


def alike(first, second, tolerance=0.0):
    return torch.allclose(first.adversarial, second.adversarial, rtol=0, atol=tolerance)


REDUCTIONS = [
    ("mim", {"momentum": 0.0}, "bim", {"stop": "never"}),
    ("si_nim", {"copies": 1}, "nim", {}),
    ("si_nim", {"copies": 1, "momentum": 0.0}, "bim", {"stop": "never"}),
    ("dim", {"probability": 0.0, "rate": 1.5}, "mim", {}),
    ("tim", {"size": 1}, "mim", {}),
    ("sia", {"copies": 1, "operations": ["identity"]}, "mim", {}),
    ("ssa", {"copies": 1, **STILL}, "mim", {}),
]
COMPOSITIONS = [
    ("mim", ["si"], "mim", [transforms.get("si", copies=5)]),
    ("nim", ["si"], "si_nim", []),
    ("mim", [transforms.get("dim", rate=1.5), "tim"], "tim", [transforms.get("dim", rate=1.5)]),
    ("mim", [transforms.get("ssa", copies=2)], "ssa", []),
    ("ssa", [transforms.get("tim", size=7)], "fsps", []),
]


def test_the_gradient_of_ssa_is_that_at_the_changed_spectrum_and_not_through_it():
    """Of a linear output it is the weight, which a mask of the spectrum would change."""
    subject, inputs, labels = problem("linear", 4)
    attack = attacks.get("ssa", loss="logit", copies=2, steps=3, rho=0.5, trajectory=True)
    found = attack(subject, inputs, labels).trajectory.gradients
    expected = -bare(subject)[1].weight[labels].view(4, 1, *inputs.shape[1:]).expand_as(found)
    assert torch.allclose(found, expected, rtol=1e-9)


@both_norms
@both_goals
@pytest.mark.parametrize(("name", "options", "other", "others"), REDUCTIONS)
def test_a_method_without_what_makes_it_is_the_one_before(
    name, options, other, others, norm, targeted
):
    first = run(name, norm, targeted, **options)
    second = run(other, norm, targeted, **others)
    assert alike(first, second)
    assert torch.equal(first.passes, second.passes)


@both_norms
@pytest.mark.parametrize(
    ("name", "options", "other"),
    [
        ("sia", {"copies": 3, "operations": ["identity"]}, "mim"),
        ("ssa", {"copies": 3} | STILL, "mim"),
    ],
)
def test_copies_that_are_all_alike_change_nothing(name, options, other, norm):
    found, expected = run(name, norm, **options), run(other, norm)
    assert alike(found, expected, 1e-9)
    assert torch.equal(found.passes, 3 * expected.passes)


@pytest.mark.parametrize(("name", "added", "other", "others"), COMPOSITIONS)
def test_a_method_is_another_with_the_transforms_it_is_made_of(name, added, other, others):
    few = {"copies": 2} if "ssa" in (name, other) else {}
    still = {"search_steps": 0} if other == "fsps" else {}
    first = run(name, "linf", transforms=added, **(few if name == "ssa" else {}))
    assert alike(first, run(other, "linf", transforms=others, **few, **still))
    assert not alike(first, run(name, "linf", **(few if name == "ssa" else {})))


def scaled(gradients):
    return gradients / gradients.abs().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("case", [c for c in CASES if "momentum" in c.row.defaults], ids=str)
def test_steps_follow_the_accumulated_gradients(case):
    _, inputs, labels = problem("conv", 5)
    eps, momentum = EPS[case.norm], 0.7
    even = {"decay": 1.0} if case.row.name == "gra" else {}  # steps as long for every element
    attack = case.attack(whole=True, trajectory=True, steps=4, momentum=momentum, **even)
    with with_settings(chunk=3):
        found = attack(problem("conv", 5)[0], inputs, labels, targets=case.targets(labels))
    path = found.trajectory
    gathered, points = 0, path.points[:, 0]
    assert torch.equal(points, inputs)
    for step in range(4):
        gathered = momentum * gathered + scaled(path.gradients[:, step])
        if case.norm == "linf":
            offset = points + eps / 4 * gathered.sign() - inputs
            offset = offset.clamp(-eps, eps)
        else:
            way = functional.normalize(gathered.flatten(1)).view_as(inputs)
            offset = torch.renorm(points + eps / 4 * way - inputs, 2, 0, eps)
        points = (inputs + offset).clamp(0, 1)
        assert torch.allclose(path.points[:, step + 1], points, rtol=0, atol=1e-7)
    assert torch.equal(path.points[:, 4], found.adversarial)


def smoothed(gradient, size=5):
    profile = torch.exp(-0.5 * torch.linspace(-3, 3, size, dtype=gradient.dtype) ** 2)
    kernel = torch.outer(profile, profile)
    weight = (kernel / kernel.sum()).expand(gradient.shape[1], 1, size, size)
    return functional.conv2d(gradient, weight, padding="same", groups=gradient.shape[1])


@both_goals
@pytest.mark.parametrize("network", ["conv", "residual"])
@pytest.mark.parametrize(
    ("name", "options", "ahead", "copies", "smooth"),
    [
        ("mim", {}, False, 1, False),
        ("nim", {}, True, 1, False),
        ("si_nim", {"copies": 3}, True, 3, False),
        ("tim", {"size": 5}, False, 1, True),
        ("si_nim", {"transforms": [transforms.get("tim", size=5)]}, True, 5, True),
    ],
    ids=["mim", "nim", "si_nim", "tim", "si_ni_tim"],
)
def test_a_deterministic_method_equals_its_equations_by_hand(
    name, options, ahead, copies, smooth, network, targeted
):
    subject, inputs, labels = problem(network, 4)
    eps, size, momentum = 0.08, 0.02, 0.9
    goal, sign = ((labels + 1) % CLASSES, -1) if targeted else (labels, 1)
    gathered, points = torch.zeros_like(inputs), inputs
    for _ in range(6):
        start = (points + size * momentum * gathered if ahead else points).requires_grad_()
        losses = [
            functional.cross_entropy(bare(subject)(start / 2**copy), goal, reduction="sum")
            for copy in range(copies)
        ]
        (gradient,) = torch.autograd.grad(sign * sum(losses) / copies, start)
        gradient = smoothed(gradient) if smooth else gradient
        gathered = momentum * gathered + scaled(gradient)
        points = (points + size * gathered.sign()).detach().clamp(inputs - eps, inputs + eps)
        points = points.clamp(0, 1)
    attack = attacks.get(name, eps=eps, step_size=size, steps=6, momentum=momentum, **options)
    found = attack(subject, inputs, labels, targets=goal if targeted else None)
    assert torch.allclose(found.adversarial, points, rtol=0, atol=1e-9)


@stepping_cases
def test_what_is_reported_is_what_was_spent(case):
    subject, inputs, labels = problem("conv", 5)
    attack = case.attack(whole=True)
    found = attack(subject, inputs, labels, targets=case.targets(labels))
    assert found.passes.tolist() == [case.row.passes(getattr(attack, "steps", 1))] * 5
    assert found.cost["backward"] == found.passes.sum()
    assert attack.passes_per_sample == found.passes[0]


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_no_pass_holds_more_rows_than_the_chunk(chunk):
    subject, inputs, labels = problem("conv", 5)
    rows = []
    subject.module.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    attack = attacks.get("mim", steps=1, transforms=["ssa", transforms.get("si", copies=2)])
    with with_settings(chunk=chunk):
        attack(subject, inputs, labels)
    assert max(rows[4:]) <= chunk  # the first passes only look at the module
    full = [each for each in rows[4:] if each == chunk - chunk % min(chunk, 5)]
    assert len(full) > 0.8 * len(rows[4:])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"momentum": -1}, InputError, "momentum must be at least 0, but -1 came"),
        (
            {"transforms": "tim"},
            InputTypeError,
            "transforms must be a list of names or transforms, but 'tim' came",
        ),
        ({"transforms": ["tin"]}, InputError, "unknown transform 'tin'; did you mean 'tim'?"),
        ({"transforms": [3]}, InputTypeError, "the name of a transform must be a string, but 3"),
        (
            {"transforms": ["tim", transforms.get("tim", size=3)]},
            InputError,
            "transforms must name each once, but 'tim' came twice",
        ),
    ],
)
def test_bad_hyperparameters_of_the_family_are_refused(options, error, message):
    with refused(error, message):
        attacks.get("mim", **options)


@pytest.mark.parametrize(
    ("name", "own"),
    [("dim", "dim"), ("tim", "tim"), ("si_nim", "si"), ("sia", "sia"), ("ssa", "ssa")],
)
def test_a_transform_that_the_method_is_made_of_is_not_added_again(name, own):
    with refused(InputError, f"transforms must not name '{own}', which {name} applies by itself;"):
        attacks.get(name, transforms=[own])


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("si_nim", {"copies": 0}, InputError, "copies must be at least 1, but 0 came"),
        ("dim", {"probability": 1.5}, InputError, "probability must be from 0 to 1, but 1.5 came"),
        ("dim", {"rate": 0}, InputError, "rate must be greater than 0, but 0 came"),
        ("tim", {"size": 4}, InputError, "size must be odd, but 4 came"),
        ("tim", {"kernel": "box"}, InputError, "kernel must be one of 'gaussian', 'uniform', 'l"),
        ("sia", {"blocks": 0}, InputError, "blocks must be at least 1, but 0 came"),
        ("sia", {"noise": -1}, InputError, "noise must be at least 0, but -1 came"),
        ("sia", {"operations": []}, InputError, "operations must name at least one, but an empty"),
        ("sia", {"operations": ["flip"]}, InputError, "operations must be one of 'roll_rows', '"),
        ("sia", {"operations": "scale"}, InputTypeError, "operations must be a list of names, bu"),
        ("ssa", {"rho": -0.5}, InputError, "rho must be at least 0, but -0.5 came"),
        ("ssa", {"sigma": -1}, InputError, "sigma must be at least 0, but -1 came"),
    ],
)
def test_bad_hyperparameters_of_a_method_are_refused(name, options, error, message):
    with refused(error, message):
        attacks.get(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dim", {}, "rate must leave room to resize inputs of 8 x 6 pixels, but 1.1 came"),
        ("sia", {"blocks": 7}, "blocks must not exceed the sides of the inputs, 8 x 6 pixels, but"),
    ],
)
def test_inputs_that_are_too_small_are_refused(name, options, message):
    with refused(InputError, message):
        run(name, "linf", **options)


class Root(nn.Module):
    """Falls by the root of the first pixel, which is infinitely steep where that is black."""

    def forward(self, inputs: Tensor) -> Tensor:
        root = inputs[:, 0, 0, 0].sqrt()
        return torch.stack([0.1 - root, torch.zeros_like(root)], 1)


@pytest.mark.parametrize("name", ["mim", "nim", "naa"])
def test_an_infinite_slope_is_followed_and_does_not_pass_for_robust(name):
    inputs = torch.full((2, 1, 3, 4), 0.5)
    inputs[:, :, 0, 0] = 0
    subject, labels = Classifier(Root()), torch.zeros(2, dtype=torch.int64)
    for found in (attacks.get(each, eps=0.04)(subject, inputs, labels) for each in ("bim", name)):
        assert found.success.all()


def test_reports_name_the_transforms():
    attack = attacks.get("mim", transforms=["tim", transforms.get("ssa", copies=2)], seed=1)
    assert attack.describe() == (
        "mim: start at the sample, 10 steps of 0.1 eps up the cross_entropy, all taken, seed 1, "
        "momentum 1, with tim, ssa, 20 passes at most"
    )
    assert attack.parameters()["transforms"] == [
        {"transform": "tim", "size": 15, "kernel": "gaussian"},
        {"transform": "ssa", "copies": 2, "rho": 0.5, "sigma": 16 / 255},
    ]


# --- methods with estimates of their own --------------------------------------------------------


def gradient_of(subject, points, labels, loss="cross_entropy"):
    """Return the gradient of the cross-entropy, or of minus the probability, of the labels."""
    points = points.detach().requires_grad_()
    logits = bare(subject)(points)
    if loss == "cross_entropy":
        total = functional.cross_entropy(logits, labels, reduction="sum")
    else:
        total = -logits.softmax(1).gather(1, labels.unsqueeze(1)).sum()
    return torch.autograd.grad(total, points)[0]


def estimates(name, subject, inputs, labels, **options):
    """Return the points and the estimated gradients of an attack, step by step."""
    attack = attacks.get(name, eps=0.06, trajectory=True, **options)
    path = attack(subject, inputs, labels).trajectory
    return path.points.transpose(0, 1), path.gradients.transpose(0, 1), path.directions


@pytest.mark.parametrize("weights", ["integral", "chain"])
@pytest.mark.parametrize("baseline", ["zero", "blur"])
def test_mig_integrates_the_gradient_of_the_probability(weights, baseline):
    subject, inputs, labels = problem("smooth", 4)
    points, found, _ = estimates(
        "mig", subject, inputs, labels, points=4, weights=weights, baseline=baseline, steps=3
    )
    start = torch.zeros_like(inputs) if baseline == "zero" else blurred(inputs)
    for at, estimate in zip(points[:-1], found, strict=True):
        ways = [(i + 1) / 4 for i in range(4)]
        terms = [gradient_of(subject, start + way * (at - start), labels, "p") for way in ways]
        factors = ways if weights == "chain" else [1] * 4
        mean = sum(each * factor for each, factor in zip(terms, factors, strict=True)) / 4
        assert torch.allclose(estimate, (at - start) * mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2])
def test_mig_leaves_a_baseline_of_all_samples_as_it_is_while_places_are_refilled(chunk):
    subject, inputs, labels = problem("conv", 5)
    baseline = torch.full_like(inputs[0], 0.25)
    with with_settings(chunk=chunk):
        found = attacks.get("mig", steps=2, points=2, baseline=baseline)(subject, inputs, labels)
    of_each = attacks.get("mig", steps=2, points=2, baseline=baseline.expand_as(inputs).clone())
    assert alike(found, of_each(subject, inputs, labels), 1e-12)
    assert (baseline == 0.25).all()


def test_mig_of_one_point_follows_the_attribution_of_the_probability():
    subject, inputs, labels = problem("conv", 4)
    found = attacks.get("mig", eps=0.01, steps=1, points=1)(subject, inputs, labels)
    way = (inputs * gradient_of(subject, inputs, labels, "p")).sign()
    expected = (inputs + 0.01 * way).clamp(0, 1)
    assert torch.allclose(found.adversarial, expected, rtol=0, atol=1e-12)
    assert torch.equal(found.adversarial[inputs == 0], inputs[inputs == 0])


def test_gra_weighs_the_gradient_with_its_neighbourhoods_by_their_cosine():
    subject, inputs, labels = problem("conv", 4)
    options = {"copies": 3, "steps": 2, "seed": 4}
    _, found, _ = estimates("gra", subject, inputs, labels, **options)
    _, around, _ = estimates(
        "mim", subject, inputs, labels, steps=1, seed=4,
        transforms=[transforms.get("neighbourhood", copies=3)],
    )  # fmt: skip
    here = gradient_of(subject, inputs, labels)
    share = functional.cosine_similarity(here.flatten(1), around[0].flatten(1)).view(-1, 1, 1, 1)
    expected = share * here + (1 - share) * around[0]
    assert torch.allclose(found[0], expected, rtol=0, atol=1e-12)
    assert (share < 0.9999).all()


def test_gra_without_a_neighbourhood_is_mim_with_decaying_steps():
    subject, inputs, labels = problem("conv", 5)
    even = {"beta": 0.0, "copies": 2, "decay": 1.0}
    assert alike(run("gra", "l2", **even), run("mim", "l2"), 1e-9)
    points, gradients, directions = estimates(
        "gra", subject, inputs, labels, beta=0.0, copies=1, decay=0.5, step_size=0.03
    )
    assert torch.allclose(gradients[3], gradient_of(subject, points[3], labels), atol=1e-12)
    gathered, share = torch.zeros_like(inputs), torch.full_like(inputs, 2)
    for step in range(10):
        before, gathered = gathered, gathered + scaled(gradients[step])
        share = torch.where(before.sign() == gathered.sign(), share, share / 2)
        assert torch.allclose(directions[:, step], share * gathered.sign(), rtol=0, atol=1e-12)
    assert share.unique().numel() > 2


@pytest.mark.parametrize("layer", ["0", "2", "6"])
def test_naa_weakens_the_features_that_speak_for_the_label(layer):
    subject, inputs, labels = problem("conv", 4)
    network, place = bare(subject), int(layer)
    head, tail = network[: place + 1], network[place + 1 :]
    weights = 0
    for number in range(5):
        features = head(inputs * number / 5).detach().requires_grad_()
        chosen = tail(features).softmax(1).gather(1, labels.unsqueeze(1)).sum()
        weights = weights + torch.autograd.grad(chosen, features)[0] / 5
    for given in (layer, subject.module[place]):
        points, found, _ = estimates("naa", subject, inputs, labels, points=5, steps=2, layer=given)
        for at, estimate in zip(points[:-1], found, strict=True):
            at = at.clone().requires_grad_()
            (gradient,) = torch.autograd.grad((head(at) * weights).sum(), at)
            assert torch.allclose(estimate, -gradient, rtol=0, atol=1e-12)


def test_naa_on_a_linear_network_goes_straight_along_the_mean_gradient():
    subject, inputs, labels = problem("linear", 4)
    terms = [gradient_of(subject, inputs * number / 30, labels, "p") for number in range(30)]
    expected = (inputs + 0.06 * sum(terms).sign()).clamp(0, 1)
    found = attacks.get("naa", eps=0.06)(subject, inputs, labels).adversarial
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_naa_takes_the_last_layer_of_a_quarter_of_the_size():
    own, named = (run("naa", "linf", layer=layer) for layer in (None, "3"))
    assert alike(own, named)
    assert not alike(own, run("naa", "linf", layer="0"))
    noisy = run("naa", "linf", noise=0.2)
    assert not alike(own, noisy)


def test_fsps_takes_later_gradients_where_the_loss_is_lower():
    subject, inputs, labels = problem("smooth", 4)
    options = {"rho": 0.0, "sigma": 0.0, "copies": 1, "size": 1}
    points, found, _ = estimates(
        "fsps", subject, inputs, labels, steps=6, search_steps=3, **options
    )
    for step, (at, estimate) in enumerate(zip(points[:-1], found, strict=True)):
        for _ in range(3 if step > 3 else 0):
            at = at - 0.005 * gradient_of(subject, at, labels).sign()
            at = at.clamp(inputs - 0.03, inputs + 0.03).clamp(0, 1)
        expected = gradient_of(subject, at, labels)
        assert torch.allclose(estimate, expected, rtol=0, atol=1e-9), step


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("gra", {"beta": -1}, InputError, "beta must be at least 0, but -1 came"),
        ("gra", {"decay": 0}, InputError, "decay must be from 0 to 1 (0 excluded), but 0 came"),
        ("mig", {"points": 0}, InputError, "points must be at least 1, but 0 came"),
        ("mig", {"weights": "even"}, InputError, "weights must be one of 'integral', 'chain', bu"),
        ("mig", {"baseline": "black"}, InputError, "baseline must be one of"),
        ("naa", {"points": 0}, InputError, "points must be at least 1, but 0 came"),
        ("naa", {"noise": -1}, InputError, "noise must be at least 0, but -1 came"),
        ("naa", {"layer": 3}, InputTypeError, "layer must be a module or its dotted name, but 3"),
        ("naa", {"layer": "9"}, InputError, "layer must name a module of the classifier, but '9'"),
        ("fsps", {"search_steps": -1}, InputError, "search_steps must be at least 0, but -1 came"),
        ("fsps", {"search_after": 2}, InputError, "search_after must be from 0 to 1, but 2 came"),
        ("fsps", {"search_radius": -1}, InputError, "search_radius must be at least 0, but -1 c"),
        ("fsps", {"transforms": ["tim"]}, InputError, "transforms must not name 'tim', which fs"),
    ],
)
def test_bad_hyperparameters_of_these_are_refused(name, options, error, message):
    with refused(error, message):
        run(name, "linf", **options)


@pytest.mark.parametrize("name", ["gra", "mig", "naa", "fsps"])
def test_these_take_transforms_too(name):
    added = [transforms.get("si", copies=2)]
    few = {"copies": 2} if name in ("gra", "fsps") else {"points": 2}
    plain, more = run(name, "linf", **few), run(name, "linf", transforms=added, **few)
    assert not alike(plain, more)
    attack = attacks.get(name, transforms=added, **few)
    assert more.passes[0] == attack.passes_per_sample
    assert more.cost["backward"] == more.passes.sum()
