"""The table of verification methods: what every one of them promises on every network."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_triguard import Classifier, attacks, verification
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification import ibp
from pytest_triguard.verification import methods as stages
from pytest_triguard.verification import network as walk
from pytest_triguard.verification.judging import SLACK
from tests.verification.zoo import (
    CLASSES,
    ZOO,
    exact_logits,
    images,
    network,
    points_inside,
    problem,
)

METHODS = ["alpha_crown", "auto", "branch_and_bound", "crown", "crown_ibp", "ibp"]
DTYPES = [torch.float32, torch.float64]
methods = pytest.mark.parametrize("method", METHODS)
names = pytest.mark.parametrize("name", ZOO)
few = settings(max_examples=8, deadline=None)
BUDGET = verification.Budget(domains=4, steps=2)
"""No time, so that nothing depends on how fast the machine is."""


def chunked(rows):
    return use_session(Session(settings=Settings(chunk=rows)))


def test_the_table_is_complete():
    own = [name for name in verification.names() if not name.startswith("auto_lirpa:")]
    assert own == METHODS


@names
@few
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([1e-4, 0.003, 0.02, 0.1]), data=st.data())
def test_a_proven_sample_never_falls(name, seed, eps, data):
    """Not to PGD, to corners, or to random points, in the arithmetic of the module that runs."""
    dtype, method = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(METHODS))
    subject, inputs, labels = problem(name, 3, seed, dtype)
    budget = verification.Budget(domains=6, steps=3)
    result = verification.verify(subject, inputs, labels, eps=eps, method=method, budget=budget)
    proven = [place for place, status in enumerate(result.status) if status == "proven"]
    for place in proven:
        lower, upper = (inputs[place] - eps).clamp(0, 1), (inputs[place] + eps).clamp(0, 1)
        points = points_inside(lower, upper, 64, seed)
        assert (subject(points).argmax(1) == labels[place]).all()
        margins = exact_logits(subject, points)
        margins = margins[:, [labels[place]]] - margins
        margins[:, labels[place]] = torch.inf
        assert margins.min() >= result.margin[place] - 1e-12
    if proven:
        attack = attacks.get("pgd", eps=eps, steps=10, loss="margin", seed=seed)
        assert not attack(subject, inputs[proven], labels[proven]).success.any()


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, torch.float64) for method in METHODS), ("auto", torch.float32)],
)
@names
def test_at_a_tiny_radius_what_is_predicted_is_proven(method, name, dtype):
    subject, inputs, labels = problem(name, 4, dtype=dtype)
    labels[0] = (labels[0] + 1) % CLASSES
    result = verification.verify(subject, inputs, labels, eps=1e-9, method=method, budget=BUDGET)
    assert result.status == ("falsified", *["proven"] * 3)
    assert result.stage == ("clean", *["ibp" if method == "auto" else method] * 3)
    assert torch.equal(result.counterexample[0], inputs[0])
    assert torch.isnan(result.counterexample[1:]).all()


@methods
@names
def test_at_eps_zero_the_proven_are_the_correct_whose_margin_exceeds_the_slack(method, name):
    subject, inputs, _ = problem(name, 12)
    labels = torch.arange(12) % CLASSES
    logits = exact_logits(subject, inputs)
    own = logits.gather(1, labels.unsqueeze(1))
    margin = (own - logits).scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
    result = verification.verify(subject, inputs, labels, eps=0.0, method=method, budget=BUDGET)
    bounded = result.margin > -torch.inf  # what is misclassified only intervals look at
    assert bounded[margin > 0].all()
    assert torch.allclose(result.margin[bounded], margin[bounded], atol=1e-11)
    assert [status == "proven" for status in result.status] == (margin > result.slack).tolist()
    assert result.counts["proven"] == int((subject(inputs).argmax(1) == labels).sum())


@pytest.mark.parametrize("method", ["ibp"])  # bounds with adaptive slopes need not
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@names
def test_the_margin_falls_as_eps_grows(method, name, norm):
    subject, inputs, labels = problem(name)
    margins = [
        verification.verify(subject, inputs, labels, eps=eps, norm=norm, method=method).margin
        for eps in (0.0, 1e-3, 0.01, 0.05, 0.2)
    ]
    assert all((after <= before + 1e-12).all() for before, after in pairwise(margins))


@names
def test_an_l1_ball_is_in_the_l2_ball_is_in_the_box(name):
    subject, inputs, labels = problem(name)
    box, l2, l1 = (
        verification.verify(subject, inputs, labels, eps=0.05, norm=norm, method="ibp").margin
        for norm in ("linf", "l2", "l1")
    )
    assert (box <= l2 + 1e-12).all()
    assert (l2 <= l1 + 1e-12).all()


@few
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "l1"]))
@pytest.mark.parametrize("name", ["mlp", "functional", "convolutional head", "gated", "pools"])
def test_margins_of_balls_hold_for_points_of_the_ball(name, seed, norm):
    """Among them single pixels moved by eps, where an L1 ball reaches furthest."""
    eps, order = 0.3, {"l2": 2, "l1": 1}[norm]
    subject, inputs, labels = problem(name, 2, seed)
    result = verification.verify(subject, inputs, labels, eps=eps, norm=norm, method="ibp")
    for place, clean in enumerate(inputs):
        offsets = torch.randn(64, *clean.shape, generator=torch.Generator().manual_seed(seed))
        offsets = offsets.double().flatten(1)
        singles = torch.cat([torch.eye(clean.numel()), -torch.eye(clean.numel())]).double()
        offsets = torch.cat([offsets / offsets.norm(p=order, dim=1, keepdim=True), singles])
        points = (clean + eps * offsets.view(-1, *clean.shape)).clamp(0, 1)
        logits = exact_logits(subject, points)
        margins = logits[:, [labels[place]]] - logits
        margins[:, labels[place]] = torch.inf
        assert margins.min() >= result.margin[place] - 1e-12


@names
def test_nothing_depends_on_the_chunk(name):
    """Rows of one on their own are in test_soundness.py."""
    subject, inputs, labels = problem(name)
    labels[1] = (labels[1] + 1) % CLASSES
    with chunked(8):
        expected = verification.verify(subject, inputs, labels, eps=0.02, budget=BUDGET)
    with chunked(3):
        result = verification.verify(subject, inputs, labels, eps=0.02, budget=BUDGET)
    assert result.status == expected.status
    assert result.stage == expected.stage
    assert torch.allclose(result.margin, expected.margin, rtol=0, atol=1e-9)
    assert torch.allclose(
        result.counterexample, expected.counterexample, rtol=0, atol=1e-9, equal_nan=True
    )


@names
def test_nothing_depends_on_the_other_samples(name):
    subject, inputs, labels = problem(name)
    eps = torch.linspace(0.001, 0.05, 8)
    together = verification.verify(subject, inputs, labels, eps=eps, method="ibp")
    for place in range(8):
        row = slice(place, place + 1)
        alone = verification.verify(
            subject, inputs[row], labels[row], eps=float(eps[place]), method="ibp"
        )
        assert alone.status == together.status[row]
        assert torch.allclose(alone.margin, together.margin[row], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "auto") for name in ZOO), *(("pools", each) for each in METHODS if each != "auto")],
)
def test_everything_is_left_as_it_came(name, method):
    subject, inputs, labels = problem(name, 4, dtype=torch.float32)
    module = subject.module.train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    attributes = {each: set(vars(each)) for each in module.modules()}
    state, given = torch.get_rng_state(), inputs.clone()
    verification.verify(subject, inputs, labels, eps=0.05, method=method, budget=BUDGET)
    assert all(each.training for each in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert attributes == {each: set(vars(each)) for each in module.modules()}
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, given)


# --- a linear network, where everything has a closed form ----------------------------------------


def linear(dtype=torch.float64, **arguments):
    subject = Classifier(network("linear", 5, dtype), **arguments)
    inputs = images("linear", 6, 5, dtype)
    return subject, inputs, subject(inputs).argmax(1)


def differences(subject, labels):
    """Weights of `f_y - f_j` for every other class j, `(N, K - 1, D)`."""
    weight = subject.module[1].weight.detach().double()
    rows = weight[labels].unsqueeze(1) - weight
    others = torch.tensor([[j for j in range(CLASSES) if j != y] for y in labels.tolist()])
    return rows.gather(1, others.unsqueeze(2).expand(-1, -1, rows.shape[2])), others


def clean_margins(subject, inputs, labels, others):
    logits = exact_logits(subject, inputs)
    return logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_a_linear_network_has_its_closed_form(norm, dual, dtype):
    """Gowal et al. 2018, section 3: no bound is lost where only one product is taken."""
    subject, inputs, labels = linear(dtype, bounds=(-100.0, 100.0), mean=0.3, std=0.25)
    eps = torch.linspace(0.01, 0.3, 6, dtype=torch.float64)
    rows, others = differences(subject, labels)
    reach = eps.unsqueeze(1) * torch.linalg.vector_norm(rows / 0.25, ord=dual, dim=2)
    expected = (clean_margins(subject, inputs, labels, others) - reach).amin(1)
    result = verification.verify(subject, inputs, labels, eps=eps, norm=norm, method="ibp")
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert torch.allclose(result.margin, expected, rtol=tolerance, atol=tolerance)
    assert (result.margin <= expected + tolerance / 1e3).all()


def test_a_margin_that_nearly_cancels_is_below_its_exact_value(monkeypatch):
    """Computed in float32, where the rounding error of the bound is far larger than the margin."""
    monkeypatch.setattr(walk, "supports_float64", lambda device: False)
    generator = torch.Generator().manual_seed(4)
    weight, half = torch.randn(CLASSES, 2048, generator=generator), torch.rand(99, 2048) / 2
    module = nn.Sequential(nn.Flatten(), nn.Linear(4096, CLASSES))
    with torch.no_grad():
        module[1].weight.copy_(torch.cat([weight, -weight], 1))
        module[1].bias.zero_()
    inputs = torch.cat([half, half * (1 + 1e-6)], 1).view(99, 64, 8, 8)
    subject = Classifier(module)
    labels = torch.arange(99) % CLASSES
    result = verification.verify(subject, inputs, labels, eps=0.0, method="ibp")
    _, others = differences(subject, labels)
    exact = clean_margins(subject, inputs, labels, others).amin(1)
    assert (result.margin <= exact).all()
    assert torch.allclose(result.margin, exact, atol=2.0)


def test_the_difference_of_two_biases_is_rounded_down():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.copy_(torch.tensor([1.0, 1e-17], dtype=torch.float64))
    inputs = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    result = verification.verify(Classifier(module), inputs, torch.tensor([0]), eps=0.0)
    assert Fraction(result.margin.item()) <= 1 - Fraction(1e-17)
    assert result.margin.item() == pytest.approx(1, abs=1e-13)


class Prepared(nn.Module):
    """Scales its input itself, with a negative factor, before the one product."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)
        self.last = nn.Linear(12, CLASSES)
        self.norm.running_var.fill_(4.0)

    def forward(self, inputs):
        hidden = self.norm((1.5 - inputs) * 2 / 0.7 - 0.3)
        return self.last(hidden.reshape(-1, 12))


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("l1", torch.inf)])
def test_a_ball_survives_what_only_scales(norm, dual):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = Prepared().double()
    subject = Classifier(module, bounds=(-100.0, 100.0), mean=0.3, std=0.25)
    inputs = images("linear", 6)
    labels = subject(inputs).argmax(1)
    weight = module.last.weight.detach()
    rows = (weight[labels].unsqueeze(1) - weight) * (2 / 0.7 / 0.25 / (4 + 1e-5) ** 0.5)
    reach = 0.2 * torch.linalg.vector_norm(rows, ord=dual, dim=2)
    logits = exact_logits(subject, inputs)
    margins = logits.gather(1, labels.unsqueeze(1)) - logits - reach
    expected = margins.scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
    result = verification.verify(subject, inputs, labels, eps=0.2, norm=norm, method="ibp")
    assert torch.allclose(result.margin, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rows_taken_in_small_blocks_give_the_same_margin(norm, monkeypatch):
    subject, inputs, labels = problem("mlp")
    arguments = {"eps": 0.05, "norm": norm, "method": "ibp"}
    at_once = verification.verify(subject, inputs, labels, **arguments)
    monkeypatch.setattr(ibp, "_BLOCK", 1)
    in_blocks = verification.verify(subject, inputs, labels, **arguments)
    assert torch.allclose(at_once.margin, in_blocks.margin, rtol=0, atol=1e-12)


def test_a_clipped_linear_network_is_minimised_over_the_clipped_box():
    subject, inputs, labels = linear()
    lower, upper = (inputs - 0.3).clamp(0, 1).flatten(1), (inputs + 0.3).clamp(0, 1).flatten(1)
    rows, others = differences(subject, labels)
    worst = torch.where(rows > 0, lower.unsqueeze(1), upper.unsqueeze(1))
    moved = (rows * (worst - inputs.flatten(1).unsqueeze(1))).sum(2)
    expected = (clean_margins(subject, inputs, labels, others) + moved).amin(1)
    result = verification.verify(subject, inputs, labels, eps=0.3, method="ibp")
    assert torch.allclose(result.margin, expected, rtol=0, atol=1e-11)
    assert (moved.abs() < 0.3 * rows.abs().sum(2) - 1e-3).all()


@pytest.mark.parametrize("bounds", [((0.0, -1.0, 0.2), (1.0, 1.0, 0.8))])
def test_bounds_per_channel_cut_the_box(bounds):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]))
        network[1].bias.zero_()
    inputs = torch.tensor([0.1, -0.9, 0.3], dtype=torch.float64).view(1, 3, 1, 1)
    result = verification.verify(
        Classifier(network, bounds=bounds), inputs, torch.tensor([0]), eps=0.5, method="ibp"
    )
    assert result.margin.item() == pytest.approx(0 * 1 + -1 * 2 + 0.2 * 4, abs=1e-12)


