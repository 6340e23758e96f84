"""Attacks on explanations: known answers, and what is returned."""

from __future__ import annotations

import math
from itertools import cycle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attribution_attacks, attributions, metrics
from pytest_triguard.classifier import Classifier
from tests.attribution_attacks.table import (
    COMMON,
    EPS,
    METHODS,
    TABLE,
    TOLERANCE,
    both_dtypes,
    distance,
    every_method,
    every_row,
    method,
    same,
)
from tests.networks import SHAPES, Quadratic, bare, classifier, images, problem


def shares(maps):
    pixels = maps.abs().sum(1)
    return pixels / pixels.mean((1, 2), keepdim=True)


# --- the family ---------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_attack():
    assert sorted(row.name for row in TABLE) == sorted(attribution_attacks.names())


@every_row
def test_an_attack_has_the_published_defaults(row):
    parameters = attribution_attacks.get(row.name).parameters()
    assert parameters == {"attack": row.name} | COMMON | row.defaults
    assert attribution_attacks.get(row.name).describe().startswith(f"{row.name}: 1 start of ")


# --- known answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in TABLE if row.still], ids=lambda row: row.name)
def test_where_the_shares_cannot_change_nothing_moves(row):
    subject, inputs, targets = problem("smooth", 4)
    found = row.attack(**({"random_start": False} | row.still), attribution="saliency")(
        subject, inputs, targets
    )
    assert not found.success.any()
    assert torch.equal(found.adversarial, inputs)


@both_dtypes
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("topk", {"k": 1.0}), ("targeted", {"k": 1.0}), ("targeted", {"region": True})],
)
def test_where_all_pixels_are_pushed_no_rounding_is_followed(name, options, norm, dtype):
    subject, inputs, _ = problem("smooth", 6, dtype)
    if "region" in options:
        options = {"region": torch.ones(inputs.shape[2:], dtype=torch.bool)}
    attack = attribution_attacks.get(
        name, **options, attribution="saliency", criterion="spearman", norm=norm, eps=0.1, steps=6
    )
    found = attack(subject, inputs)
    assert torch.equal(found.adversarial, inputs)
    assert found.flat.all()


def test_a_map_that_is_its_own_target_stays():
    subject, inputs, targets = problem("smooth", 4)
    own = attributions.get("saliency")(subject, inputs, targets).abs().sum(1)
    attack = attribution_attacks.get("manipulate", target=own, attribution="saliency", steps=5)
    found = attack(subject, inputs, targets)
    assert torch.equal(found.adversarial, inputs)
    assert found.measure.tolist() == [0.0] * 4
    assert not found.success.any()


def by_hand(network, inputs, targets, goal, *, eps, steps):
    """Return every iterate of plain sign ascent of a goal of saliency shares."""
    points, iterates = inputs, []
    for _ in range(steps):
        points = points.detach().requires_grad_()
        logits = network(points).gather(1, targets[:, None]).sum()
        (gradient,) = torch.autograd.grad(logits, points, create_graph=True)
        (slope,) = torch.autograd.grad(goal(shares(gradient)).sum(), points)
        offset = (points + eps / 8 * slope.sign() - inputs).clamp(-eps, eps)
        points = (inputs + offset).clamp(0, 1)
        iterates.append(points.detach())
    return iterates


def goals(clean):
    """Return what each attack ascends, by hand, from the shares of the samples."""
    flat = clean.flatten(1)
    top = torch.zeros_like(flat).scatter(1, flat.topk(5).indices, 1.0).view_as(clean)
    least = torch.zeros_like(flat).scatter(1, (-flat).topk(5).indices, 1.0).view_as(clean)
    return {
        "topk": lambda found: -(found * top).sum((1, 2)),
        "targeted": lambda found: (found * least).sum((1, 2)),
    }


@pytest.mark.parametrize("name", ["topk", "targeted"])
def test_an_attack_keeps_the_worst_iterate_of_a_plain_loop(name):
    subject, inputs, _ = problem("smooth", 6)
    network = bare(subject)
    predicted = network(inputs).argmax(1)
    saliency = attributions.get("saliency")
    goal = goals(shares(saliency(subject, inputs, predicted)))[name]
    iterates = by_hand(network, inputs, predicted, goal, eps=0.05, steps=6)
    attack = attribution_attacks.get(name, k=5, attribution=saliency, eps=0.05, steps=6)
    found = attack(subject, inputs)
    worst = torch.full((6,), math.inf, dtype=torch.float64)
    expected = inputs.clone()
    clean = saliency(subject, inputs, predicted)
    if name == "topk":
        worst[:] = 1.0
    else:
        worst = -goal(shares(clean))
    for points in iterates:
        maps = saliency(subject, points, predicted)
        if name == "topk":
            harm = metrics.get("topk_intersection", k=5)(clean, maps)
        else:
            harm = -goal(shares(maps))
        better = (network(points).argmax(1) == predicted) & (harm < worst)
        worst = torch.where(better, harm, worst)
        expected = torch.where(better.view(-1, 1, 1, 1), points, expected)
    assert torch.allclose(found.adversarial, expected, rtol=0, atol=1e-12)
    assert found.success.any()


