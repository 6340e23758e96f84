"""Cascades: each attack sees what still stands, and the result names the one that broke it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard import assert_attack_success_below, assert_robust, attacks
from pytest_triguard.attacks import autoattack, cascade
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, InputTypeError
from tests.attacks.table import binary, refused
from tests.networks import CLASSES, bare, images, network, problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator

EPS = 0.02


class Drawing(nn.Module):
    """A network that drops inputs, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network("smooth")

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(functional.dropout(inputs, 0.02, training=True))


def members():
    """Return attacks of rising strength, so that each has something left to break."""
    return (
        attacks.get("bim", steps=1, step_size=EPS / 4),
        attacks.get("pgd", steps=2, step_size=EPS / 3),
        attacks.get("apgd_t", steps=6),
        attacks.get("square", queries=8),
    )


def small(**changes):
    return attacks.Cascade(**({"attacks": members(), "eps": EPS} | changes))


@pytest.mark.parametrize("chunk", [2, 64])
def test_each_attack_sees_only_what_the_others_left_standing(chunk, monkeypatch):
    monkeypatch.setattr(cascade, "_WINDOW", 3)
    subject, inputs, labels = problem("smooth", 24)
    with with_settings(chunk=chunk):
        found = small()(subject, inputs, labels)
        standing = torch.arange(24)
        broken_by: list[str | None] = [None] * 24
        costs, points = {}, inputs.clone()
        for attack in small().members:
            alone = attack(subject, inputs[standing], labels[standing], ids=standing.tolist())
            for place, won in zip(standing.tolist(), alone.success.tolist(), strict=True):
                broken_by[place] = attack.name if won else None
            points[standing] = alone.adversarial
            costs[attack.name] = alone.cost
            standing = standing[~alone.success]
    assert found.broken_by == tuple(broken_by)
    assert len(set(broken_by)) > 2
    assert found.success.tolist() == [each is not None for each in broken_by]
    assert torch.allclose(found.adversarial, points, rtol=0, atol=1e-9)
    assert found.costs == costs
    assert found.cost == {
        kind: sum(cost[kind] for cost in costs.values()) for kind in ("forward", "backward")
    }
    assert torch.equal(bare(subject)(found.adversarial).argmax(1) != labels, found.success)


def test_passes_of_all_attacks_are_counted_for_each_sample():
    subject, inputs, labels = problem("smooth", 20)
    found = small()(subject, inputs, labels)
    standing = ~found.success
    assert standing.any()
    assert set(found.passes[standing].tolist()) == {1 + 2 + 6 * (CLASSES - 1) + 8}
    assert set(found.passes[[each == "bim" for each in found.broken_by]].tolist()) == {1}


def test_a_single_attack_names_itself():
    subject, inputs, labels = problem("smooth", 12)
    found = attacks.get("pgd", eps=EPS)(subject, inputs, labels)
    assert found.broken_by == tuple("pgd" if won else None for won in found.success.tolist())
    assert found.costs == {"pgd": found.cost}


def test_a_cascade_may_aim_at_a_class_if_all_of_it_can():
    subject, inputs, labels = problem("smooth", 12)
    weak = attacks.get("bim", steps=1, step_size=0.01)
    several = (weak, attacks.get("square", queries=30))
    found = attacks.Cascade(attacks=several, eps=0.08)(subject, inputs, labels, targets=1)
    assert torch.equal(found.success, bare(subject)(found.adversarial).argmax(1) == 1)
    assert set(found.broken_by) == {"bim", "square", None}
    with refused(InputError, "targets must be left out for 'cascade', whose goal is any class but"):
        small()(subject, inputs, labels, targets=1)


def test_a_cascade_gives_its_members_its_ball_and_seed():
    own = attacks.get("pgd", eps=0.5, norm="l2", seed=4)
    first, second = attacks.Cascade(
        attacks=[own, attacks.get("bim")], eps=0.1, norm="l2", seed=7
    ).members
    assert (first.eps, first.norm, first.seed) == (0.1, "l2", 4)
    assert (second.eps, second.norm, second.seed) == (0.1, "l2", 7)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], InputError, "attacks must hold at least one attack, but an empty list came"),
        ("pgd", InputTypeError, "attacks must be a list of attacks, but 'pgd' came"),
        (["pgd"], InputTypeError, "attacks must hold attacks, but 'pgd' came; attacks.get(name"),
        ([attacks.get("cw")], InputError, "norm must be 'l2' for the attack 'cw', but 'linf' came"),
        (
            [attacks.get("fgsm"), attacks.get("bim", trajectory=True)],
            InputError,
            "attacks must not keep trajectories in a cascade, but 'bim' with trajectory=True came",
        ),
    ],
)
def test_a_cascade_of_something_else_is_refused(given, error, message):
    with refused(error, message):
        attacks.Cascade(attacks=given)


def test_a_cascade_leaves_out_what_needs_more_classes_and_says_so():
    inputs, labels = images((2, 3, 4), 8), torch.arange(8) % 2
    several = (attacks.get("apgd_dlr"), attacks.get("apgd_t"), attacks.get("fab", steps=5))
    found = assert_robust(
        binary(),
        inputs,
        labels,
        eps=EPS,
        at_least=0,
        attack=attacks.Cascade(attacks=several, eps=EPS),
    )
    (warning,) = found.record.warnings.items()
    assert warning == (
        "too few classes",
        "apgd_dlr, apgd_t left out, which need 4 classes and the classifier has 2",
    )
    assert "forward passes of apgd_t" not in found.record.diagnostics
    only = attacks.Cascade(attacks=several[:1], eps=EPS)
    with refused(InputError, "the attack 'cascade' needs at least 3 classes, but the classifier"):
        only(binary(), inputs, labels)


