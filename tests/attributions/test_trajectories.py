"""Attributions along trajectories of attacks: closed forms, and the traps of published code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_triguard import attacks, attributions
from pytest_triguard.attacks.gradient_steps import GradientSteps
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.samples import Batch
from tests.attributions.table import close
from tests.networks import CLASSES, bare, images, problem
from tests.sessions import with_settings


def linear(inputs, *, classes=2, scale=1.0, seed=3):
    """Return a linear classifier whose prediction is class 0, and its weights `(K, C, H, W)`."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inputs[0].numel(), classes, dtype=inputs.dtype)
    weights = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    weights = (scale * weights).to(inputs.dtype)
    lead = torch.tensor([3.0, *[0.0] * (classes - 1)]).to(inputs)
    with torch.no_grad():
        layer.weight.copy_(weights)
        layer.bias.copy_(lead - (inputs.flatten(1) @ weights.T).mean(0))
    return Classifier(nn.Sequential(nn.Flatten(), layer)), weights.view(classes, *inputs.shape[1:])


def inner(shape, count, dtype=torch.float64):
    """Return images that few steps do not carry to an end of the range."""
    return 0.3 + 0.4 * images(shape, count, dtype)


def change(subject, output, points, ends, targets):
    """Return by how much an output falls from some points to others."""
    network, rows = bare(subject), torch.arange(len(points))
    values = []
    for each in (points, ends):
        logits = network(each)
        if output == "probability":
            logits = logits.softmax(1)
        elif output == "log_probability":
            logits = logits.log_softmax(1)
        values.append(logits[rows, targets])
    return values[0] - values[1]


# --- MFABA --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 3, 4)], ids=["grey", "colour"])
def test_mfaba_of_a_linear_logit_is_the_way_times_the_absolute_weights(shape, dtype):
    inputs = inner(shape, 4, dtype)
    subject, weights = linear(inputs)
    method = attributions.get("mfaba", output="logit", step_size=0.01, steps=200, eps=1.0)
    walk = attacks.get("bim", loss="logit", step_size=0.01, steps=200, eps=1.0, trajectory=True)
    taken = walk(subject, inputs, torch.zeros(4).long()).trajectory.lengths
    assert taken.unique().numel() > 1  # they leave one after the other
    expected = 0.01 * taken.to(inputs).view(4, 1, 1, 1) * weights[0].abs()
    assert close(method(subject, inputs, 0), expected, 1e-4 if dtype == torch.float32 else 1e-9)


def test_mfaba_goes_by_thousandths_and_no_farther_than_three_tenths_unless_told_otherwise():
    inputs = 0.45 + 0.1 * images((1, 4, 5), 3)
    subject, weights = linear(inputs, scale=0.1)
    sizes = weights[0].abs().expand_as(inputs)
    few = attributions.get("mfaba", output="logit", steps=3)(subject, inputs, 0)
    assert close(few, 0.003 * sizes, 1e-9)
    far = attributions.get("mfaba", output="logit", step_size=0.04, steps=9)(subject, inputs, 0)
    assert close(far, 0.3 * sizes, 1e-9)


