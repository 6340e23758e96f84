"""Samples an attack brought down, the first of them kept as counterexamples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pytest_triguard.attacks import Attack
from pytest_triguard.checks.finding import Counterexample, Worst, plain_id
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import logit
from pytest_triguard.engine.outcome import Outcome


@dataclass(frozen=True)
class _Fall:
    example: Counterexample
    passes: int
    by: str


class Falls:
    """Keeps the few samples that fell after the fewest passes.

    Args:
        attack: The attack.
        target: Class it aims at, or None for any class but the label.
    """

    def __init__(self, attack: Attack, target: int | None = None) -> None:
        self._attack = attack
        self._target = target
        self._worst = Worst()

    def offer(self, outcome: Outcome) -> None:
        """Look through some outcomes for samples that fell early."""
        for place, position in enumerate(outcome.positions):
            if outcome.success[place]:
                fall = partial(self._fall, outcome, place)
                self._worst.offer(-outcome.passes[place], position, fall)

    def _fall(self, outcome: Outcome, place: int) -> _Fall:
        example = Counterexample(
            sample=outcome.ids[place],
            clean=outcome.clean[place].clone(),
            broken=outcome.points[place].clone(),
            label=int(outcome.labels[place]),
            eps=float(self._attack.radius([outcome.positions[place]])),
            norm=self._attack.norm,
            target=self._target,
        )
        return _Fall(example, outcome.passes[place], outcome.by)

    def examples(self) -> list[Counterexample]:
        """Return the counterexamples, earliest fall first."""
        return [fall.example for fall in self._worst.things()]

    @torch.no_grad()
    def rows(self, model: Model) -> list[dict[str, Any]]:
        """Return what a report says about them; predicts once more, which is not counted."""
        falls: list[_Fall] = self._worst.things()
        if not falls:
            return []
        with model.passes.uncounted():
            logits = model.logits(torch.stack([fall.example.broken for fall in falls]))
        predicted = logits.argmax(1)
        labels = torch.tensor([fall.example.label for fall in falls]).to(logits.device)
        lead = (logit(logits, predicted) - logit(logits, labels)).tolist()
        return [
            {
                "id": plain_id(fall.example.sample),
                "label": fall.example.label,
                "predicted": to,
                "logit lead": ahead,
                "passes": fall.passes,
            }
            | ({"by": fall.by} if fall.by else {})
            for fall, to, ahead in zip(falls, predicted.tolist(), lead, strict=True)
        ]
