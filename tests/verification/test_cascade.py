"""The cascade: each stage works on what is open, says what it did, and changes no verdict."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, verification
from pytest_triguard.running import running
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification import cascade, methods
from tests.verification.zoo import CLASSES, ZOO, problem

names = pytest.mark.parametrize("name", ZOO)


def cascaded(name="mlp", eps=0.02, **arguments):
    subject, inputs, labels = problem(name, 40)
    labels[::9] = (labels[::9] + 1) % CLASSES
    return (
        subject,
        inputs,
        labels,
        verification.verify(subject, inputs, labels, eps=eps, **arguments),
    )


STAGES = ("clean", "ibp", "pgd", "crown_ibp", "crown", "alpha_crown", "branch_and_bound")


def test_each_stage_works_only_on_what_is_open():
    *_, result = cascaded(eps=0.08)
    clean, ibp, pgd, *later = result.stages
    assert tuple(stage.name for stage in result.stages) == STAGES
    assert (clean.samples, clean.falsified, clean.proven) == (40, 5, 0)
    assert (clean.forward, clean.backward) == (40, 0)
    assert (ibp.samples, ibp.forward, ibp.backward) == (40, 80, 0)
    assert 0 < pgd.backward <= 20 * pgd.samples
    open_ = 40 - clean.falsified
    for stage in result.stages[1:]:
        assert stage.samples == open_ or stage is ibp
        open_ -= stage.proven + stage.falsified
    assert open_ == result.counts["unknown"]
    assert all(stage.proven + stage.falsified for stage in (pgd, *later[::2]))
    assert all(stage.backward > 0 for stage in later)
    assert all(stage.seconds > 0 for stage in result.stages)


def test_each_stage_adds_verdicts_and_changes_none():
    """A longer cascade decides what a shorter one left open, and nothing else anew."""
    before = None
    for count in range(1, len(STAGES)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(methods.STAGES, "auto", STAGES[1 : count + 1])
            *_, after = cascaded(eps=0.08)
        if before is not None:
            for one, two in zip(before.status, after.status, strict=True):
                assert one in (two, "unknown")
            assert (after.margin >= before.margin).all()
        before = after


def test_what_survives_is_unknown_and_says_what_was_tried():
    *_, result = cascaded(eps=0.08, method="crown", budget=5.0)
    assert "unknown" in result.status
    for status, reason, stage in zip(result.status, result.reason, result.stage, strict=True):
        assert (status == "unknown") == (reason is not None) == (stage is None)
        if reason:
            assert reason == "the bound is not above the slack"


@pytest.mark.parametrize(
    ("norm", "eps", "dtype"), [("linf", 0.1, torch.float64), ("l2", 0.4, torch.float32)]
)
@names
def test_counterexamples_break_the_label_inside_ball_and_bounds(name, norm, eps, dtype):
    subject, inputs, labels = problem(name, 30, dtype=dtype)
    eps = torch.full((30,), eps)
    budget = verification.Budget(domains=4, steps=2)
    result = verification.verify(subject, inputs, labels, eps=eps, norm=norm, budget=budget)
    fallen = torch.tensor([status == "falsified" for status in result.status])
    points = result.counterexample[fallen]
    assert points.dtype == dtype
    assert (subject(points).argmax(1) != labels[fallen]).all()
    assert ((points >= 0) & (points <= 1)).all()
    distance = (
        (points - inputs[fallen])
        .double()
        .flatten(1)
        .norm(p=torch.inf if norm == "linf" else 2, dim=1)
    )
    assert (distance <= eps[fallen] * (1 + 2e-5)).all()


def test_the_attack_finds_something_to_falsify():
    """Without it the test above would hold for no sample at all."""
    for name in ("mlp", "linear"):
        stages = {stage.name: stage for stage in cascaded(name)[-1].stages}
        assert stages["pgd"].falsified > 0


def test_a_spent_budget_leaves_open_what_it_cannot_decide():
    *_, free = cascaded()
    *_, spent = cascaded(budget=1e-9)
    assert [stage.name for stage in spent.stages] == ["clean", "ibp"]
    for before, after in zip(free.status, spent.status, strict=True):
        assert after in (before, "unknown")
    assert {each for each in spent.reason if each} == {
        "the bound is not above the slack; the budget was spent before pgd"
    }


def test_the_budget_of_the_session_is_used():
    with use_session(Session(settings=Settings(budget=1e-9))):
        *_, result = cascaded()
    assert [stage.name for stage in result.stages] == ["clean", "ibp"]


def test_a_stream_hands_out_each_sample_once_and_its_stages_add_up(monkeypatch):
    monkeypatch.setitem(methods.STAGES, "auto", ("ibp", "pgd"))
    subject, inputs, labels, whole = cascaded()
    with use_session(Session(settings=Settings(chunk=7))), running(subject, inputs, labels) as run:
        tally, positions = verification.Tally(), []
        for decision in verification.verify_stream(run.model, run.samples, eps=0.02):
            tally.add(decision)
            positions += [each.position for each in decision.verdicts]
            for each in decision.verdicts:
                assert each.status == whole.status[each.position]
                assert each.label == int(labels[each.position])
                if each.status == "falsified":
                    assert torch.equal(each.clean, inputs[each.position])
                    assert subject(each.counterexample[None]).argmax() != each.label
                else:
                    assert each.counterexample is None
    assert sorted(positions) == list(range(40))
    for stage, expected in zip(tally.stages, whole.stages, strict=True):
        assert (stage.samples, stage.proven, stage.falsified, stage.forward, stage.backward) == (
            expected.samples,
            expected.proven,
            expected.falsified,
            expected.forward,
            expected.backward,
        )


class Liar:
    """An attack that claims success for points of its choice."""

    name = "liar"

    def __init__(self, move):
        self.move = move

    def stream(self, model, batches):
        for batch in batches:
            yield SimpleNamespace(
                positions=list(batch.positions),
                points=self.move(batch.inputs),
                success=[True] * len(batch),
                broken=[False] * len(batch),
            )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("move", "breaks"),
    [
        (lambda clean: clean, False),
        (lambda clean: 1 - clean, True),
        (lambda clean: clean * 1.4 - 0.2, True),
    ],
    ids=["not broken", "outside the ball", "outside the bounds"],
)
def test_no_attack_is_believed(move, breaks, norm, monkeypatch):
    """A point counts if the module is wrong there, and if it is in the ball and in the bounds."""
    monkeypatch.setattr(cascade, "falsifier", lambda *arguments: (Liar(move), ""))
    monkeypatch.setitem(methods.STAGES, "auto", ("ibp", "pgd"))
    subject, inputs, labels, result = cascaded(norm=norm, eps=0.1)
    left = [place for place, status in enumerate(result.status) if status == "unknown"]
    assert bool((subject(move(inputs))[left].argmax(1) != labels[left]).any()) == breaks
    assert result.stages[-1].falsified == 0


class Overflowing(nn.Module):
    """Finite everywhere, but with a gradient of NaN where the exponential overflows."""

    def forward(self, inputs):
        gate = torch.reciprocal((200 * (inputs.flatten(1).sum(1, keepdim=True) - 0.5)).exp() + 1)
        return torch.cat([gate - 0.25, 0 * gate], 1)


def test_a_search_that_meets_a_nan_leaves_its_sample_open_and_no_other(monkeypatch):
    monkeypatch.setitem(methods.STAGES, "auto", ("pgd",))
    inputs = torch.tensor([[0.3, 0.25], [0.9, 0.9], [0.28, 0.26]]).view(3, 1, 1, 2)
    result = verification.verify(
        Classifier(Overflowing()), inputs, torch.tensor([1, 1, 1]), eps=0.1, method="auto"
    )
    assert result.status == ("falsified", "unknown", "falsified")
    assert result.reason == (None, "pgd met a NaN, which decides nothing", None)
