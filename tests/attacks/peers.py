"""Attacks beside those of other libraries, which no resolver installs beside a current torch.

The network is smooth: where a gradient is exactly zero, and at the kinks of a ReLU, libraries
differ by what they guard against, and one flipped sign carries on from step to step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pytest_triguard import attacks
from pytest_triguard.classifier import Classifier
from tests.networks import problem

STEPS = 7
EPS = {"linf": 0.02, "l2": 0.15}
STEP = 0.006
ALIKE = {"stop": "never", "steps": STEPS, "step_size": STEP}
CLOSE = 1e-6
COUNT = 40


@dataclass(frozen=True)
class Pair:
    """An attack here and the same attack there.

    Attributes:
        name: Its name here.
        there: Its name in the other library.
        own: Hyperparameters here.
        other: Hyperparameters there.
        norm: The norm of both.
    """

    name: str
    there: str
    own: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    norm: str = "linf"

    def __str__(self) -> str:
        return f"{self.name}-{self.norm}"

    def run(self, subject: Classifier, inputs: Tensor, labels: Tensor) -> attacks.AttackResult:
        """Attack with this project's attack."""
        attack = attacks.get(self.name, eps=EPS[self.norm], norm=self.norm, **self.own)
        return attack(subject, inputs, labels)


@functools.cache
def smooth() -> tuple[Classifier, Tensor, Tensor]:
    """Return a smooth classifier in float32, images, and labels that are its predictions."""
    subject, inputs, _ = problem("smooth", COUNT, torch.float32)
    return subject, inputs, subject(inputs).argmax(1)


def check_equal(result: attacks.AttackResult, there: Tensor) -> None:
    """Check that the examples are the same, and that both libraries fool the same samples."""
    subject, _, labels = smooth()
    assert 0 < int(result.success.sum()) < COUNT
    assert torch.allclose(result.adversarial, there, rtol=0, atol=CLOSE)
    assert torch.equal(result.success, subject(there).argmax(1) != labels)


def claimed(library: str) -> set[str]:
    """Return the attacks that are said to be checked against a library."""
    return {name for name in attacks.names() if library in attacks.get(name).facts.checked}