# --- specifications and boxes -------------------------------------------------------------------


@names
def test_a_target_is_one_of_the_margins(name):
    subject, inputs, labels = problem(name)
    margins = []
    for shift in range(1, CLASSES):
        targets = (labels + shift) % CLASSES
        margins.append(
            verification.verify(
                subject, inputs, labels, eps=0.01, method="ibp", specification=targets
            ).margin
        )
    every = verification.verify(subject, inputs, labels, eps=0.01, method="ibp").margin
    assert torch.allclose(torch.stack(margins).amin(0), every, rtol=0, atol=1e-10)


@names
def test_rows_on_the_logits_are_the_differences_they_spell(name):
    subject, inputs, labels = problem(name)
    chosen = labels == labels[0]
    rows = torch.eye(CLASSES)[labels[0]] - torch.eye(CLASSES)
    rows = rows[[j for j in range(CLASSES) if j != int(labels[0])]]
    arguments = {"eps": 0.01, "method": "ibp"}
    spelt = verification.verify(subject, inputs[chosen], **arguments, specification=rows)
    every = verification.verify(subject, inputs[chosen], labels[chosen], **arguments)
    assert torch.allclose(spelt.margin, every.margin, rtol=0, atol=1e-10)
    assert spelt.status == every.status
    larger = verification.verify(subject, inputs[chosen], **arguments, specification=10 * rows)
    assert torch.allclose(larger.margin, 10 * every.margin, rtol=0, atol=1e-9)
    assert torch.allclose(larger.slack, 10 * every.slack, rtol=1e-6, atol=0)


