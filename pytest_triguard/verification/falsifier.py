"""Attacks as stages of a verifier: what they ascend, and when they have won."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pytest_triguard import attacks
from pytest_triguard.attacks.gradient_steps import GradientSteps, Steps
from pytest_triguard.engine.geometry import NORMS
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.iteration import search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from pytest_triguard.verification.regions import Region
from pytest_triguard.verification.specification import Differences, Specification, joint

ATTACK_STEPS = 20
"""Steps of the attack that tries to falsify."""


class Falsifier(Protocol):
    """What looks for inputs that break a property."""

    @property
    def name(self) -> str:
        """Name of the attack."""

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Hand out what came of each sample; a search that meets a NaN is told as broken."""


@dataclass(frozen=True)
class Attacker:
    """An attack on the prediction, or on the label's place among the top k.

    Args:
        attack: The attack.
        top: Among how many of the largest logits the label's is to be.
    """

    attack: GradientSteps
    top: int

    @property
    def name(self) -> str:
        """Name of the attack."""
        return self.attack.name

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Hand out what came of each sample; a search that meets a NaN is told as broken."""
        steps = Steps(self.attack) if self.top == 1 else _OutOfTop(self.attack, self.top)
        return search(model, batches, steps, tells=True)


@dataclass(frozen=True)
class _OutOfTop(Steps):
    """Steps up the k-th largest of the other logits, seen from the label's."""

    top: int

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        return input_gradient(
            model, rows["points"], rows["labels"], lambda logits, _: self.loss(logits, rows)
        )

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        others = Differences(rows["labels"], None, logits.shape[1])
        margins = others.times(logits).scatter(1, rows["labels"].unsqueeze(1), torch.inf)
        return -joint(margins, self.top - 1)

    def won(self, logits: Tensor, rows: Rows) -> Tensor:
        return Differences(rows["labels"], None, logits.shape[1], self.top).violated(logits)


def falsifier(
    name: str, region: Region, specification: Specification, seed: int
) -> tuple[Falsifier | None, str]:
    """Return what attacks, or None and why there is nothing that does.

    Args:
        name: Name of the attack.
        region: Where each sample is verified.
        specification: What is to be broken.
        seed: Seed of what is drawn.
    """
    if specification.rows is not None:
        return None, f"{name} does not attack rows on the logits"
    if region.ball is None:
        return None, f"{name} does not attack boxes"
    eps, norm = region.ball
    if norm not in NORMS:
        return None, f"{name} does not attack in {norm}"
    attack = attacks.get(name, eps=eps, norm=norm, steps=ATTACK_STEPS, seed=seed)
    if not isinstance(attack, GradientSteps):
        raise TypeError("only attacks that step along a gradient are stages of a verifier")
    return Attacker(attack, specification.top), ""
