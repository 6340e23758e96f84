"""What transferable attacks add on photographs: `python -m tests.real.transfer [ATTACK ...]`.

Examples are crafted on EfficientNet-Lite0 at eps 8/255 in 10 steps and judged by
EfficientNet-Lite1, which sees them at 240 x 240. Each attack is compared with BIM on the same
photographs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_triguard import Classifier, attacks
from pytest_triguard.statistics import clopper_pearson, paired_rate_interval
from tests.real import found
from tests.real.show import show

EPS, STEPS, CONFIDENCE = 8 / 255, 10, 0.95
ATTACKS: dict[str, dict[str, Any]] = {
    "bim": {"stop": "never"},
    "dim": {},
    "fsps": {"search_steps": 5},
    "gra": {"copies": 3},
    "mig": {"points": 4},
    "mim": {},
    "naa": {"points": 10},
    "nim": {},
    "si_nim": {"copies": 3},
    "sia": {"copies": 3},
    "ssa": {"copies": 3},
    "tim": {},
}
"""Attacks and their hyperparameters; fewer copies than the default save time on a processor."""


class Enlarged(nn.Module):
    """A network of 240 x 240 pixels on smaller images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.enlarge = nn.Upsample(size=(240, 240), mode="bilinear")
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.enlarge(images))
        return logits


def judge() -> Classifier:
    """Return the second network."""
    return Classifier(Enlarged(found.efficientnet(1).module), **found.SCALE)


@torch.no_grad()
def predicted(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the classes that a classifier sees, `(N,)`."""
    return classifier(images).argmax(1)


def lines(names: Sequence[str]) -> Iterator[str]:
    """Yield the table."""
    source, second = found.efficientnet(0), judge()
    images, labels = found.photographs()
    right = (predicted(source, images) == labels) & (predicted(second, images) == labels)
    images, labels = images[right], labels[right]
    yield f"{len(images)} of {len(right)} photographs are recognised by both networks"
    yield ""
    yield "| attack | passes | on Lite0 | on Lite1 | interval | gain over BIM | interval |"
    yield f"|{'---|' * 7}"
    before: Tensor | None = None
    for name in names:
        attack = attacks.get(name, eps=EPS, steps=STEPS, seed=0, **ATTACKS[name])
        crafted = attack(source, images, labels)
        fooled = predicted(second, crafted.adversarial) != labels
        first = before is None
        before = fooled if before is None else before
        worse, better = int((before & ~fooled).sum()), int((fooled & ~before).sum())
        gain = paired_rate_interval(worse, better, len(labels), CONFIDENCE)
        share = clopper_pearson(int(fooled.sum()), len(labels), CONFIDENCE)
        cells = (
            f"`{name}`",
            str(attack.passes_per_sample),
            f"{float(crafted.success.float().mean()):.0%}",
            f"{int(fooled.sum())}/{len(labels)}",
            f"{share[0]:.0%} to {share[1]:.0%}",
            "" if first else f"{(better - worse) / len(labels):+.0%}",
            "" if first else f"{gain[0]:+.0%} to {gain[1]:+.0%}",
        )
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    show(lines(sys.argv[1:] or list(ATTACKS)))