def test_the_first_step_of_a_manipulation_is_the_sign_of_its_loss():
    """Adam begins with steps of the learning rate."""
    subject, inputs, targets = problem("smooth", 4)
    network, target = bare(subject), images((1, 6, 7), 1)[0, 0]
    points = inputs.clone().requires_grad_()
    chosen = network(points).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, points, create_graph=True)
    wanted = target / target.mean()
    loss = (shares(gradient) - wanted).square().mean((1, 2)).sum()
    (slope,) = torch.autograd.grad(loss, points)
    attack = attribution_attacks.get(
        "manipulate", target=target, attribution="saliency", steps=1, step_size=1e-3
    )
    expected = (inputs - 1e-3 * slope.sign()).clamp(0, 1)
    found = attack(subject, inputs, targets)
    assert found.success.all()
    # Adam divides by a hair more than the size of the gradient.
    assert torch.allclose(found.adversarial, expected, rtol=0, atol=1e-6)


def test_a_quadratic_network_is_attacked_along_its_hessian():
    """The gradient is `Q x`: the share of one pixel grows fastest along a known direction."""
    form = torch.eye(6, dtype=torch.float64).repeat(2, 1, 1)
    form[0, 0, 0], form[1] = 3.0, -form[1]
    inputs = torch.full((1, 1, 2, 3), 0.4, dtype=torch.float64)
    region = torch.zeros(2, 3, dtype=torch.bool)
    region[1, 2] = True
    attack = attribution_attacks.get(
        "targeted", region=region, attribution="saliency", eps=0.1, steps=20, norm="linf"
    )
    found = attack(Classifier(Quadratic(form)), inputs, 0)
    expected = torch.full_like(inputs, 0.3)
    expected[0, 0, 1, 2] = 0.5
    assert torch.allclose(found.adversarial, expected)
    assert found.measure.item() == pytest.approx(0.5 / (3 * 0.3 + 4 * 0.3 + 0.5))


def test_the_farthest_target_is_a_mirror_image_or_half_turn():
    subject = Classifier(bare(classifier("linear")))
    inputs = images(SHAPES["linear"], 3)
    maps = shares(attributions.get("gradient_x_input")(subject, inputs))
    turned = [maps.flip(1), maps.flip(2), maps.flip((1, 2))]
    distances = torch.stack([(each - maps).square().mean((1, 2)).sqrt() for each in turned])
    attack = attribution_attacks.get("manipulate", steps=1, step_size=0.0)
    assert torch.allclose(attack(subject, inputs).measure, distances.amax(0))


# --- softplus, second order ---------------------------------------------------------------------


@every_method
def test_without_a_stand_in_a_network_of_relus_has_no_second_order(name):
    subject, inputs, targets = problem("conv", 4)
    attack = attribution_attacks.get("topk", attribution=method(name), beta=None, steps=3)
    assert attack(subject, inputs, targets).flat.all()
    smooth = attribution_attacks.get("topk", attribution=method(name), steps=3)
    assert not smooth(subject, inputs, targets).flat.any()


def test_a_smooth_network_needs_no_stand_in():
    subject, inputs, targets = problem("smooth", 4)
    with_one, without = (
        attribution_attacks.get("topk", beta=beta, steps=3)(subject, inputs, targets)
        for beta in (10.0, None)
    )
    assert not without.flat.any()
    assert same(with_one, without)


def test_the_sharpness_grows_geometrically():
    attack = attribution_attacks.get("manipulate", steps=3)
    assert [attack.beta_at(step) for step in range(3)] == pytest.approx([10, 10 * 10**0.5, 100])
    assert attribution_attacks.get("topk").beta_at(50) == 10.0
    assert attribution_attacks.get("topk", beta=(5.0, 9.0), steps=1).beta_at(0) == 5.0


# --- what is returned ---------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("network", SHAPES)
@every_row
def test_what_is_returned_keeps_the_prediction_ball_and_bounds(row, network, dtype):
    subject, inputs, targets = problem(network, 6, dtype)
    attack = row.attack(attribution="gradient_x_input")
    found = attack(subject, inputs, targets)
    module = bare(subject)
    assert torch.equal(module(found.adversarial).argmax(1), module(inputs).argmax(1))
    assert (distance(found.adversarial, inputs, "linf") <= EPS["linf"] + TOLERANCE[dtype]).all()
    assert torch.allclose(found.distance, distance(found.adversarial, inputs, "linf"))
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    assert found.adversarial.dtype == dtype
    assert torch.equal(found.targets, targets)
    moved = (found.adversarial != inputs).flatten(1).any(1)
    assert not (found.success & ~moved).any()
    assert (found.kept | ~moved).all()


