"""Prints what AutoAttack does to the network: which attack broke which digit, at what cost."""

import sys

from model import EPS
from shipped import classifier, unseen
from torch import Tensor

from pytest_triguard import attacks
from pytest_triguard.attacks import AttackResult

RADII = (0.0, EPS / 2, EPS, 2 * EPS)


def table(found: AttackResult, labels: Tensor, predicted: Tensor) -> str:
    """Return a line per attack: what it broke, and the passes it took.

    Args:
        found: What a cascade of attacks found.
        labels: `(N,)` classes of the digits.
        predicted: `(N,)` what the classifier says of the attacked digits.
    """
    lines = ["attack    broke forward backward digits"]
    for name, cost in found.costs.items():
        broken = [place for place, by in enumerate(found.broken_by) if by == name]
        shown = ", ".join(f"{place}: {labels[place]} as {predicted[place]}" for place in broken)
        passes = f"{cost['forward']:7} {cost['backward']:8}"
        lines.append(f"{name:9} {len(broken):5} {passes} {shown or '-'}")
    standing = int((~found.success).sum())
    return "\n".join([*lines, f"{standing} of {len(labels)} digits stand"])


def main() -> None:
    """Attack the shipped network on the digits it recognises."""
    subject, (images, labels) = classifier(attacked=True), unseen()
    right = subject(images).argmax(1) == labels
    found = attacks.get("autoattack", eps=EPS)(subject, images[right], labels[right])
    predicted = subject(found.adversarial).argmax(1)
    sys.stdout.write(f"{int(right.sum())} of {len(right)} digits are recognised\n\n")
    sys.stdout.write(table(found, labels[right], predicted) + "\n\n")
    pgd = attacks.get("pgd", steps=40)
    sys.stdout.write(f"{attacks.robust_curve(subject, images, labels, attack=pgd, eps=RADII)}\n")


if __name__ == "__main__":
    main()