def test_rows_that_the_sample_itself_breaks_are_falsified_by_it():
    subject, inputs, labels = problem("mlp")
    rows = -torch.ones(1, CLASSES)
    rows[0, int(labels[0])] = 0.5
    kept = (exact_logits(subject, inputs) @ rows.double().T).squeeze(1) > 0
    result = verification.verify(subject, inputs, eps=1e-9, specification=rows)
    assert [status == "proven" for status in result.status] == kept.tolist()
    assert [stage == "clean" for stage in result.stage] == (~kept).tolist()


def test_a_target_only_falls_to_the_target():
    """A sample predicted as a third class keeps its label's logit above the target's, or not."""
    subject, inputs, _ = problem("mlp", 30)
    logits = exact_logits(subject, inputs)
    second = logits.topk(3).indices[:, 1]
    third = logits.topk(3).indices[:, 2]
    result = verification.verify(subject, inputs, second, eps=1e-9, specification=third)
    assert set(result.status) == {"proven"}
    result = verification.verify(subject, inputs, third, eps=1e-9, specification=second)
    assert set(result.status) == {"falsified"}


@names
def test_a_box_is_the_ball_it_spells(name):
    subject, inputs, labels = problem(name)
    ball = verification.verify(subject, inputs, labels, eps=0.02, method="ibp")
    box = verification.verify(
        subject, inputs, labels, eps=None, lower=inputs - 0.02, upper=inputs + 0.02, method="ibp"
    )
    assert torch.allclose(box.margin, ball.margin, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": 3.0, "norm": "l1"}, "pgd does not attack in l1"),
        (
            {"eps": 0.5, "specification": torch.tensor([[1.0, -9.0, 1.0]])},
            "pgd does not attack rows",
        ),
    ],
)
def test_where_no_attack_is_run_it_is_said(arguments, words, monkeypatch):
    monkeypatch.setitem(stages.STAGES, "auto", ("ibp", "pgd"))
    subject, inputs, labels = problem("mlp", 30)
    result = verification.verify(subject, inputs, labels, **arguments)
    assert "pgd" not in [stage.name for stage in result.stages]
    reasons = {reason for reason in result.reason if reason}
    assert len(reasons) == 1
    assert words in reasons.pop()


