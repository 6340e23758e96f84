"""The cascade: each stage works on what is open, says what it did, and changes no verdict."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, verification
from pytest_triguard.errors import ModelError
from pytest_triguard.running import running
from pytest_triguard.settings import Session, Settings, use_session
from pytest_triguard.verification import Budget, cascade, domains, methods
from pytest_triguard.verification.regions import region
from pytest_triguard.verification.specification import Specification
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
    subject, inputs, labels = problem(name, 10, dtype=dtype)
    eps = torch.full((10,), eps)
    budget = verification.Budget(domains=2, steps=2)
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


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_what_a_search_finds_in_a_corner_is_rounded_into_the_region(monkeypatch, name, box):
    """The corner of a box in float64 is seldom a float32 point, and the nearest may be outside."""
    monkeypatch.setitem(methods.STAGES, "branch_and_bound", ("branch_and_bound",))
    subject, inputs, _ = problem(name, 40, dtype=torch.float32)
    labels, where = subject(inputs).argmax(1), {"eps": 0.1}
    if box:
        ends = {"lower": inputs.double() - 0.1, "upper": inputs.double() + 0.1}
        where = {"eps": None, **ends}
    budget = Budget(domains=200)
    result = verification.verify(
        subject, inputs, labels, **where, method="branch_and_bound", budget=budget
    )
    assert result.status.count("falsified") >= 5
    assert "unknown" not in result.status


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
                passes=[1] * len(batch),
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


# --- who pays for what --------------------------------------------------------------------------


def streamed(budget=None, eps=0.08, charged=None, stages=STAGES[1:], count=20):
    """Return verdicts by position, and the stages, of a cascade over some samples."""
    subject, inputs, labels = problem("mlp", count)
    with running(subject, inputs, labels) as run:
        where = region(eps, "linf", None, None, run.model)
        limits = budget or verification.Budget(domains=12, steps=3)
        found = cascade.Cascade(
            run.model, stages, where, Specification(), limits, 0, charged=charged
        )
        tally, verdicts = verification.Tally(), {}
        for decision in found.decide(run.samples):
            tally.add(decision)
            verdicts |= {each.position: each for each in decision.verdicts}
    return verdicts, tally.stages


def test_samples_are_charged_all_that_is_spent():
    verdicts, ran = streamed()
    assert sum(each.seconds for each in verdicts.values()) == pytest.approx(
        sum(stage.seconds for stage in ran)
    )
    first = [each.seconds for each in verdicts.values() if each.stage == "pgd"]
    last = [each.seconds for each in verdicts.values() if each.stage == "branch_and_bound"]
    assert max(first) < min(last)


def test_an_attack_is_charged_by_its_passes():
    verdicts, _ = streamed(stages=("pgd",))
    fallen = [each.seconds for each in verdicts.values() if each.stage == "pgd"]
    kept = {each.seconds for each in verdicts.values() if each.status == "unknown"}
    assert len(kept) == 1
    assert max(fallen) < kept.pop()


def test_a_sample_whose_budget_is_spent_is_left_and_its_neighbours_go_on():
    free, _ = streamed()
    late = next(place for place, each in free.items() if each.stage == "branch_and_bound")
    budget = verification.Budget(seconds=1e6, domains=12, steps=3)
    verdicts, _ = streamed(budget, charged={late: 1e6})
    assert verdicts[late].reason.endswith("the budget was spent before pgd")
    for place, each in free.items():
        if place != late:
            assert (verdicts[place].status, verdicts[place].stage) == (each.status, each.stage)


class Clockwork:
    """A search over numbered parts, in which every part takes a second."""

    def __init__(self, monkeypatch, depths):
        self.now, self.depths = 0.0, torch.tensor(depths)
        monkeypatch.setattr(domains.time, "perf_counter", lambda: self.now)

    def split(self, parts):
        deeper = replace(parts, state={"depth": parts.state["depth"] + 1})
        return deeper.joined(deeper)

    def bound(self, parts):
        self.now += len(parts)
        depth = parts.state["depth"]
        proven = (depth[:, 0] >= self.depths[parts.owner]).float()
        found = replace(parts, bound=2 * proven - 1)
        return domains.Bounded(
            found, proven > 2, torch.zeros(len(parts), 1, 1, 1), torch.ones(len(parts))
        )

    def run(self, owners, width=4, limit=None, seconds=None):
        owner = torch.tensor(owners)
        root = domains.Domains(
            owner, 0 * owner, -torch.ones(len(owner)), {"depth": torch.zeros(len(owner), 1)}
        )
        count = len(self.depths)
        search = domains.Search(
            -torch.ones(count, 1),
            torch.zeros(count),
            torch.Size([1, 1, 1]),
            width,
            limit,
            verification.budget.Clock(),
            seconds=seconds,
        )
        search.run(root, self.split, self.bound)
        return search


def test_a_dear_sample_does_not_spend_the_seconds_of_a_cheap_one(monkeypatch):
    """The first needs far more parts than the second, and all of them look as urgent."""
    work = Clockwork(monkeypatch, [50, 3])
    search = work.run([0, 1], seconds=(20.0, 20.0))
    assert search.margin[1] > 0 > search.margin[0]
    assert search.spent[1] == 15  # one part, and two, four and eight
    assert 20 <= search.spent[0] <= 20 + 4  # the parts that were bounded together
    assert sum(search.spent) == work.now


def test_every_sample_gets_the_same_parts_whoever_is_beside_it(monkeypatch):
    together = Clockwork(monkeypatch, [50, 3, 7]).run([0, 1, 2], limit=40)
    for place, depth in enumerate((50, 3, 7)):
        alone = Clockwork(monkeypatch, [depth]).run([0], limit=40)
        assert alone.spent[0] == together.spent[place] <= 41
        assert alone.margin[0] == together.margin[place]


def test_what_time_interrupts_stays_open(monkeypatch):
    """A round that is broken off proves nothing of what it did not bound."""
    work = Clockwork(monkeypatch, [3, 3])
    real = work.bound

    def interrupted(parts):
        if work.now > 6:
            raise verification.budget.BudgetSpent
        return real(parts)

    work.bound = interrupted
    assert (work.run([0, 1]).margin == -1).all()


@pytest.mark.parametrize("limits", [{"limit": 10}, {"seconds": (10.0, 10.0)}])
def test_a_search_tells_whom_its_budget_stopped(monkeypatch, limits):
    assert Clockwork(monkeypatch, [50, 2]).run([0, 1], **limits).cut == [True, False]


def test_a_search_that_is_stuck_is_not_stopped_by_its_budget(monkeypatch):
    """More of it would not prove what cannot be split any more."""
    work = Clockwork(monkeypatch, [50])
    real = work.bound

    def stuck(parts):
        found = real(parts)
        last = torch.arange(len(parts)) == 0
        return replace(found, last=last & (parts.state["depth"][:, 0] > 0))

    work.bound = stuck
    assert work.run([0], limit=10).cut == [False]


def test_what_a_search_leaves_open_is_said_to_be_for_its_budget():
    budget = Budget(domains=1, steps=1)
    *_, result = cascaded(eps=0.08, method="branch_and_bound", budget=budget)
    left = [why for why in result.reason if why]
    assert left
    assert all(why.endswith("the budget was spent in branch_and_bound") for why in left)


def test_what_autograd_refuses_is_bounded_without_the_attack(monkeypatch):
    """An operator in place is no reason not to bound; the attack says why it found nothing."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.Sigmoid(), nn.ReLU(inplace=True), nn.Linear(8, 3)
    )
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.randn(each.shape, generator=generator))
    inputs = torch.rand(8, 3, 2, 2, generator=generator)
    subject = Classifier(module)
    labels = subject(inputs).argmax(1)
    monkeypatch.setitem(methods.STAGES, "auto", STAGES[1:-1])  # a search would decide all
    result = verification.verify(subject, inputs, labels, eps=0.05)
    assert {"proven"} < set(result.status) <= {"proven", "unknown"}
    assert {stage.name for stage in result.stages} >= {"pgd", "crown"}
    assert set(result.stage) & {"crown_ibp", "crown", "alpha_crown"}
    left = [why for why in result.reason if why]
    assert all(
        "pgd found no counterexample: the module Sequential cannot be" in why for why in left
    )
    found = verification.certified_radius(subject, inputs, labels, budget=Budget(domains=8))
    assert (found.radius > 0).all()
    for bound in (verification.saliency_drift_bound, certified_maps):
        with pytest.raises(ModelError, match="the module Sequential cannot be differentiated"):
            bound(subject, inputs, labels, eps=0.05)


def certified_maps(subject, inputs, labels, *, eps):
    return verification.gradient_bounds(subject, inputs - eps, inputs + eps, labels)
