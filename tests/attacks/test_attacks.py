"""Attacks on predictions: known answers, and what is returned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attacks
from pytest_triguard.attacks.cw import CW
from pytest_triguard.attacks.fab import FAB
from pytest_triguard.classifier import Classifier
from tests.attacks.table import (
    CASES,
    EPS,
    TABLE,
    TOLERANCE,
    binary,
    both_dtypes,
    distance,
    every_case,
    every_row,
    one_case,
    same,
    some_cases,
    stepping_rows,
    with_networks,
)
from tests.networks import CLASSES, SHAPES, bare, classifier, images, problem
from tests.sessions import with_settings


def test_the_table_has_a_row_for_every_attack():
    assert sorted(row.name for row in TABLE) == sorted(attacks.names())


@every_row
def test_an_attack_has_the_published_defaults(row):
    common = {"attack": row.name, "eps": 8 / 255, "norm": "linf", "seed": 0}
    common |= {} if row.searching else {"loss": "cross_entropy", "trajectory": False}
    assert attacks.get(row.name).parameters() == common | row.defaults


STRAIGHT = [case for case in CASES if case.row.straight is not None]


@pytest.mark.parametrize(
    ("middle", "dtype"),
    [(True, torch.float32), (False, torch.float64)],
    ids=["inside-float32", "clipped-float64"],
)
@pytest.mark.parametrize("case", [c for c in STRAIGHT if c.norm == "linf"], ids=str)
def test_on_a_linear_network_linf_attacks_end_in_the_best_corner(case, dtype, middle):
    subject, inputs = binary(dtype), images((2, 3, 4), 6, dtype)
    inputs = inputs * 0.2 + 0.4 if middle else inputs
    labels = torch.arange(6) % 2
    away = bare(subject)[1].weight.diff(dim=0) * (1 - 2 * labels).unsqueeze(1)
    best = (inputs + 0.1 * away.sign().view_as(inputs)).clamp(0, 1)
    attack = case.attack(whole=True, eps=0.1, **case.row.straight)
    found = attack(subject, inputs, labels, targets=case.targets(labels, 2)).adversarial
    assert torch.allclose(found, best, rtol=0, atol=TOLERANCE[dtype])


@both_dtypes
@pytest.mark.parametrize("case", [c for c in STRAIGHT if c.norm == "l2"], ids=str)
def test_on_a_linear_network_l2_attacks_go_straight_down_the_margin(case, dtype):
    subject, inputs = binary(dtype), images((2, 3, 4), 6, dtype) * 0.2 + 0.4
    labels = torch.arange(6) % 2
    away = bare(subject)[1].weight.diff(dim=0) * (1 - 2 * labels).unsqueeze(1)
    best = inputs + 0.3 * functional.normalize(away).view_as(inputs)
    options = case.row.straight | case.row.converged
    if "step_size" in options:
        options["step_size"] *= 0.3
    attack = case.attack(whole=True, eps=0.3, **options)
    found = attack(subject, inputs, labels, targets=case.targets(labels, 2)).adversarial
    assert torch.allclose(found, best, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bim_of_one_step_is_fgsm(norm, targeted):
    subject, inputs, labels = problem("conv")
    targets = (labels + 1) % CLASSES if targeted else None
    one = attacks.get("bim", norm=norm, eps=EPS[norm], steps=1, stop="never")
    whole = attacks.get("fgsm", norm=norm, eps=EPS[norm])
    assert same(*(each(subject, inputs, labels, targets=targets) for each in (one, whole)))


@pytest.mark.parametrize(("name", "budget"), [("fgsm", "1 pass"), ("mim", "10 passes")])
def test_the_budget_is_told_in_words(name, budget):
    assert f", {budget} at most" in attacks.get(name).describe()
    assert ", 1 pass at most" in attacks.get("mim", steps=1).describe()


@pytest.mark.parametrize("stop", ["never", "success"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_from_the_sample_with_the_step_of_bim_is_bim(norm, targeted, stop):
    subject, inputs, labels = problem("conv")
    targets = (labels + 1) % CLASSES if targeted else None
    options = {"norm": norm, "eps": EPS[norm], "steps": 6, "stop": stop}
    pgd = attacks.get("pgd", step_size=EPS[norm] / 6, random_start=False, **options)
    bim = attacks.get("bim", **options)
    assert same(*(each(subject, inputs, labels, targets=targets) for each in (pgd, bim)))


def by_hand(network, points, clean, classes, sign, *, norm, eps, step, steps):
    """Return where plain projected ascent of `sign` times the cross-entropy ends."""
    for _ in range(steps):
        points = points.detach().requires_grad_()
        loss = sign * functional.cross_entropy(network(points), classes, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        if norm == "linf":
            offset = (points + step * gradient.sign() - clean).clamp(-eps, eps)
        else:
            offset = points + step * functional.normalize(gradient.flatten(1)).view_as(clean)
            offset = torch.renorm(offset - clean, 2, 0, eps)
        points = (clean + offset).clamp(0, 1)
    return points.detach()


@pytest.mark.parametrize(
    ("case", "name"), with_networks([c for c in CASES if c.row.stepwise and c.row.plain]), ids=str
)
def test_an_attack_equals_a_plain_loop_from_the_same_start(case, name):
    subject, inputs, labels = problem(name, 4)
    targets, eps = case.targets(labels), EPS[case.norm]
    attack = case.attack(whole=True, trajectory=True, step_size=eps / 3)
    found = attack(subject, inputs, labels, targets=targets)
    expected = by_hand(
        bare(subject),
        found.trajectory.points[:, 0],
        inputs,
        labels if targets is None else targets,
        1 if targets is None else -1,
        norm=case.norm,
        eps=eps,
        step=eps / 3,
        steps=attack.steps,
    )
    # torch.renorm scales to a hair inside the sphere.
    assert torch.allclose(found.adversarial, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["logit", "contrast", "margin", "dlr"])
def test_the_other_losses_are_ascended_too(loss, targeted):
    subject, inputs, labels = problem("smooth", 8)
    targets = (labels + 1) % CLASSES if targeted else None
    network = bare(subject)

    def goal(points):
        rows = torch.arange(len(points))
        logits = network(points)
        spread = logits.sort(1, descending=True).values
        aim = labels if targets is None else targets
        chosen = logits[rows, aim]
        if loss in ("logit", "contrast"):
            others = logits.scatter(1, aim.unsqueeze(1), -torch.inf).softmax(1)
            lead = chosen - (others * logits).sum(1) * (loss == "contrast")
            return -lead if targets is None else lead
        if targets is None:
            rest = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)
            scale = spread[:, 0] - spread[:, 2]
            return (rest - chosen) / (1 if loss == "margin" else scale)
        rest = logits.scatter(1, targets.unsqueeze(1), -torch.inf).amax(1)
        if loss == "margin":
            return chosen - rest
        return (chosen - logits[rows, labels]) / (spread[:, 0] - spread[:, 2:4].mean(1))

    points = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(goal(points).sum(), points)
    found = attacks.get("fgsm", eps=0.01, loss=loss)(subject, inputs, labels, targets=targets)
    expected = (inputs + 0.01 * gradient.sign()).clamp(0, 1)
    assert torch.allclose(found.adversarial, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("case", "name"), with_networks(CASES), ids=str)
def test_success_is_the_prediction_at_the_returned_tensor_inside_ball_and_bounds(case, name):
    dtype = torch.float64 if name == "conv" else torch.float32
    subject, inputs, labels = problem(name, 6, dtype)
    found = case.attack()(subject, inputs, labels, targets=case.targets(labels))
    predictions = bare(subject)(found.adversarial).argmax(1)
    assert torch.equal(found.success, case.reached(predictions, labels))
    assert (
        distance(found.adversarial, inputs, case.norm) <= EPS[case.norm] + TOLERANCE[dtype]
    ).all()
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    assert found.adversarial.dtype == dtype
    assert found.trajectory is None


class Cast(nn.Module):
    """A network whose logits are made finer or coarser than its inputs."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs).to(self.dtype)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)],
    ids=str,
)
@every_row
def test_logits_may_be_finer_than_inputs(row, inside, outside):
    """As those of a network in half precision that ends in float32; places are refilled."""
    subject, inputs, labels = problem("conv", 5, torch.float32)
    network, inputs = Cast(bare(subject).to(inside), outside), inputs.to(inside)
    with with_settings(chunk=2):
        found = attacks.get(row.name, **row.few)(Classifier(network), inputs, labels)
        alone = torch.cat([network(each.unsqueeze(0)) for each in found.adversarial])
    assert found.adversarial.dtype == inside
    assert torch.equal(found.success, alone.argmax(1) != labels)


