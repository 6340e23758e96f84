"""What the lists say of attributions holds: cost, sign, axioms, and who checks them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.running import running
from tests.attributions.table import TABLE, close, every_row
from tests.networks import CLASSES, SHAPES, bare, problem

MORE = {"attention_rollout": (0, -1), "grad_cam": (0, -1)}
"""Forward and backward passes of a sample, beyond one of each for every one in the lists."""


def facts(row):
    return type(row.method()).facts


def with_axiom(*axioms):
    rows = [row for row in TABLE if set(axioms) & set(facts(row).axioms)]
    assert len(rows) > 1
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


class Sum(nn.Module):
    """Two networks whose logits are added."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, inputs):
        return sum(part(inputs) for part in self.parts)


def other(shape):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        head = nn.Linear(shape.numel(), 5), nn.Tanh(), nn.Linear(5, CLASSES)
    return nn.Sequential(nn.Flatten(), *head).double()


@every_row
def test_the_passes_of_a_sample_are_those_of_the_lists(row):
    subject, inputs, targets = row.problem(3)
    method = row.method()
    with running(subject, inputs, targets=targets) as run:
        before = run.model.passes.copy()
        for _ in method.stream(run.model, run.samples):
            pass
        after = run.model.passes
    forward, backward = after.forward - before.forward, after.backward - before.backward
    if row.name == "occlusion":  # the windows depend on the image
        assert (forward > 0, backward) == (True, 0)
    elif "at most" in method.facts.cost:
        assert 0 < backward // 3 <= method.passes_per_sample
    else:
        more = MORE.get(row.name, (0, 0))
        assert forward // 3 - more[0] == backward // 3 - more[1] == method.passes_per_sample


@every_row
def test_the_sign_is_that_of_the_maps(row):
    assert facts(row).sign.startswith("never negative") == (row.never_negative is True)
    subject, inputs, targets = row.problem(6)
    maps = row.method()(subject, inputs, targets)
    per_pixel = torch.equal(maps, maps.mean(1, keepdim=True).expand_as(maps))
    assert ("one value per pixel" in facts(row).sign) == per_pixel


@with_axiom("linear", "linear with one cluster")
def test_the_map_of_two_networks_added_is_the_sum_of_their_maps(row):
    subject, inputs, targets = row.problem(3, torch.float64)
    first, second = bare(subject), other(torch.Size(SHAPES["conv"]))
    one, two, both = (
        row.method()(Classifier(each.eval()), inputs, targets)
        for each in (first, second, Sum(first, second))
    )
    assert close(both, one + two)


def test_lpi_is_not_linear_where_the_network_chooses_the_cluster():
    first, (_, inputs, targets) = other(torch.Size(SHAPES["conv"])), problem("conv", 3)
    inputs = inputs.double()
    logits = first(inputs).detach()
    references = torch.stack([torch.zeros_like(inputs[:1]), torch.ones_like(inputs[:1])])
    method = attributions.get(
        "lpi", references=references, centers=torch.stack([logits.mean(0), 2 * logits.mean(0)])
    )
    one, both = (
        method(Classifier(each.eval()), inputs, targets) for each in (first, Sum(first, first))
    )
    assert not close(both, 2 * one)


@with_axiom("complete")
def test_complete_maps_sum_to_the_change_of_the_output(row):
    subject, inputs, targets = problem("smooth", 4, torch.float64)
    maps = row.method(**({"points": 400} if row.many == "points" else {}))(subject, inputs, targets)
    change = (subject(inputs) - subject(torch.zeros_like(inputs))).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(maps.sum((1, 2, 3)), change, rtol=1e-3)


@every_row
def test_a_peer_is_named_where_there_is_one(row):
    told = row.peer is not None or "a test of its own says where" in row.missing.get("peer", "")
    assert facts(row).checked == ("Captum" if told else "")