@pytest.mark.parametrize(
    ("version", "parameters"),
    [
        ("standard", ["apgd_ce 100x1", "apgd_t 100x1", "fab_t 100x1", "square 5000x1"]),
        (
            "plus",
            [
                "apgd_ce 100x5",
                "apgd_dlr 100x5",
                "fab 100x5",
                "square 5000x1",
                "apgd_t 100x1",
                "fab_t 100x1",
            ],
        ),
        ("rand", ["apgd_ce 100x1", "apgd_dlr 100x1"]),
    ],
)
def test_autoattack_has_the_published_parameters(version, parameters):
    whole = attacks.get("autoattack", eps=0.1, norm="l2", version=version)
    assert [f"{each.name} {each.steps}x{each.restarts}" for each in whole.members] == parameters
    for each in whole.members:
        assert (each.eps, each.norm, each.stop) == (0.1, "l2", "success")
        assert getattr(each, "classes", 9) == 9
        assert getattr(each, "rho", 0.75) == 0.75
        assert getattr(each, "copies", 1) == (20 if version == "rand" else 1)
        if each.name.startswith("fab"):
            assert (each.alpha_max, each.eta, each.beta) == (0.1, 1.05, 0.9)
        if each.name == "square":
            assert each.share == 0.8


@pytest.mark.parametrize("changed", [{"steps": 10}, {"queries": 100}, {"restarts": 2}])
def test_autoattack_with_other_parameters_is_refused(changed):
    (name,) = changed
    with refused(InputError, f"attack 'autoattack' has no hyperparameter '{name}'"):
        attacks.get("autoattack", **changed)


def test_autoattack_refuses_an_unknown_version_and_too_few_classes():
    with refused(InputError, "version must be one of 'standard', 'plus', 'rand', but 'fast' came"):
        attacks.get("autoattack", version="fast")
    message = (
        "the attack 'autoattack' needs at least 4 classes, but the classifier has 2; use "
        "attacks.Cascade with 'apgd_ce', 'fab' and 'square', which need two"
    )
    with refused(InputError, message):
        attacks.get("autoattack")(binary(), images((2, 3, 4), 2), torch.tensor([0, 1]))


@pytest.fixture
def quick(monkeypatch):
    """AutoAttack with few steps, for tests that ask for anything but its strength."""
    versions = {
        "standard": members(),
        "rand": (attacks.get("apgd_ce", steps=5, copies=3),),
    }
    monkeypatch.setattr(autoattack, "_VERSIONS", versions)


@pytest.mark.usefixtures("quick")
def test_a_check_tells_what_each_attack_broke_and_cost():
    subject, inputs, labels = problem("smooth", 30)
    alone = small()(subject, inputs, labels)
    right = bare(subject)(inputs).argmax(1) == labels
    found = assert_robust(subject, inputs, labels, eps=EPS, at_least=0, attack="autoattack", seed=0)
    fell = [each for each, counts in zip(alone.broken_by, right.tolist(), strict=True) if counts]
    assert found.counts == {
        "not falsified by autoattack": fell.count(None),
        "falsified by bim": fell.count("bim"),
        "falsified by pgd": fell.count("pgd"),
        "falsified by apgd_t": fell.count("apgd_t"),
        "falsified by square": fell.count("square"),
        "misclassified before the attack": int((~right).sum()),
    }
    spent = found.record.diagnostics
    assert spent["backward passes of bim"] == right.sum()
    assert spent["backward passes of square"] == 0
    assert sum(spent[f"forward passes of {each.name}"] for each in members()) == (
        found.passes["forward"] - 30
    )
    assert {each["by"] for each in found.record.worst} == {"bim"}
    success = assert_attack_success_below(
        subject, inputs, labels, threshold=1, attack="autoattack", eps=EPS, seed=0
    )
    assert success.counts["by bim"] == fell.count("bim")


@pytest.mark.usefixtures("quick")
def test_autoattack_when_nothing_is_left_to_attack():
    subject, inputs, _ = problem("smooth", 6)
    wrong = (bare(subject)(inputs).argmax(1) + 1) % CLASSES
    found = assert_robust(subject, inputs, wrong, eps=EPS, at_least=0, attack="autoattack")
    assert found.value == 0
    assert found.counts["misclassified before the attack"] == 6
    assert found.passes == {"forward": 6, "backward": 0}


@pytest.mark.usefixtures("quick")
def test_the_rand_version_takes_a_network_that_draws():
    _, inputs, labels = problem("smooth", 6)
    subject = Classifier(Drawing())
    found = [
        assert_robust(
            subject,
            inputs,
            labels,
            eps=EPS,
            at_least=0,
            attack=attacks.get("autoattack", eps=EPS, version="rand"),
        )
        for _ in range(2)
    ]
    assert found[0].values.tolist() == found[1].values.tolist()
    assert "randomised forward" in found[0].record.warnings


def test_an_accelerator_gives_the_results_of_the_cpu():
    subject, inputs, labels = problem("smooth", 8)
    with with_settings(chunk=4):
        expected = small()(subject, inputs, labels)
    with simulated_accelerator(), with_settings(device="sim", chunk=4):
        found = small()(subject, inputs, labels)
    assert found.broken_by == expected.broken_by
    assert torch.allclose(found.adversarial, expected.adversarial, rtol=0, atol=1e-9)
