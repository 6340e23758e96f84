"""How many passes a search takes, counted on a network where the step of every fall is known.

The network has one input and calls everything above one half class 1. Every step of the attack
goes down by the same length, so that a sample half a step below `k` lengths above the border falls
with its step number `k`, and the pass after that step is the one that sees it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_triguard.attacks import AttackResult
from pytest_triguard.attacks.bim import BIM
from pytest_triguard.attacks.pgd import PGD
from pytest_triguard.classifier import Classifier
from pytest_triguard.data import Samples
from pytest_triguard.engine import iteration
from pytest_triguard.settings import Session, Settings, use_session

STEPS = 12
LENGTH = 0.02
FALLS = [3, 0, 12, 1, 40, 7, 2, 11, 0, 40, 5, 13, 1, 12, 4, 40, 9, 6, 0, 10, 2]
"""The step with which each sample falls: 0 is misclassified, more than STEPS never falls."""
PASSES = [min(STEPS, fall + 1) for fall in FALLS]
JUDGED = sum(fall >= STEPS for fall in FALLS)
"""Samples that take all steps, so that their last point needs a forward pass of its own."""


class Border(nn.Module):
    """Class 1 above one half; remembers how many rows came at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.rows.append((len(inputs), torch.is_grad_enabled()))
        score = inputs.flatten(1) - 0.5
        return torch.cat([-score, score], dim=1)

    @property
    def gradient_batches(self) -> list[int]:
        return [rows for rows, with_gradient in self.rows if with_gradient]


def inputs_that_fall(falls: list[int]) -> Tensor:
    steps = torch.tensor([min(fall, STEPS + 1) for fall in falls], dtype=torch.float64)
    return (0.5 + LENGTH * (steps - 0.5)).view(-1, 1, 1, 1)


def attacked(chunk: int, stop: str = "success") -> AttackResult:
    attack = BIM(eps=0.5, steps=STEPS, step_size=LENGTH, stop=stop)
    labels = torch.ones(len(FALLS), dtype=torch.int64)
    with use_session(Session(settings=Settings(chunk=chunk))):
        return attack(Classifier(Border()), inputs_that_fall(FALLS), labels)


def streamed_batches(chunk: int) -> list[int]:
    """Return the rows of each gradient pass, the probe of the module left out."""
    network = Border()
    attack = BIM(eps=0.5, steps=STEPS, step_size=LENGTH)
    samples = Samples(inputs_that_fall(FALLS), torch.ones(len(FALLS), dtype=torch.int64))
    with Classifier(network).prepared(chunk=chunk) as model:
        assert sum(len(each.positions) for each in attack.stream(model, samples)) == len(FALLS)
    return network.gradient_batches


def expected_batches(chunk: int) -> list[int]:
    """Return the rows of each pass when a place is given on as soon as its sample is done."""
    waiting, active, batches = list(PASSES), [], []
    while waiting or active:
        while waiting and len(active) < chunk:
            active.append(waiting.pop(0))
        batches.append(len(active))
        active = [left - 1 for left in active if left > 1]
    return batches


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_a_sample_takes_the_passes_up_to_the_one_that_sees_it_fall(chunk):
    result = attacked(chunk)

    assert result.passes.tolist() == PASSES
    assert result.success.tolist() == [fall <= STEPS for fall in FALLS]


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_the_network_runs_as_often_as_needed_and_no_more(chunk):
    result = attacked(chunk)

    assert result.cost == {"forward": sum(PASSES) + JUDGED, "backward": sum(PASSES)}


def test_without_stopping_every_sample_takes_every_step():
    result = attacked(4, stop="never")
    count = len(FALLS)

    assert result.passes.tolist() == [STEPS] * count
    assert result.cost == {"forward": (STEPS + 1) * count, "backward": STEPS * count}


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
def test_the_place_of_a_sample_that_is_done_goes_to_the_next_at_once(chunk):
    assert streamed_batches(chunk) == expected_batches(chunk)


@pytest.mark.parametrize("chunk", [4, 64])
def test_looking_rarely_changes_neither_counts_nor_results(chunk, monkeypatch):
    often = attacked(chunk)
    monkeypatch.setattr(iteration, "is_host", lambda device: False)
    rarely = attacked(chunk)

    assert torch.equal(often.adversarial, rarely.adversarial)
    assert torch.equal(often.success, rarely.success)
    assert torch.equal(often.passes, rarely.passes)


def test_restarts_add_up_until_one_succeeds():
    inputs = torch.tensor([0.2, 0.9, 0.52], dtype=torch.float64).view(-1, 1, 1, 1)
    labels = torch.ones(3, dtype=torch.int64)
    attack = PGD(eps=0.1, steps=5, restarts=3)
    result = attack(Classifier(Border()), inputs, labels)

    assert result.success.tolist() == [True, False, True]
    assert result.passes[0] == 1
    assert result.passes[1] == 3 * 5
    assert 1 <= result.passes[2] <= 5
    assert result.cost["backward"] == result.passes.sum()
