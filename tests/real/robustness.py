"""What attacks leave of the two LeNet5 at eps 0.3: `python -m tests.real.robustness`.

PGD-40 on 500 digits, and on the first hundred of them AutoAttack in its standard version.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_triguard import attacks
from pytest_triguard.attacks import Attack
from pytest_triguard.statistics import clopper_pearson
from tests.real import found
from tests.real.show import show

EPS, CONFIDENCE = 0.3, 0.95
PUBLISHED = {"clean": 0.01, "adversarial": 0.94}
"""Share of digits that PGD-40 leaves, to be found again within the interval."""


def pgd() -> Attack:
    """Return PGD-40."""
    return attacks.get("pgd", eps=EPS, steps=40, seed=0)


def standing(training: str, attack: Attack, count: int) -> int:
    """Return how many of the first digits an attack leaves as they are.

    Digits that are wrong before count as fallen.
    """
    images, labels = found.digits()
    return count - int(attack(found.lenet(training), images[:count], labels[:count]).success.sum())


def interval(successes: int, count: int) -> tuple[float, float]:
    """Return the exact interval of a share."""
    return clopper_pearson(successes, count, CONFIDENCE)


def lines() -> Iterator[str]:
    """Yield the table."""
    yield "| LeNet5 | attack | digits | left | interval |"
    yield "|---|---|---|---|---|"
    strong = attacks.get("autoattack", eps=EPS, seed=0)
    for training in found.LENETS:
        for title, attack, count in (
            ("PGD-40", pgd(), 500),
            ("PGD-40", pgd(), 100),
            ("AutoAttack, standard", strong, 100),
        ):
            left = standing(training, attack, count)
            low, high = interval(left, count)
            share = f"{left / count:.1%} | {low:.1%} to {high:.1%}"
            yield f"| {training} | {title} | {count} | {share} |"


if __name__ == "__main__":
    show(lines())