# --- what is not finite, and the slack ----------------------------------------------------------


def exploding():
    """Logits are finite, their bounds overflow: 1e200 twice, then tanh."""
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
    ).double()
    with torch.no_grad():
        for layer in (module[1], module[2]):
            layer.weight.fill_(1e200)
            layer.bias.zero_()
        module[4].weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4]))
        module[4].bias.zero_()
    return Classifier(module)


@methods
def test_a_bound_that_is_not_finite_is_unknown(method):
    inputs = torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    result = verification.verify(exploding(), inputs, labels, eps=0.1, method=method)
    assert result.status == ("unknown", "unknown", "falsified")
    assert result.reason[0].startswith("the bound is not finite")
    assert (result.margin == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_margin_within_the_slack_is_no_proof(dtype):
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).to(dtype)
    inputs = torch.full((1, 1, 2, 2), 0.5, dtype=dtype)
    found = []
    for share in (0.5, 2.0):
        with torch.no_grad():
            module[1].weight.zero_()
            above = torch.tensor([1 + share * SLACK[dtype], 1.0], dtype=torch.float64)
            module[1].bias.copy_(100 * above)
        result = verification.verify(Classifier(module), inputs, torch.tensor([0]), eps=0.1)
        assert result.slack.item() == pytest.approx(100 * SLACK[dtype], rel=1e-3)
        assert result.margin.item() == pytest.approx(share * result.slack.item(), rel=0.5)
        found += result.status
    assert found == ["unknown", "proven"]


def test_a_tie_is_no_proof():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    result = verification.verify(
        Classifier(module), torch.rand(1, 1, 2, 2), torch.tensor([0]), eps=0.0
    )
    assert result.status == ("unknown",)


def test_dead_neurons_and_zero_weights_are_bounded():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.fill_(-1)
        module[3].bias.copy_(torch.tensor([1.0, 0.0]))
    result = verification.verify(
        Classifier(module), torch.rand(2, 1, 2, 2), torch.tensor([0, 0]), eps=1.0, method="ibp"
    )
    assert result.status == ("proven", "proven")
    assert torch.allclose(result.margin, torch.ones(2, dtype=torch.float64), atol=1e-12)