def test_mfaba_follows_the_gradient_of_the_probability_as_far_as_the_prediction_lasts():
    subject, inputs, _ = problem("smooth", 6)
    network = bare(subject)
    targets = network(inputs).argmax(1)
    found = attributions.get("mfaba", step_size=0.02, steps=9, eps=0.15)(subject, inputs, targets)
    for place in range(6):
        clean, total = inputs[place : place + 1], torch.zeros_like(inputs[:1])
        point = clean
        for _ in range(9):
            leaf = point.clone().requires_grad_()
            output = network(leaf).softmax(1)
            if int(output.argmax()) != targets[place]:
                break
            (slope,) = torch.autograd.grad(output[0, targets[place]], leaf)
            after = point - 0.02 * slope.sign()
            after = after.clamp(clean - 0.15, clean + 0.15).clamp(0, 1)
            total -= (after - point) * slope
            point = after
        assert close(found[place : place + 1], total, 1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_mfaba_sums_to_the_fall_of_the_output_the_closer_the_smaller_the_steps(norm):
    subject, inputs, _ = problem("smooth", 4)
    targets, errors = bare(subject)(inputs).argmax(1), []
    for steps in (10, 40, 160):
        size = (0.1 if norm == "linf" else 1.0) / steps
        options = {"norm": norm, "step_size": size, "steps": steps}
        maps = attributions.get("mfaba", **options)(subject, inputs, targets)
        walk = attacks.get("bim", eps=1.0, loss="probability", **options)
        ends = walk(subject, inputs, targets).adversarial
        fall = change(subject, "probability", inputs, ends, targets)
        errors.append(float((maps.sum((1, 2, 3)) - fall).abs().max()))
    assert errors[2] < errors[1] / 3 < errors[0] / 9
    assert errors[2] < 5e-3


def test_mfaba_descends_a_class_that_is_not_predicted_while_the_prediction_lasts():
    inputs = inner((1, 4, 5), 3)
    subject, weights = linear(inputs, classes=3)
    found = attributions.get("mfaba", output="logit", step_size=0.01, steps=4)(subject, inputs, 2)
    assert (bare(subject)(inputs - 0.04 * weights[2].sign()).argmax(1) == 0).all()
    assert close(found, (0.04 * weights[2].abs()).expand_as(inputs), 1e-9)


def test_sharp_mfaba_steps_along_the_gradient_without_a_ball():
    inputs = inner((1, 4, 5), 3)
    subject, weights = linear(inputs, scale=0.1)
    found = attributions.get("mfaba", norm="l2", output="logit", steps=5)(subject, inputs, 0)
    slope = weights[0]
    end = inputs - 5 * 0.1 * slope / slope.norm()
    assert (end > 0).all()
    assert (end < 1).all()
    assert close(found, (5 * 0.1 * slope**2 / slope.norm()).expand_as(inputs), 1e-9)


# --- AGI ----------------------------------------------------------------------------------------


def by_hand(network, clean, own, other, *, size, steps, mode):
    """Follow the way of one image towards one class, and sum what the own class loses."""
    point, total = clean, torch.zeros_like(clean)
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        output = network(leaf).softmax(1)
        if int(output.argmax()) == other:
            break
        (up,) = torch.autograd.grad(output[0, other], leaf, retain_graph=True)
        (slope,) = torch.autograd.grad(output[0, own], leaf)
        start = point if mode == "canonical" else clean
        after = (start + size * up.sign()).clamp(0, 1)
        total -= slope * (after - start)
        point = after
    return total


@pytest.mark.parametrize("mode", ["canonical", "reference"])
def test_agi_is_that_of_one_image_and_class_at_a_time(mode):
    subject, inputs, targets = problem("conv", 5)
    options = {"step_size": 0.04, "steps": 6, "mode": mode}
    with with_settings(chunk=4):
        found = attributions.get("agi", **options)(subject, inputs, targets)
    for place in range(5):
        own = int(targets[place])
        parts = [
            by_hand(
                bare(subject),
                inputs[place : place + 1],
                own,
                other,
                size=0.04,
                steps=6,
                mode=mode,
            )
            for other in range(CLASSES)
            if other != own
        ]
        assert close(found[place : place + 1], sum(parts), 1e-9)


def test_agi_with_one_step_is_that_of_the_published_code_and_with_more_it_is_not():
    subject, inputs, targets = problem("conv", 4)
    one, many = (
        [
            attributions.get("agi", steps=steps, mode=mode)(subject, inputs, targets)
            for mode in ("canonical", "reference")
        ]
        for steps in (1, 4)
    )
    assert torch.equal(*one)
    assert not close(*many, 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_agi_of_two_classes_is_the_way_times_the_absolute_gradients(dtype):
    inputs = inner((3, 3, 4), 4, dtype)
    subject, _ = linear(inputs, scale=0.3)
    found = attributions.get("agi", step_size=0.01, steps=7)(subject, inputs, 0)
    network, point, total = bare(subject), inputs, torch.zeros_like(inputs)
    for _ in range(7):
        leaf = point.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(leaf).softmax(1)[:, 0].sum(), leaf)
        total += 0.01 * slope.abs()
        point = point - 0.01 * slope.sign()
    assert (network(point).argmax(1) == 0).all()
    assert close(found, total, 1e-4 if dtype == torch.float32 else 1e-9)
    assert (found >= 0).all()


def test_agi_sums_to_what_the_class_loses_on_the_way_to_the_others():
    subject, inputs, targets = problem("smooth", 3)
    errors = []
    for steps in (10, 40, 160):
        options = {"step_size": 0.1 / steps, "steps": steps}
        maps = attributions.get("agi", **options)(subject, inputs, targets)
        fall = torch.zeros(3).double()
        for shift in range(1, CLASSES):
            others = (targets + shift) % CLASSES
            walk = attacks.get("bim", eps=1.0, loss="probability", **options)
            ends = walk(subject, inputs, targets, targets=others).adversarial
            fall += change(subject, "probability", inputs, ends, targets)
        errors.append(float((maps.sum((1, 2, 3)) - fall).abs().max()))
    assert errors[2] < errors[1] / 3 < errors[0] / 9
    assert errors[2] < 5e-3


def test_agi_draws_other_classes_of_each_sample_and_never_its_own():
    method = attributions.get("agi", classes=3, seed=4)
    explained = torch.arange(500) % 10
    inputs = torch.zeros(500, 1, 1, 1)
    subject = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(1, 10)))
    batch = Batch(tuple(range(500)), tuple(range(500)), torch.arange(500), inputs)
    with subject.prepared() as model:
        chosen = method._chosen(model, batch, explained)
        everyone = attributions.get("agi")._chosen(model, batch, explained)
    assert chosen.shape == (500, 3)
    assert (chosen.diff(dim=1) > 0).all()
    assert not (chosen == explained.unsqueeze(1)).any()
    share = torch.bincount(chosen.flatten(), minlength=10) / 1500
    assert (share - 0.1).abs().max() < 0.03
    assert everyone.shape == (500, 9)


