"""The strong attacks against what is known: linear networks, published formulas, plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_triguard import attacks
from pytest_triguard.attacks.apgd import checkpoints
from pytest_triguard.attacks.square import Square
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.objectives import dlr, targeted_dlr
from pytest_triguard.errors import InputError, ModelError
from tests.attacks.table import binary, distance, refused, same
from tests.networks import CLASSES, bare, images, problem

EPS = {"linf": 0.05, "l2": 0.2}


def linear(count=4):
    """Return a linear network of four classes, samples far from the ends of the range, labels."""
    generator = torch.Generator().manual_seed(11)
    layer = nn.Linear(24, CLASSES, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(CLASSES, 24, generator=generator, dtype=torch.float64))
    inputs = images((2, 3, 4), count) * 0.2 + 0.4
    subject = Classifier(nn.Sequential(nn.Flatten(), layer))
    return subject, inputs, bare(subject)(inputs).argmax(1)


def known_distances(subject, inputs, labels, norm):
    """Return the distance of every boundary, `(N, K)`; infinity at the label."""
    layer = bare(subject)[1]
    lead = layer(inputs.flatten(1))
    lead = lead.gather(1, labels.unsqueeze(1)) - lead
    normal = layer.weight[labels].unsqueeze(1) - layer.weight
    size = normal.abs().sum(2) if norm == "linf" else normal.norm(dim=2)
    return (lead / size).scatter(1, labels.unsqueeze(1), math.inf)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fab", "fab_t"])
def test_fab_finds_the_nearest_boundary_of_a_linear_network(name, norm):
    subject, inputs, labels = linear()
    known = known_distances(subject, inputs, labels, norm).amin(1)
    eps = 0.5 if norm == "linf" else 1.5
    attack = attacks.get(name, norm=norm, eps=eps, steps=60, stop="never")
    found = attack(subject, inputs, labels)
    assert found.success.all()
    reached = distance(found.adversarial, inputs, norm)
    assert (reached >= known).all()
    assert (reached <= known * 1.01).all()


def test_carlini_and_wagner_find_the_nearest_boundary_of_a_linear_network():
    subject, inputs, labels = linear(4)
    known = known_distances(subject, inputs, labels, "l2").amin(1)
    attack = attacks.get("cw", eps=1.5, steps=120, searches=5, constant=0.3, stop="never")
    found = attack(subject, inputs, labels)
    assert found.success.all()
    reached = distance(found.adversarial, inputs, "l2")
    assert (reached >= known).all()
    assert (reached <= known * 1.02).all()


def test_carlini_and_wagner_keep_the_confidence_asked_for():
    subject, inputs, labels = linear(4)
    options = {"steps": 60, "searches": 4, "constant": 1.0, "stop": "never"}
    attack = attacks.get("cw", eps=1.5, confidence=0.7, **options)
    found = attack(subject, inputs, labels)
    logits = bare(subject)(found.adversarial)
    lead = logits.amax(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    assert found.success.any()
    assert (lead[found.success] >= 0.7).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["apgd_t", "fab", "fab_t"])
def test_on_a_linear_network_exactly_what_is_near_enough_falls(name, norm):
    """Also where the ball reaches a boundary by a hair."""
    subject, inputs, labels = linear()
    known = known_distances(subject, inputs, labels, norm).amin(1)
    eps = known * torch.tensor([0.98, 1.02] * 2, dtype=torch.float64)
    found = attacks.get(name, norm=norm, eps=eps, steps=50)(subject, inputs, labels)
    assert found.success.tolist() == [False, True] * 2


def test_apgd_in_l2_ends_at_the_best_point_of_a_linear_network():
    subject, inputs = binary(), images((2, 3, 4), 6) * 0.2 + 0.4
    labels = torch.arange(6) % 2
    away = bare(subject)[1].weight.diff(dim=0) * (1 - 2 * labels).unsqueeze(1)
    best = inputs + 0.3 * functional.normalize(away).view_as(inputs)
    attack = attacks.get("apgd_ce", norm="l2", eps=0.3, stop="never")
    assert torch.allclose(attack(subject, inputs, labels).adversarial, best, rtol=0, atol=1e-3)


def test_the_checkpoints_are_the_published_ones():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]
    assert checkpoints(1) == [1]


def by_hand(network, start, clean, label, eps, steps, rho):
    """Return the best point that Auto-PGD up the cross-entropy finds for one sample in L-inf."""

    def at(point):
        point = point.detach().requires_grad_()
        loss = functional.cross_entropy(network(point), label)
        return float(loss.detach()), torch.autograd.grad(loss, point)[0]

    def confined(point):
        return (clean + (point - clean).clamp(-eps, eps)).clamp(0, 1)

    marks, size = checkpoints(steps), 2 * eps
    points, previous = start, start
    losses, best = [], (-math.inf, start, None)
    at_mark, halved, last = None, False, 0
    for step in range(steps + 1):
        loss, gradient = at(points)
        losses.append(loss)
        if loss > best[0]:
            best = (loss, points, gradient)
        at_mark = best[0] if step == 0 else at_mark
        if step in marks:
            rises = sum(losses[i + 1] > losses[i] for i in range(last, step))
            halve = rises < rho * (step - last) or (not halved and at_mark == best[0])
            at_mark, halved, last = best[0], halve, step
            if halve:
                size, points, gradient = size / 2, best[1], best[2]
        share = 1.0 if step == 0 else 0.75
        ahead = confined(points + size * gradient.sign())
        moved = points + share * (ahead - points) + (1 - share) * (points - previous)
        points, previous = confined(moved), points
    return best[1]


def test_apgd_equals_a_plain_loop_from_the_same_start():
    subject, inputs, labels = problem("smooth", 6)
    options = {"eps": 0.05, "steps": 30, "stop": "never"}
    told = attacks.get("apgd_ce", trajectory=True, **options)(subject, inputs, labels)
    network = bare(subject)
    for place in range(6):
        own = slice(place, place + 1)
        start = told.trajectory.points[own, 0]
        best = by_hand(network, start, inputs[own], labels[own], 0.05, 30, 0.75)
        losses = [
            functional.cross_entropy(network(each), labels[own])
            for each in (told.adversarial[own], best)
        ]
        fell = network(best).argmax(1) != labels[own]
        if fell == told.success[place]:  # what wins is kept before what costs more
            assert torch.allclose(losses[0], losses[1], rtol=1e-9)


def test_more_copies_change_nothing_for_a_network_that_does_not_draw():
    subject, inputs, labels = problem("conv", 6)
    one, three = (
        attacks.get("apgd_ce", eps=0.03, steps=6, copies=copies)(subject, inputs, labels)
        for copies in (1, 3)
    )
    assert torch.allclose(one.adversarial, three.adversarial, rtol=0, atol=1e-9)
    assert torch.equal(three.passes, 3 * one.passes)


def test_the_difference_of_logits_ratio_is_what_its_formula_says():
    logits = torch.tensor([[5.0, 1.0, 3.0, 0.0], [1.0, 4.0, 2.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0])
    assert dlr(logits, labels).tolist() == [-(5 - 3) / (5 - 1), (4 - 1) / (4 - 1)]
    targets = torch.tensor([2, 2])
    expected = [-(5 - 3) / (5 - 0.5), -(1 - 2) / (4 - 0.5)]
    assert targeted_dlr(logits, labels, targets).tolist() == pytest.approx(expected, abs=1e-15)
    assert dlr(logits * 100 + 7, labels).tolist() == pytest.approx(dlr(logits, labels).tolist())


@pytest.mark.parametrize(
    ("name", "target", "needed"), [("apgd_dlr", None, 3), ("apgd_dlr", 1, 4), ("apgd_t", None, 4)]
)
def test_the_ratio_needs_enough_classes(name, target, needed):
    message = f"the attack {name!r} needs at least {needed} classes, but the classifier has 2; use"
    with refused(InputError, message):
        attacks.get(name)(binary(), images((2, 3, 4), 2), torch.tensor([0, 1]), targets=target)


@pytest.mark.parametrize("name", ["apgd_t", "fab", "fab_t", "autoattack"])
def test_attacks_that_choose_their_targets_take_none(name):
    subject, inputs, labels = problem("linear", 3)
    with refused(InputError, f"targets must be left out for {name!r}, whose goal is any class but"):
        attacks.get(name)(subject, inputs, labels, targets=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cw_does_not_lose_its_weights_and_moments_to_half_precision(dtype):
    """A black border has no gradient, and the weight grows to 1e5 where nothing is in reach."""
    exact, inputs, labels = problem("linear", 4, torch.float32)
    inputs[:, :, 0] = 0
    coarse = Classifier(bare(exact).to(dtype))
    for eps, options in ((1.0, {"constant": 1.0}), (0.0, {"steps": 3, "searches": 9})):
        attack = attacks.get(
            "cw", eps=eps, **{"steps": 60, "searches": 3, "stop": "never"} | options
        )
        expected = attack(exact, inputs, labels)
        found = attack(coarse, inputs.to(dtype), labels)
        assert torch.equal(found.success, expected.success)
        assert torch.allclose(found.adversarial.float(), expected.adversarial, atol=0.03)


def test_cw_is_an_attack_in_l2():
    with refused(InputError, "norm must be 'l2' for the attack 'cw', but 'linf' came"):
        attacks.get("cw", norm="linf")


@pytest.mark.parametrize("name", ["apgd_t", "fab_t"])
def test_targets_come_one_after_the_other_by_falling_logit(name):
    """The second class lies far off by its small slope, the third is near by its large one."""
    layer = nn.Linear(12, CLASSES, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [-0.01], [1.0], [-0.01]]).expand(CLASSES, 12))
        layer.bias.copy_(torch.tensor([10.0, 9.5, 3.0, 0.0]))
    subject = Classifier(nn.Sequential(nn.Flatten(), layer))
    inputs, labels = torch.full((2, 1, 3, 4), 0.5, dtype=torch.float64), torch.zeros(2).long()
    one, two = (
        attacks.get(name, eps=0.2, classes=classes, steps=12)(subject, inputs, labels)
        for classes in (1, 2)
    )
    assert not one.success.any()
    assert one.passes.tolist() == [12, 12]
    assert two.success.all()
    assert (two.passes > 12).all()


class Queried(nn.Module):
    """Answers without gradients, and keeps what it was asked."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.seen = []

    @torch.no_grad()
    def forward(self, inputs):
        self.seen.append(inputs.clone())
        return self.inner(inputs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_needs_no_gradient_and_no_more_than_its_queries(norm):
    subject, inputs, labels = problem("smooth", 8)
    network = Queried(bare(subject))
    attack = attacks.get("square", norm=norm, eps=EPS[norm], queries=20)
    found = attack(Classifier(network), inputs, labels)
    assert same(found, attack(subject, inputs, labels))
    assert found.cost["backward"] == 0
    assert found.passes.max() == 20
    assert found.cost["forward"] <= 8 * 21
    with refused(
        ModelError, "the module Queried gives no gradient of its logits, which the attack"
    ):
        attacks.get("pgd")(Classifier(network), inputs, labels)


def test_square_in_linf_asks_at_corners_of_the_ball_and_changes_one_square():
    subject, _, labels = problem("smooth", 1)
    inputs = torch.full((1, 3, 6, 7), 0.5, dtype=torch.float64)
    network = Queried(bare(subject))
    attacks.get("square", eps=0.1, queries=30, stop="never")(Classifier(network), inputs, labels)
    asked = torch.cat(network.seen[-31:])
    assert torch.allclose((asked - inputs).abs(), torch.full_like(asked, 0.1), rtol=0, atol=1e-12)
    stripes = asked[0]
    assert torch.equal(stripes, stripes[:, :1].expand_as(stripes))
    best, sides = asked[0], Square(queries=30).sizes(6, 7, 1)
    scores = bare(subject)(asked)
    margin = scores.gather(1, labels.expand(31).unsqueeze(1)).squeeze(1)
    margin = margin - scores.scatter(1, labels.expand(31).unsqueeze(1), -math.inf).amax(1)
    kept = 0
    for query in range(1, 31):
        changed = (asked[query] != best).any(0)
        if changed.any():
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            assert rows.max() - rows.min() < sides[query - 1]
            assert columns.max() - columns.min() < sides[query - 1]
            colours = asked[query][:, changed]
            assert torch.equal(colours, colours[:, :1].expand_as(colours))
        if margin[query] < margin[kept] and (margin[kept] > 0 or margin[query] < 0):
            best, kept = asked[query], query


def test_square_in_l2_stays_on_the_sphere_where_no_end_is_near():
    subject, _, labels = problem("smooth", 1)
    inputs = torch.full((1, 3, 6, 7), 0.5, dtype=torch.float64)
    network = Queried(bare(subject))
    attack = attacks.get("square", norm="l2", eps=0.3, queries=30, stop="never")
    attack(Classifier(network), inputs, labels)
    asked = torch.cat(network.seen[-31:])
    radius = (asked - inputs).flatten(1).norm(dim=1)
    assert torch.allclose(radius, torch.full_like(radius, 0.3), rtol=0, atol=1e-12)
    assert (asked.diff(dim=0) != 0).flatten(1).any(1).all()


def test_the_squares_shrink_as_published():
    sides = Square(queries=5000).sizes(32, 32, 1)
    shares = {
        0: 0.8,
        11: 0.4,
        51: 0.2,
        201: 0.1,
        501: 0.05,
        1001: 0.025,
        2001: 0.0125,
        4001: 0.00625,
    }
    for query, share in shares.items():
        assert sides[query] == round(math.sqrt(share * 32 * 32))
        if query:
            assert sides[query - 1] == round(math.sqrt(2 * share * 32 * 32))
    assert set(Square(queries=300).sizes(9, 40, 3, odd=True)) == {9, 7}


@pytest.mark.parametrize("name", ["apgd_ce", "fab", "square", "cw"])
def test_more_restarts_never_find_less(name):
    subject, inputs, labels = problem("conv", 16)
    quick = {"square": {"queries": 5}, "cw": {"steps": 8, "constant": 1.0}}.get(name, {"steps": 2})
    norm = "l2" if name == "cw" else "linf"
    before = torch.zeros(16, dtype=torch.bool)
    for several in (1, 3):
        again = {"searches" if name == "cw" else "restarts": several}
        attack = attacks.get(name, eps=EPS[norm] / 2, norm=norm, **quick, **again)
        found = attack(subject, inputs, labels)
        assert torch.equal(found.success, bare(subject)(found.adversarial).argmax(1) != labels)
        assert (found.success | ~before).all()
        before = found.success
    assert 0 < before.sum() < 16


BAD = [
    ("apgd_ce", {"rho": 1.5}, "rho must be from 0 to 1, but 1.5 came"),
    ("apgd_ce", {"copies": 0}, "copies must be at least 1, but 0 came"),
    ("apgd_dlr", {"steps": 0}, "steps must be at least 1, but 0 came"),
    ("apgd_t", {"classes": 0}, "classes must be at least 1, but 0 came"),
    ("apgd_ce", {"restarts": 2, "trajectory": True}, "trajectory=True needs one start, but"),
    ("fab", {"steps": 0}, "steps must be at least 1, but 0 came"),
    ("fab", {"eta": 0.9}, "eta must be at least 1, but 0.9 came"),
    ("fab", {"beta": 2}, "beta must be from 0 to 1, but 2 came"),
    ("fab", {"alpha_max": -1}, "alpha_max must be from 0 to 1, but -1 came"),
    ("fab_t", {"classes": 0}, "classes must be at least 1, but 0 came"),
    ("square", {"queries": 0}, "queries must be at least 1, but 0 came"),
    ("square", {"share": 0}, "share must be from 0 to 1 (0 excluded), but 0 came"),
    ("square", {"stop": "early"}, "stop must be one of 'success', 'never', but 'early' came"),
    ("cw", {"steps": 0}, "steps must be at least 1, but 0 came"),
    ("cw", {"searches": 0}, "searches must be at least 1, but 0 came"),
    ("cw", {"constant": 0}, "constant must be greater than 0, but 0 came"),
    ("cw", {"confidence": -1}, "confidence must be at least 0, but -1 came"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_a_bad_hyperparameter_is_refused(name, options, message):
    with refused(InputError, message):
        attacks.get(name, **options)
