"""Time of PGD-40 robust accuracy when samples leave as they fall.

The bare loop passes the points where the attack ended: max-pooling takes longer on them than on
clean digits, whose flat background is easy to predict for a processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_triguard.attacks.base import AttackResult
from pytest_triguard.attacks.pgd import PGD
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.objectives import cross_entropy
from tests.benchmarks.bare import Bare
from tests.benchmarks.networks import digits, trained_cnn
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.throughput import warmed
from tests.benchmarks.timing import pairs

STEPS = 40
FALLING = (0.13, 0.36, 0.98)
_TRAINING, _BISECTIONS, _LARGEST = 4_000, 8, 0.5


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the time of each attack over the bare loop's time for the passes it needed."""
    found = falling(plan)
    for share in FALLING:
        yield _row(plan, found, found.eps(share))


@dataclass(frozen=True)
class Falling:
    """A trained network, digits it was not trained on, and the radii at which they fall."""

    module: nn.Module
    inputs: Tensor
    labels: Tensor
    radii: Tensor

    def eps(self, share: float) -> float:
        """Return the radius at which a share of the digits falls."""
        return float(self.radii[round(share * (len(self.radii) - 1))])


def falling(plan: Plan) -> Falling:
    """Train the network and find the radii, which rise."""
    inputs, labels = digits()
    module = trained_cnn(inputs[:_TRAINING], labels[:_TRAINING])
    held = slice(_TRAINING, _TRAINING + plan.digits)
    inputs, labels = inputs[held], labels[held]
    radii = falling_radii(Classifier(module), inputs, labels)
    return Falling(module, inputs, labels, radii.sort().values)


def _row(plan: Plan, found: Falling, eps: float) -> Row:
    module, inputs, labels = found.module, found.inputs, found.labels
    classifier = Classifier(module)
    chunk = warmed(classifier, inputs)
    attack = PGD(eps=eps, steps=STEPS)

    def job() -> AttackResult:
        return attack(classifier, inputs, labels)

    result, images = job(), len(inputs)
    needed = int(result.passes.sum())
    bare = Bare(module, result.adversarial, labels, cross_entropy)
    batch = bare.best_batch()
    turns = pairs(job, lambda: bare.run(STEPS, batch), plan.pairs)
    share = STEPS * images / needed
    return Row(
        f"pgd-{STEPS} robust accuracy, small_cnn, {images} digits, "
        f"{float(result.success.float().mean()):.0%} fall: time / bare loop of the passes needed",
        turns.clock.scaled(share),
        "<= 1.06",
        turns.processor.scaled(share),
        f"eps {eps:.4f}, {needed} of {STEPS * images} passes needed, {turns.first:.2f} s at chunk "
        f"{chunk}; bare {turns.second:.2f} s at batch {batch}",
    )


def falling_radii(classifier: Classifier, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the radius at which each image falls, found by bisection, `(N,)`."""
    low = torch.zeros(len(inputs))
    high = torch.full_like(low, _LARGEST)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fell = PGD(eps=middle, steps=STEPS)(classifier, inputs, labels).success
        low, high = torch.where(fell, low, middle), torch.where(fell, middle, high)
    return high