@pytest.mark.parametrize(("name", "norm"), list(zip(METHODS, cycle(["linf", "l2"]), strict=False)))
@every_row
def test_the_measure_is_that_of_the_returned_tensor(row, name, norm):
    subject, inputs, targets = problem("conv", 5)
    explained = method(name, seed=0)
    attack = row.attack(attribution=explained, norm=norm)
    found = attack(subject, inputs, targets)
    assert (distance(found.adversarial, inputs, norm) <= EPS[norm] * (1 + 1e-9)).all()
    assert found.success.any()
    maps, others = (explained(subject, each, targets) for each in (inputs, found.adversarial))
    if row.name == "topk":
        expected = metrics.get("topk_intersection")(maps, others)
    elif row.name == "mass_center":
        expected = metrics.get("mass_center")(maps, others)
    elif row.name == "targeted":
        flat = shares(maps).flatten(1)
        least = (-flat).argsort(descending=True, stable=True)[:, :5]
        expected = shares(others).flatten(1).gather(1, least).sum(1) / flat.shape[1]
    else:
        turned = torch.stack([shares(maps).flip(each) for each in ((2,), (1,), (1, 2))])
        farthest = (turned - shares(maps)).square().mean((2, 3)).argmax(0)
        target = turned[farthest, torch.arange(5)]
        expected = (shares(others) - target).square().mean((1, 2)).sqrt()
    assert torch.allclose(found.measure, expected, rtol=1e-9)


@pytest.mark.parametrize("criterion", ["spearman", "drift"])
@every_row
def test_another_criterion_chooses_the_worst_iterate(row, criterion):
    subject, inputs, targets = problem("smooth", 6)
    metric = metrics.get(criterion)
    own, chosen = (
        row.attack(criterion=each, steps=8)(subject, inputs, targets) for each in (None, criterion)
    )
    explained = attributions.get("gradient_x_input")
    maps = explained(subject, inputs, targets)
    values = [metric(maps, explained(subject, each.adversarial, targets)) for each in (own, chosen)]
    assert torch.allclose(chosen.measure, values[1])
    assert chosen.measured == metric.title
    worse = values[1] <= values[0] if metric.similarity else values[1] >= values[0]
    assert worse.all()


@every_row
def test_with_eps_zero_nothing_changes(row):
    subject, inputs, targets = problem("conv", 6)
    found = row.attack(eps=0.0)(subject, inputs, targets)
    assert torch.equal(found.adversarial, inputs)
    assert found.kept.all()
    assert not found.success.any()
    assert not found.distance.any()


@every_row
def test_a_success_has_to_exceed_the_least_change(row):
    subject, inputs, targets = problem("smooth", 6)
    found = row.attack()(subject, inputs, targets)
    before = row.attack(eps=0.0)(subject, inputs, targets).measure
    change = (found.measure - before).abs()
    assert change.max() > 0
    middle = float(change.median())
    strict = row.attack(least_change=middle)(subject, inputs, targets)
    assert torch.equal(strict.success, change > middle + 1e-9)


@every_row
def test_more_starts_are_never_worse_for_the_attack(row):
    subject, inputs, targets = problem("conv", 6)
    one, three = (row.attack(restarts=each)(subject, inputs, targets) for each in (1, 3))
    harm = three.measure - one.measure
    assert ((harm if row.attack().larger_is_worse else -harm) >= -1e-12).all()
    assert (three.kept | ~one.kept).all()
    assert (three.adversarial != one.adversarial).any()


def test_a_sample_whose_every_iterate_changes_the_prediction_comes_back_as_it_was():
    class Fragile(nn.Module):
        """Two classes by one pixel; any step from one half changes the prediction."""

        def forward(self, inputs):
            pixel = inputs[:, 0, 0, 0]
            rest = inputs.flatten(1).square().sum(1)
            inside = (pixel - 0.5).abs() < 1e-9
            return torch.stack([rest, rest - 1 + 2 * (~inside)], 1)

    inputs = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64)
    inputs[1, 0, 0, 0] = 0.2
    attack = attribution_attacks.get("topk", attribution="saliency", k=3, steps=4)
    found = attack(Classifier(Fragile()), inputs)
    assert found.kept.tolist() == [False, True]
    assert not found.success[0]
    assert torch.equal(found.adversarial[0], inputs[0])


