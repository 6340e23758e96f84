"""Ways of running a network that change what it costs: every method gives the same in all of them.

In double precision, where they differ by rounding alone.
"""

from __future__ import annotations

import pytest
import torch

from pytest_triguard import attacks, running
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine import batch_norm
from tests.attacks import table as attack_table
from tests.attribution_attacks import table as explanation_table
from tests.attributions import table as attribution_table
from tests.metrics import model_table
from tests.networks import problem


def channels_last(monkeypatch, chosen):
    """Run networks with channels last, or as they come."""
    monkeypatch.setattr(
        running, "arrange", lambda model, rows: setattr(model, "channels_last", chosen)
    )


def norms_by_factor(monkeypatch, chosen):
    """Let batch normalisations go backward by their factor, however few the numbers, or never."""
    monkeypatch.setattr(batch_norm, "_LEAST", 0 if chosen else 2**62)


WAYS = {"channels last": (channels_last, "smooth"), "norms by factor": (norms_by_factor, "conv")}
"""Ways, each with a network on which attacks on explanations are tried."""


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


@pytest.fixture
def both(way, monkeypatch):
    """Run something as ever, and in the other way."""

    def run(job):
        found = []
        for chosen in (False, True):
            WAYS[way][0](monkeypatch, chosen)
            found.append(job())
        return found

    return run


@attribution_table.every_row
def test_attributions(row, both):
    subject, inputs, labels = row.problem(4)
    first, second = both(lambda: row.method()(Classifier(subject.module), inputs, targets=labels))
    assert attribution_table.close(first, second, 1e-8)
    assert first.stride() == second.stride()


@attack_table.every_row
def test_attacks(row, both):
    subject, inputs, labels = problem("conv", 4)
    first, second = both(
        lambda: attacks.get(row.name, **{"eps": 0.04} | row.few)(
            Classifier(subject.module), inputs, labels
        )
    )
    assert attack_table.same(first, second, 1e-8)


@explanation_table.every_row
def test_attacks_on_explanations(row, both, way):
    subject, inputs, labels = problem(WAYS[way][1], 3)
    first, second = both(lambda: row.attack()(Classifier(subject.module), inputs, labels))
    assert explanation_table.same(first, second, 1e-8)


@pytest.mark.parametrize("row", model_table.TABLE, ids=lambda row: row.name)
def test_metrics(row, both):
    subject, inputs, labels = problem("conv", 4)
    first, second = both(
        lambda: row.metric()(inputs - 0.5, Classifier(subject.module), inputs, labels)
    )
    assert torch.allclose(first, second, atol=1e-9)
