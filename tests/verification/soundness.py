"""What soundness means for one random problem, for the tests that draw many.

A point contradicts a bound only if an enclosure of what the network computes there does: the
rounding of the float64 network that is asked is never mistaken for a broken bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from pytest_triguard import Classifier, attacks, verification
from pytest_triguard.errors import ModelError
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification import network as walk
from pytest_triguard.verification import verifier
from pytest_triguard.verification.judging import SLACK
from pytest_triguard.verification.methods import FALSIFIERS, STAGES, Effort
from tests.verification.random_networks import Choose, Problem

BOUNDS = ("ibp", "crown_ibp", "crown", "alpha_crown", "branch_and_bound")
METHODS = (*BOUNDS, "auto")
NORMS = ("linf", "l2", "l1")
RADII = (0.0, 1e-8, 1e-4, 0.003, 0.02, 0.1, 0.4)
ORDERS = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}
BUDGET = verification.Budget(domains=6, steps=2)
"""No time, so that nothing depends on the machine."""


def exact(problem: Problem) -> Classifier:
    """Return the same function in float64, whatever the dtype of the classifier."""
    subject = problem.subject
    mean, std = (
        torch.tensor(each, dtype=problem.inputs.dtype).double().tolist()
        for each in (subject.normalization or ((0.0,), (1.0,)))
    )
    module = copy.deepcopy(subject.module).double().eval()
    return Classifier(module, mean=mean, std=std)


@contextmanager
def few_steps() -> Iterator[None]:
    """Let bounds of logits ascend by a few steps only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifier, "Effort", lambda: Effort(budget=BUDGET))
        yield


@contextmanager
def without_float64() -> Iterator[None]:
    """Compute bounds of float32 networks in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "supports_float64", lambda device: False)
        yield


@contextmanager
def without_attacks() -> Iterator[None]:
    """Leave out the attack, which starts where the place of a sample in the data tells it to."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("auto", "branch_and_bound"):
            stages = tuple(each for each in STAGES[name] if each not in FALSIFIERS)
            patch.setitem(STAGES, name, stages)
        yield


def chunked(rows: int):
    """Work on so many samples at once."""
    return use_session(Session(settings=Settings(chunk=rows)))