@every_row
def test_a_zero_map_is_undefined_and_no_success(row):
    class Dead(nn.Module):
        def forward(self, inputs):
            lit = torch.relu(inputs[:, 0, 0, 0] - 0.5)
            return torch.stack([lit * inputs.square().sum((1, 2, 3)), torch.zeros_like(lit)], 1)

    inputs = images((1, 3, 4), 3)
    inputs[:, 0, 0, 0] = torch.tensor([0.9, 0.1, 0.9])
    attack = row.attack(attribution="saliency", beta=None)
    found = attack(Classifier(Dead()), inputs, 0)
    assert found.measure.isnan().tolist() == [False, True, False]
    assert not found.success[1]
    assert torch.isfinite(found.adversarial).all()


@every_row
def test_the_target_is_what_is_given_or_the_label_or_the_prediction(row):
    subject, inputs, labels = problem("conv", 6)
    predictions = bare(subject)(inputs).argmax(1)
    of_labels, of_predictions = (
        row.attack()(subject, inputs, targets) for targets in (labels, predictions)
    )
    assert not same(of_labels, of_predictions)
    assert same(row.attack()(subject, inputs), of_predictions)
    data = TensorDataset(inputs, labels)
    assert same(row.attack()(subject, data), of_labels)
    assert same(row.attack()(subject, DataLoader(data, batch_size=4)), of_labels, 1e-9)
    assert same(row.attack()(subject, data, 2), row.attack()(subject, inputs, labels * 0 + 2))


@every_row
def test_normalisation_is_part_of_the_network_and_eps_is_in_input_units(row):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    subject, inputs, targets = problem("conv", 4)

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
        row.attack()(each, inputs, targets) for each in (outside, Classifier(Normalised()))
    )
    assert same(found, expected, 1e-9)


@every_row
def test_bounds_may_differ_by_channel(row):
    low, high = torch.tensor([0.0, 0.2, -1.0]), torch.tensor([1.0, 0.8, 1.0])
    low, high = (each.double().view(3, 1, 1) for each in (low, high))
    bounds = tuple(each.flatten().tolist() for each in (low, high))
    subject = Classifier(bare(classifier("conv")), bounds=bounds)
    inputs = low + images(SHAPES["conv"], 4) * (high - low)
    found = row.attack(eps=0.4, least_change=0.0)(subject, inputs).adversarial
    assert (found >= low).all()
    assert (found <= high).all()


def test_without_eps_the_range_is_the_only_bound():
    subject, inputs, targets = problem("smooth", 4)
    free, wide = (
        attribution_attacks.get("topk", eps=eps, steps=5, step_size=0.2)(subject, inputs, targets)
        for eps in (None, 1.0)
    )
    assert same(free, wide)
    assert free.distance.max() > 0.3


@every_row
def test_what_the_user_gave_is_left_alone(row):
    subject, inputs, targets = problem("conv", 5)
    given = inputs.clone(), targets.clone()
    row.attack()(subject, inputs, targets).adversarial.zero_()
    assert torch.equal(inputs, given[0])
    assert torch.equal(targets, given[1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@every_row
def test_the_ambient_gradient_mode_does_not_matter(row, mode):
    subject, inputs, targets = problem("conv", 4)
    expected = row.attack()(subject, inputs, targets)
    with mode():
        given = inputs.clone().requires_grad_(mode is torch.enable_grad)
        found = row.attack()(subject, given, targets)
    assert same(found, expected)
    assert not found.adversarial.requires_grad
    assert not found.measure.requires_grad


def test_the_cost_is_counted_in_passes():
    subject, inputs, targets = problem("smooth", 5)
    found = attribution_attacks.get("topk", attribution="saliency", steps=3)(
        subject, inputs, targets
    )
    # Per step a gradient, its derivative and a judgement; before them the map of the sample.
    assert found.cost["backward"] == 5 * (1 + 3 * 3)
    ig = method("integrated_gradients")
    found = attribution_attacks.get("topk", attribution=ig, steps=2)(subject, inputs, targets)
    assert found.cost["backward"] == 5 * 3 * (1 + 2 * 3)


def test_an_attack_moves_the_map_farther_than_noise_of_the_same_size():
    subject, inputs, _ = problem("smooth", 12)
    metric = metrics.get("cosine")
    attack = attribution_attacks.get("topk", eps=0.1, steps=30, criterion=metric)
    found = attack(subject, inputs)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(inputs.shape, generator=generator, dtype=torch.float64) * 0.2 - 0.1
    explained = attributions.get("gradient_x_input")
    predicted = bare(subject)(inputs).argmax(1)
    maps = explained(subject, inputs, predicted)
    noisy = explained(subject, (inputs + noise).clamp(0, 1), predicted)
    assert found.measure.mean() > 1.2 * metric(maps, noisy).mean()
