"""No proof is wrong: random networks over every operator, and networks whose truth is known."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_triguard import Classifier, verification
from pytest_triguard.verification import judging
from pytest_triguard.verification.capture import capture
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import BOUNDS as TABLE_OF_BOUNDS
from pytest_triguard.verification.methods import Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import TABLE
from pytest_triguard.verification.specification import Differences
from tests.verification import soundness, zoo
from tests.verification.random_networks import Apply, problem, problems, seeded
from tests.verification.soundness import ARGUMENTS, BOUNDS, BUDGET, CHECKS, METHODS, NORMS, holds

CASES = int(os.environ.get("TRIGUARD_RANDOM_CASES", "10000"))
"""Random cases of the slow test."""
FIRST = int(os.environ.get("TRIGUARD_RANDOM_FIRST", "0"))
"""Seed of the first of them."""
_BLOCKS = 20
_TURNS = (*["outputs", "proofs"] * 4, *["rough"] * 3, "poisoned", "smaller eps", "alone")
"""Checks of the random cases in turn, the dear ones less often."""

few = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
methods = pytest.mark.parametrize("method", METHODS)


def choosing(data):
    return lambda options: data.draw(st.sampled_from(options))


@pytest.mark.parametrize("check", CHECKS)
@few
@given(data=st.data())
def test_random_networks(check, data):
    drawn = data.draw(problems(**ARGUMENTS.get(check, {})))
    holds(check, choosing(data), drawn)


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("seed", range(10))
def test_bounds_of_random_networks_hold_for_every_method(seed, method):
    soundness.check_outputs(seeded(seed), random.Random(seed).choice, method)


@methods
@pytest.mark.parametrize("seed", range(8))
def test_proofs_of_random_networks_hold_for_every_method(seed, method):
    choose = random.Random(seed).choice
    soundness.check_proofs(problem(choose, weights=("plain",)), choose, method)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(_BLOCKS))
def test_many_random_networks(block, request):
    """All that fail are told, with their seeds."""
    count, failed = 0, []
    for seed in range(FIRST + block, FIRST + CASES, _BLOCKS):
        choose = random.Random(seed).choice
        name = _TURNS[seed // _BLOCKS % len(_TURNS)]
        try:
            count += holds(name, choose, problem(choose, **ARGUMENTS.get(name, {})))
        except Exception as error:
            failed.append(f"seed {seed}, {name}: {type(error).__name__} {error}")
    # Not by record_property, which warns wherever a JUnit file of the default form is written.
    request.node.user_properties.append(("random cases", count))
    assert not failed, "\n".join(failed)


def test_random_networks_have_every_operator():
    """Every rule of the table is drawn, under some name."""
    missing = {id(rule.interval) for rule in TABLE.values()}
    for seed in range(4000):
        graph = capture(seeded(seed).subject.module)
        rules = [graph.rule(node) for node in graph.nodes]
        missing -= {id(rule.interval) for rule in rules if rule is not None}
        if not missing:
            return
    left = [key for key, rule in TABLE.items() if id(rule.interval) in missing]
    raise AssertionError(f"never drawn: {left}")


# --- affine networks, where everything has a closed form ------------------------------------------


def product():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def affine():
    return nn.Sequential(
        nn.Conv2d(1, 4, (2, 3), padding=1, stride=(1, 2)),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(2, 1, padding=1),
        nn.ConvTranspose2d(4, 2, 2, groups=2),
        nn.Flatten(),
        nn.LazyLinear(6),
        nn.Linear(6, 3),
    )


@pytest.mark.parametrize(
    ("build", "method"),
    [(product, method) for method in METHODS]
    + [(affine, method) for method in METHODS if method not in ("ibp", "auto")],
)
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_an_affine_network_has_its_closed_form(build, method, norm, dual):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        module, inputs = build(), torch.rand(5, 1, 4, 4)
        module(inputs)
    module, inputs = module.double().eval(), inputs.double()
    subject = Classifier(module, bounds=(-9.0, 9.0), mean=0.4, std=0.3)
    logits = subject(inputs)
    labels = logits.argmax(1)
    eps = torch.linspace(0.0, 0.05, 5, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(module, inputs[:1])[0, :, 0].flatten(1) / 0.3
    rows = slopes[labels].unsqueeze(1) - slopes
    reach = eps.unsqueeze(1) * torch.linalg.vector_norm(rows, ord=dual, dim=2)
    apart = logits.gather(1, labels.unsqueeze(1)) - logits - reach
    expected = apart.scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
    result = verification.verify(
        subject, inputs, labels, eps=eps, norm=norm, method=method, budget=BUDGET
    )
    assert torch.allclose(result.margin, expected, rtol=0, atol=1e-10)
    assert (result.margin <= expected + 1e-13).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "copies",
    [
        lambda x: x.repeat(1, 2, 1, 1),
        lambda x: x.expand(-1, 2, -1, -1),
        lambda x: x + torch.zeros(2, 1, 1, dtype=torch.float64),
        lambda x: nn.functional.interpolate(x, scale_factor=2, mode="nearest"),
        lambda x: nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"),
        lambda x: torch.cat([x, x], 1),
    ],
    ids=["repeat", "expand", "broadcast", "interpolate", "pad", "cat"],
)
@methods
def test_copies_of_an_element_move_together(method, copies, norm):
    """A ball around a value is a larger one around what copies its elements."""
    inputs = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    size = copies(inputs).numel()
    module = nn.Sequential(Apply("copies", copies), nn.Flatten(), nn.Linear(size, 2)).double()
    with torch.no_grad():
        module[2].weight.copy_(torch.stack([torch.ones(size), torch.zeros(size)]))
        module[2].bias.zero_()
    result = verification.verify(
        Classifier(module), inputs, torch.tensor([0]), eps=0.1, norm=norm, method=method
    )
    weights = torch.autograd.functional.jacobian(lambda x: copies(x).sum(), inputs).flatten()
    dual = torch.linalg.vector_norm(weights, ord={"linf": 1, "l2": 2, "l1": torch.inf}[norm])
    assert result.margin.item() <= 0.5 * size - 0.1 * dual + 1e-12


# --- what is not finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("name", ["mlp", "pools", "functional"])
def test_weights_that_are_not_finite_prove_nothing(name, method, poison):
    """Judged without the checks that come before, which refuse such modules by name."""
    subject, inputs, labels = zoo.problem(name, 3)
    with subject.prepared() as model:
        parameters = [each for each in model.module.parameters() if each.ndim > 1]
        with torch.no_grad():
            parameters[0].view(-1)[0] = poison
            parameters[-1].view(-1)[-1] = poison
        network = Network(model, inputs.dtype)
        rows = Differences(labels, None, zoo.CLASSES)
        region = Interval(inputs - 1e-6, inputs + 1e-6)
        network.enclose(region)
        found = TABLE_OF_BOUNDS.get(method).margins(network, region, rows, Effort(budget=BUDGET))
        code, *_ = judging.judge(network, found, rows, torch.zeros(3, zoo.CLASSES).double())
    assert (code != judging.PROVEN).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
@methods
def test_bounds_that_overflow_prove_nothing(method, norm, dtype):
    """The logits are finite and alike everywhere, but no bound in between is."""
    large = {torch.float32: 1e30, torch.float64: 1e250}[dtype]
    module = nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
        nn.Hardtanh(),
        nn.ReLU(),
        nn.Linear(4, 2),
    ).to(dtype)
    with torch.no_grad():
        for place in (1, 2, 3):
            module[place].weight.fill_(large)
            module[place].bias.zero_()
        module[6].weight.zero_()
        module[6].bias.copy_(torch.tensor([1.0, 0.0]))
    with soundness.without_float64():
        result = verification.verify(
            Classifier(module),
            torch.full((2, 1, 2, 2), 0.5, dtype=dtype),
            torch.tensor([0, 0]),
            eps=0.1,
            norm=norm,
            method=method,
            budget=BUDGET,
        )
    assert result.status == ("unknown", "unknown")
    assert (result.margin == -torch.inf).all()


# --- nothing depends on what is worked on together ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "raised", "method"),
    [
        *(("mlp", 3e3, method) for method in METHODS),
        *(("pools", 0.0, method) for method in METHODS),
        ("gated", 3e3, "auto"),
        ("residual", 0.0, "auto"),
    ],
)
def test_nothing_depends_on_neighbours_order_or_chunk(name, raised, method):
    """Among the samples are falsified ones, and large logits, which have to be bounded tightly."""
    subject, inputs, _ = zoo.problem(name, 6)
    with torch.no_grad():
        [layer for layer in subject.module.modules() if isinstance(layer, nn.Linear)][-1].bias.add_(
            raised
        )
    labels = subject(inputs).argmax(1)
    labels[4] = (labels[4] + 1) % zoo.CLASSES
    eps = torch.tensor([1e-6, 0.001, 0.01, 0.05, 0.1, 0.3])
    budget = verification.Budget(domains=12, steps=3)

    def run(order, rows):
        with soundness.chunked(rows), soundness.without_attacks():
            found = verification.verify(
                subject, inputs[order], labels[order], eps=eps[order], method=method, budget=budget
            )
        room = 1e-10 * (1 + raised)
        columns = found.status, found.stage, found.margin.tolist(), found.slack.tolist()
        return [
            (
                status,
                stage,
                pytest.approx(margin, rel=1e-9, abs=room),
                pytest.approx(slack),
            )
            for _, status, stage, margin, slack in sorted(zip(order, *columns, strict=True))
        ]

    together = run(list(range(6)), 6)
    assert run([5, 3, 1, 0, 2, 4], 2) == together
    assert [run([place], 1)[0] for place in range(6)] == together


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["pools", "functional", "residual"])
def test_few_steps_of_ascent_do_not_depend_on_neighbours(name, norm):
    """Rows on overlapping windows cancel; the noise that is left must not steer the first step."""
    subject, inputs, labels = zoo.problem(name, 6)

    def run(rows):
        with soundness.chunked(rows):
            return verification.verify(
                subject, inputs, labels, eps=0.3, norm=norm, method="alpha_crown", budget=BUDGET
            ).margin

    assert torch.allclose(run(1), run(6), rtol=1e-10, atol=1e-10)