def test_agi_takes_two_gradients_from_one_forward_pass():
    subject, inputs, targets = problem("linear", 3)
    batch = Batch((0, 1, 2), (0, 1, 2), torch.arange(3), inputs, targets=targets)
    with subject.prepared() as model:
        model.predict(inputs)
        attributions.get("agi", steps=1).explain(model, batch)
        assert model.passes.forward == 3 + 9
        assert model.passes.backward == 2 * 9


# --- AttEXplore and AttEXplore++ ----------------------------------------------------------------


def test_bim_with_its_gradient_gives_the_way_times_the_absolute_gradients():
    inputs = inner((3, 3, 4), 4)
    subject, _ = linear(inputs, classes=4, scale=0.3)
    attack = attacks.get("bim", eps=0.1, steps=5, stop="never", trajectory=True)
    labels = torch.zeros(4).long()
    steps = attack(subject, inputs, labels).trajectory
    found = attributions.get("attexplore_plus_plus", attack=attack)(subject, inputs, labels)
    assert close(found, 0.02 * steps.gradients.abs().sum(1), 1e-9)


@pytest.mark.parametrize(
    "name", [each for each in attacks.names() if isinstance(attacks.get(each), GradientSteps)]
)
def test_the_map_is_the_integral_over_the_trajectory_of_any_attack(name):
    shrunk = {"steps": 3, "eps": 0.1, "stop": "never"}
    subject, inputs, labels = problem("conv", 3)
    options = {"copies": 2} if name in ("si_nim", "sia", "ssa", "gra", "fsps") else {}
    options |= {"dim": {"rate": 1.5}, "fsps": {"copies": 2, "search_steps": 2}}.get(name, {})
    options |= {"points": 3} if name in ("mig", "naa") else {}
    attack = attacks.get(name, **shrunk, **options)
    found = attributions.get("attexplore_plus_plus", attack=attack)(subject, inputs, labels)
    way = attacks.get(name, **shrunk, **options, trajectory=True)(subject, inputs, labels)
    points, gradients = way.trajectory.points, way.trajectory.gradients
    assert close(found, (points.diff(dim=1) * gradients).sum(1), 1e-12)
    assert found.any()