@every_case
def test_with_eps_zero_success_is_what_the_clean_prediction_says(case):
    subject, inputs, labels = problem("conv", 12)
    found = case.attack(eps=0.0)(subject, inputs, labels, targets=case.targets(labels))
    assert torch.equal(found.adversarial, inputs)
    assert torch.equal(found.success, case.reached(bare(subject)(inputs).argmax(1), labels))
    assert 0 < found.success.sum() < 12


@every_case
def test_an_attack_finds_more_than_the_clean_errors(case):
    subject, inputs, labels = problem("smooth", 12)
    radius = EPS[case.norm] * (1 if case.row.plain else 2)  # a copy's gradient is a detour
    attack = case.attack(eps=radius, **case.row.enough)
    found = attack(subject, inputs, labels, targets=case.targets(labels))
    clean = case.reached(bare(subject)(inputs).argmax(1), labels)
    assert found.success.sum() > clean.sum()


@one_case
def test_what_the_user_gave_is_left_alone(case):
    subject, inputs, labels = problem("conv", 5)
    targets = case.targets(labels)
    given = [each.clone() for each in (inputs, labels)]
    found = case.attack()(subject, inputs, labels, targets=targets)
    found.adversarial.zero_()
    assert torch.equal(inputs, given[0])
    assert torch.equal(labels, given[1])
    assert targets is None or torch.equal(targets, (given[1] + 1) % CLASSES)