def ended(lower: Tensor, upper: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return points of a box `(C, H, W)`: its ends, other corners, and any."""
    share = torch.rand(count, *lower.shape, generator=generator, dtype=lower.dtype)
    share[: count // 2] = share[: count // 2].round()
    share[0], share[1] = 0, 1
    return lower + share * (upper - lower)


def searched(
    subject: Classifier, start: Tensor, objective: Callable[[Tensor], Tensor], inside, steps: int
) -> Tensor:
    """Return the points of a signed gradient descent on an objective, all of its steps.

    Args:
        subject: The network.
        start: `(n, C, H, W)`.
        objective: From logits `(n, K)` to what is to fall, `(n,)`.
        inside: From a point, a direction and a share from 0 to 1 to a point of the region.
        steps: Steps, the first across the whole region.
    """
    module, points, point = subject.module, [start], start
    mean, std = (
        torch.tensor(each, dtype=start.dtype).view(1, -1, 1, 1)
        for each in (subject.normalization or ((0.0,), (1.0,)))
    )
    for step in range(steps):
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            total = objective(module((point - mean) / std)).sum()
        if not total.requires_grad:
            break
        (slope,) = torch.autograd.grad(total, point, allow_unused=True)
        slope = torch.zeros_like(point) if slope is None else slope.nan_to_num(0.0)
        point = inside(point.detach(), -slope, 0.7**step if step else 1.0)
        points.append(point)
    return torch.cat(points).detach()


def in_box(lower: Tensor, upper: Tensor):
    """Return the steps within a box."""

    def step(point: Tensor, direction: Tensor, share: float) -> Tensor:
        reach = direction.sign() * (upper - lower) * share
        return torch.minimum(torch.maximum(point + reach, lower), upper)

    return step


def in_ball(clean: Tensor, eps: float, norm: str):
    """Return the steps within a ball around a sample, cut by [0, 1]."""
    if norm == "linf":
        return in_box((clean - eps).clamp(0, 1), (clean + eps).clamp(0, 1))

    def step(point: Tensor, direction: Tensor, share: float) -> Tensor:
        flat = direction.flatten(1)
        if norm == "l1":
            place = flat.abs().argmax(1, keepdim=True)
            flat = torch.zeros_like(flat).scatter(1, place, flat.gather(1, place).sign())
        else:
            flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-300)
        goal = clean + 0.999 * eps * flat.view_as(direction)
        return (point + share * (goal - point)).clamp(0, 1)

    return step


def contradicts(truth: Classifier, points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return which points have logits outside of bounds `(K,)` for certain, `(n,)` bool."""
    with torch.no_grad():
        logits = truth(points)
    suspect = ((logits < low) | (logits > high)).any(1)
    for place in suspect.nonzero().flatten().tolist():
        one = points[place : place + 1]
        least, most = verification.bounds(truth, one, one, method="ibp")
        suspect[place] = bool(((most < low) | (least > high)).any())
    return suspect


def check_outputs(problem: Problem, choose: Choose, method: str | None = None) -> None:
    """No sampled or searched output of a box is outside of its bounds."""
    method, eps = method or choose(BOUNDS), choose(RADII)
    generator = torch.Generator().manual_seed(choose(range(2**16)))
    reach = eps * torch.rand(problem.inputs.shape, generator=generator).to(problem.inputs.dtype)
    if choose((False, True)):  # some pixels do not move
        reach = reach * (torch.rand(reach.shape, generator=generator) > 0.5)
    lower, upper = problem.inputs - reach, problem.inputs + reach
    with few_steps():
        low, high = verification.bounds(problem.subject, lower, upper, method=method)
    check_points(problem, lower, upper, low, high, generator)


def check_points(
    problem: Problem,
    lower: Tensor,
    upper: Tensor,
    low: Tensor,
    high: Tensor,
    generator: torch.Generator,
) -> None:
    """No sampled or searched point of boxes contradicts bounds `(n, K)`."""
    truth = exact(problem)
    for place, (least, most) in enumerate(zip(lower.double(), upper.double(), strict=True)):
        points = [ended(least, most, 24, generator)]
        classes = low.shape[1]
        signs = torch.cat([torch.eye(classes), -torch.eye(classes)]).double()
        start = ended(least, most, 2 * classes, generator)
        points.append(
            searched(truth, start, lambda z, s=signs: (s * z).sum(1), in_box(least, most), 5)
        )
        every = torch.cat(points)
        every = torch.minimum(torch.maximum(every, least), most)
        ends = low[place].double(), high[place].double()
        assert not contradicts(truth, every, *ends).any(), (place, ends)


def check_proofs(problem: Problem, choose: Choose, method: str | None = None) -> None:
    """No proven sample falls: to PGD, to a stronger attack on the margin, or to any point."""
    method, norm, eps = method or choose(METHODS), choose(NORMS), choose(RADII)
    single = problem.inputs.dtype == torch.float32
    arithmetic = choose(("real", "float32")) if single else "real"
    inputs, labels = problem.inputs, problem.labels
    result = verification.verify(
        problem.subject,
        inputs,
        labels,
        eps=eps,
        norm=norm,
        method=method,
        budget=BUDGET,
        arithmetic=arithmetic,
    )
    proven = [place for place, status in enumerate(result.status) if status == "proven"]
    generator = torch.Generator().manual_seed(choose(range(2**16)))
    for place in proven:
        points = attacked(problem, place, eps, norm, generator)
        check_margin(problem, int(labels[place]), points, float(result.margin[place]))
        if arithmetic == "float32" or problem.weights == "plain":
            own = problem.subject(points.to(inputs.dtype))
            assert (own.argmax(1) == labels[place]).all()
    if proven and norm != "l1" and (problem.weights == "plain" or arithmetic == "float32"):
        attack = attacks.get("pgd", eps=eps, norm=norm, steps=8, loss="margin")
        assert not attack(problem.subject, inputs[proven], labels[proven]).success.any()


def attacked(
    problem: Problem, place: int, eps: float, norm: str, generator: torch.Generator
) -> Tensor:
    """Return points of a ball around a sample in float64, among them those of an attack."""
    truth, clean = exact(problem), problem.inputs[place].double()
    label = int(problem.labels[place])
    inside, lower = in_ball(clean, eps, norm), (clean - eps).clamp(0, 1)
    offsets = torch.randn(24, *clean.shape, generator=generator, dtype=torch.float64)
    start = clean.expand_as(offsets)
    if norm == "linf":
        start = ended(lower, (clean + eps).clamp(0, 1), 24, generator)
    else:
        start = inside(start, offsets, 1.0)
    found = searched(truth, start, lambda z: margins(z, label).amin(1), inside, 8)
    return torch.cat([found, clean.unsqueeze(0)])


def margins(logits: Tensor, label: int) -> Tensor:
    """Return the logit of a label minus all others, infinite for itself."""
    own = torch.nn.functional.one_hot(torch.tensor(label), logits.shape[1]).bool()
    return (logits[:, [label]] - logits).masked_fill(own, torch.inf)


def check_margin(problem: Problem, label: int, points: Tensor, margin: float) -> None:
    """No point has a margin below the bound of a proof, for certain."""
    truth = exact(problem)
    with torch.no_grad():
        found = margins(truth(points), label).amin(1)
    assert found.isfinite().all()
    for place in (found < margin).nonzero().flatten().tolist():
        one = points[place : place + 1]
        least, most = verification.bounds(truth, one, one, method="ibp")
        others = least.clone()
        others[:, label] = -torch.inf
        assert most[0, label] - others.amax() >= margin


def check_smaller_eps(problem: Problem, choose: Choose) -> None:
    """Intervals' margins fall as eps grows; what is proven stays so at every smaller eps."""
    norm, inputs, labels = choose(NORMS), problem.inputs, problem.labels
    before, radii = None, (0.4, 0.1, 0.02, 0.003, 0.0)
    room = 1e-9 if inputs.dtype == torch.float64 else 1e-5  # bounds may be had in float32
    for eps in radii:
        result = verification.verify(
            problem.subject, inputs, labels, eps=eps, norm=norm, method="ibp"
        )
        if before is not None:
            size = result.slack.clamp_max(1e300) / SLACK[inputs.dtype] + result.margin.abs()
            kept = (result.margin >= before.margin) | (result.margin + room * size >= before.margin)
            assert kept.all()
            for one, two in zip(before.status, result.status, strict=True):
                assert one != "proven" or two == "proven"
        before = result
    method = choose(METHODS)
    whole = verification.verify(
        problem.subject, inputs, labels, eps=0.1, norm=norm, method=method, budget=BUDGET
    )
    generator = torch.Generator().manual_seed(0)
    for place, status in enumerate(whole.status):
        if status == "proven":
            for eps in (0.02, 0.09):
                points = attacked(problem, place, eps, norm, generator)
                check_margin(problem, int(labels[place]), points, float(whole.margin[place]))


def check_rough(problem: Problem, choose: Choose) -> None:
    """Bounds computed in float32 hold what those in float64 hold."""
    method, eps = choose(BOUNDS), choose(RADII)
    lower, upper = problem.inputs - eps, problem.inputs + eps
    with few_steps(), without_float64():
        low, high = verification.bounds(problem.subject, lower, upper, method=method)
    assert low.dtype == torch.float32
    check_points(problem, lower, upper, low, high, torch.Generator().manual_seed(0))
    if method == "ibp":  # others choose their slopes by what they see
        finer = verification.bounds(problem.subject, lower, upper, method=method)
        assert not (low.double() > finer[0]).any()
        assert not (high.double() < finer[1]).any()


def check_alone(problem: Problem, choose: Choose) -> None:
    """Nothing depends on the other samples, their order, or the chunk."""
    method, norm = choose(METHODS), choose(NORMS)
    count = len(problem.inputs)
    eps = torch.tensor([choose(RADII[1:]) for _ in range(count)], dtype=torch.float64)
    inputs, labels = problem.inputs, problem.labels
    labels[0] = (labels[0] + choose((0, 0, 1))) % problem.subject(inputs[:1]).shape[1]

    def run(order: list[int], rows: int) -> list[tuple]:
        with chunked(rows), without_attacks():
            found = verification.verify(
                problem.subject,
                inputs[order],
                labels[order],
                eps=eps[order],
                norm=norm,
                method=method,
                budget=BUDGET,
            )
        columns = found.status, found.stage, found.margin.tolist(), found.slack.tolist()
        back = dict(zip(order, zip(*columns, strict=True), strict=True))
        return [back[place] for place in sorted(back)]

    together = run(list(range(count)), count)
    alone = [run([place], 1)[0] for place in range(count)]
    turned = run(list(reversed(range(count))), 2)
    for other in (alone, turned):
        for (status, stage, margin, slack), found in zip(together, other, strict=True):
            size = 1 + (0 if slack == float("inf") else slack / SLACK[inputs.dtype])
            assert found[:2] == (status, stage)
            assert found[2] == pytest.approx(margin, rel=1e-9, abs=1e-9 * size)
            assert found[3] == pytest.approx(slack, rel=1e-6)


def check_poisoned(problem: Problem, choose: Choose) -> None:
    """Where weights are not finite, or overflow, only what does not feel them is proven."""
    tensors = [
        each for each in problem.subject.module.state_dict().values() if each.is_floating_point()
    ]
    if not tensors:
        return
    chosen = choose(tensors).view(-1)
    worst = torch.finfo(chosen.dtype).max
    poison = choose((torch.nan, torch.inf, -torch.inf, worst, -worst / 4))
    chosen[choose(range(len(chosen)))] = poison
    method, norm = choose(METHODS), choose(NORMS)
    labels = problem.labels
    result = verification.verify(
        problem.subject, problem.inputs, labels, eps=0.1, norm=norm, method=method, budget=BUDGET
    )
    generator = torch.Generator().manual_seed(0)
    for place, status in enumerate(result.status):
        if status == "proven":
            points = attacked(problem, place, 0.1, norm, generator)
            check_margin(problem, int(labels[place]), points, float(result.margin[place]))


CHECKS: dict[str, Callable[[Problem, Choose], None]] = {
    "outputs": check_outputs,
    "proofs": check_proofs,
    "smaller eps": check_smaller_eps,
    "rough": check_rough,
    "alone": check_alone,
    "poisoned": check_poisoned,
}
ARGUMENTS = {
    "rough": {"dtypes": (torch.float32,)},
    "alone": {"weights": ("plain",), "dtypes": (torch.float64,), "samples": 3},
}
"""What the problems of a check are to be like."""

_REFUSALS = ("finite logits", "batch-dependent")
"""What modules whose weights are out of all proportion are refused for, by name."""

_ROUNDED = "does not compute what the module computes"
"""Likewise, of those that were made so: float32 rounds until the logits are not the weights'."""


def holds(check: str, choose: Choose, problem: Problem) -> bool:
    """Check a problem; return whether it was not refused."""
    try:
        CHECKS[check](problem, choose)
    except ModelError as refusal:
        known = _REFUSALS if problem.weights == "plain" else (*_REFUSALS, _ROUNDED)
        if not any(words in str(refusal) for words in known):
            raise
        return False
    return True