def test_the_integral_sums_to_the_rise_of_the_loss():
    subject, inputs, labels = problem("smooth", 4)
    errors = []
    for steps in (10, 40, 160):
        attack = attacks.get("mim", eps=0.1, steps=steps)
        maps = attributions.get("attexplore_plus_plus", attack=attack)(subject, inputs, labels)
        ends = attack(subject, inputs, labels).adversarial
        rise = change(subject, "log_probability", inputs, ends, labels)
        errors.append(float((maps.sum((1, 2, 3)) - rise).abs().max()))
    assert errors[2] < errors[1] / 3 < errors[0] / 9
    assert errors[2] < 0.02


def test_attexplore_is_the_integral_over_its_attack():
    subject, inputs, labels = problem("conv", 3)
    transforms = [attacks.transforms.get("dim", rate=1.5), attacks.transforms.get("tim", size=7)]
    attack = attacks.get("ssa", copies=3, steps=3, transforms=transforms)
    expected = attributions.get("attexplore_plus_plus", attack=attack)(subject, inputs, labels)
    found = attributions.get("attexplore", copies=3, steps=3, rate=1.5)(subject, inputs, labels)
    assert close(found, expected, 1e-12)


def test_attexplore_of_the_published_code_climbs_where_ours_descends():
    inputs = inner((3, 3, 4), 4)
    subject, weights = linear(inputs, classes=3)
    plain = {"copies": 1, "rho": 0.0, "sigma": 0.0, "probability": 0.0, "size": 1}
    options = plain | {"output": "logit", "eps": 0.1, "steps": 4}
    ours, theirs = (
        attributions.get("attexplore", mode=mode, **options)(subject, inputs, 0)
        for mode in ("canonical", "reference")
    )
    slope = weights[0].expand_as(inputs)
    assert close(ours, 0.1 * slope.abs(), 1e-9)
    unit = slope.abs() / slope.abs().mean((1, 2, 3), keepdim=True)
    assert close(theirs, 0.025 * (1 + 2 + 3 + 4) * unit, 1e-9)  # momentum adds up


@pytest.mark.parametrize(("mode", "sign"), [("canonical", -1), ("reference", 1)])
def test_attexplore_goes_the_way_that_is_stated(mode, sign):
    subject, inputs, labels = problem("smooth", 4)
    method = attributions.get("attexplore", mode=mode, steps=3, copies=2, rate=1.5)
    batch = Batch((0, 1, 2, 3), (0, 1, 2, 3), torch.arange(4), inputs, targets=labels)
    with subject.prepared() as model:
        (outcome,) = method.explored(model, batch)
    moved = -change(subject, "log_probability", inputs, outcome.points, labels)
    assert (moved * sign > 0).all()


def test_nothing_is_predicted_where_a_trajectory_ends():
    subject, inputs, labels = problem("smooth", 4)
    method = attributions.get("attexplore", steps=3, copies=2, rate=1.5)
    batch = Batch((0, 1, 2, 3), (0, 1, 2, 3), torch.arange(4), inputs, targets=labels)
    with subject.prepared() as model:
        method.explain(model, batch)
        assert model.passes.forward == model.passes.backward == 4 * 3 * 2


@pytest.mark.parametrize(
    ("preset", "name"), [("inception_v3", "mig"), ("vit_b_16", "mig"), ("resnet50", "gra")]
)
def test_a_preset_is_the_attack_of_the_paper(preset, name):
    method = attributions.get("attexplore_plus_plus", preset=preset)
    asked = attributions.get("attexplore_plus_plus", attack=name)
    assert method.parameters() == asked.parameters() | {"preset": preset}
    assert method.exploration.name == name
    assert math.isclose(method.exploration.eps, 16 / 255)


def test_mig_from_black_leaves_black_elements_without_attribution():
    subject, inputs, labels = problem("conv", 3)
    inputs[:, :, 2:5] = 0
    attack = attacks.get("mig", points=3, steps=2)
    found = attributions.get("attexplore_plus_plus", attack=attack)(subject, inputs, labels)
    assert not found[:, :, 2:5].any()
    assert found.any()


def test_the_output_can_be_chosen_over_the_loss_of_the_attack():
    method = attributions.get("attexplore_plus_plus", attack="mig", output="logit")
    assert (method.output, method.exploration.loss) == ("logit", "logit")
    assert attributions.get("attexplore_plus_plus", attack="mig").output == "probability"
    setup = attributions.consistent_setup(method)
    assert (setup.attribution.output, setup.attribution.exploration.name) == ("logit", "mig")