@one_case
def test_the_ambient_gradient_mode_does_not_matter(case):
    subject, inputs, labels = problem("conv", 5)
    expected = case.attack()(subject, inputs, labels, targets=case.targets(labels))
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            given = inputs.clone().requires_grad_(mode is torch.enable_grad)
            found = case.attack()(subject, given, labels, targets=case.targets(labels))
        assert same(found, expected), mode
        assert not found.adversarial.requires_grad, mode


@one_case
def test_a_dataset_and_a_loader_give_what_the_tensors_give(case):
    subject, inputs, labels = problem("conv", 7)
    target = 2 if case.targeted else None
    expected = case.attack()(subject, inputs, labels, targets=target)
    data = TensorDataset(inputs, labels)
    for given in (data, DataLoader(data, batch_size=3)):
        assert same(case.attack()(subject, given, targets=target), expected, 1e-9)


@some_cases
def test_normalisation_is_part_of_the_network_and_eps_is_in_input_units(case):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    subject, inputs, labels = problem("conv", 6)

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bare(subject)
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).view(3, 1, 1))
            self.register_buffer("std", torch.tensor(std, dtype=torch.float64).view(3, 1, 1))

        def forward(self, inputs):
            return self.inner((inputs - self.mean) / self.std)

    outside = Classifier(subject.module, mean=mean, std=std)
    found, expected = (
        case.attack()(each, inputs, labels, targets=case.targets(labels))
        for each in (outside, Classifier(Normalised()))
    )
    assert same(found, expected, 1e-12)


@some_cases
def test_bounds_may_differ_by_channel(case):
    low, high = torch.tensor([0.0, 0.2, -1.0]), torch.tensor([1.0, 0.8, 1.0])
    low, high = (each.double().view(3, 1, 1) for each in (low, high))
    bounds = tuple(each.flatten().tolist() for each in (low, high))
    subject = Classifier(bare(classifier("conv")), bounds=bounds)
    inputs = low + images(SHAPES["conv"], 6) * (high - low)
    labels = torch.arange(6) % CLASSES
    attack = case.attack(whole=True, eps=0.4)
    found = attack(subject, inputs, labels, targets=case.targets(labels)).adversarial
    assert (found >= low).all()
    assert (found <= high).all()
    if not isinstance(attack, FAB | CW):  # which stop short of the ends
        assert (found == low).any()
        assert (found == high).any()


@some_cases
def test_no_gradient_means_no_step_and_no_nan(case):
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)).double()
    nn.init.zeros_(module[1].weight)
    inputs, labels = images((1, 3, 4), 3), torch.tensor([0, 1, 2])
    options = {"random_start": False} if case.row.random and case.row.stepwise else {}
    attack = case.attack(**options)
    found = attack(Classifier(module), inputs, labels, targets=case.targets(labels))
    assert found.adversarial.isfinite().all()
    if case.row.stepwise or not case.row.random:
        assert torch.equal(found.adversarial, inputs)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@stepping_rows
def test_in_l2_only_the_direction_of_a_gradient_counts(row, scale):
    subject, inputs = binary(torch.float32), images((2, 3, 4), 4, torch.float32) * 0.2 + 0.4
    labels = torch.tensor([0, 1, 0, 1])
    small = Classifier(bare(subject))
    with torch.no_grad():
        small.module[1].weight.mul_(scale)
    one_step = {"steps": 1, "random_start": False} if row.whole else {}
    options = row.few | row.whole | one_step
    attack = attacks.get(row.name, norm="l2", eps=0.1, loss="margin", **options)
    found, expected = (attack(each, inputs, labels).adversarial for each in (small, subject))
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
