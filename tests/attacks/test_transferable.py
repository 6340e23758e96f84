"""Attacks that accumulate gradients: what they reduce to, and the equations by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pytest_triguard import attacks
from pytest_triguard.attacks import transforms
from pytest_triguard.errors import InputError, InputTypeError
from tests.attacks.table import CASES, EPS, every_case
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
]


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
    options = {"copies": 2} if other == "ssa" else {}
    first = run(name, "linf", transforms=added)
    assert alike(first, run(other, "linf", transforms=others, **options))
    assert not alike(first, run(name, "linf"))


def scaled(gradients):
    return gradients / gradients.abs().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("case", [c for c in CASES if "momentum" in c.row.defaults], ids=str)
def test_steps_follow_the_accumulated_gradients(case):
    _, inputs, labels = problem("conv", 5)
    eps, momentum = EPS[case.norm], 0.7
    attack = case.attack(whole=True, trajectory=True, steps=4, momentum=momentum)
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


@every_case
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
    assert max(rows[3:]) <= chunk  # the first passes are the probe's
    full = [each for each in rows[3:] if each == chunk - chunk % min(chunk, 5)]
    assert len(full) > 0.8 * len(rows[3:])


def refused(error, message):
    return pytest.raises(error, match=message)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"momentum": -1}, InputError, "^momentum must be at least 0, but -1 came$"),
        (
            {"transforms": "tim"},
            InputTypeError,
            "^transforms must be a list of names or transforms, but 'tim' came$",
        ),
        ({"transforms": ["tin"]}, InputError, "^unknown transform 'tin'; did you mean 'tim'?"),
        ({"transforms": [3]}, InputTypeError, "^the name of a transform must be a string, but 3"),
        (
            {"transforms": ["tim", transforms.get("tim", size=3)]},
            InputError,
            "^transforms must name each once, but 'tim' came twice$",
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
    with refused(InputError, f"^transforms must not name '{own}', which {name} applies by itself;"):
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
    with refused(error, f"^{message}"):
        attacks.get(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dim", {}, "rate must leave room to resize inputs of 8 x 6 pixels, but 1.1 came"),
        ("sia", {"blocks": 7}, "blocks must not exceed the sides of the inputs, 8 x 6 pixels, but"),
    ],
)
def test_inputs_that_are_too_small_are_refused(name, options, message):
    with refused(InputError, f"^{message}"):
        run(name, "linf", **options)


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
