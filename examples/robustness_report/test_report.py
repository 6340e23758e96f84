"""How much the network withstands, and whether the attacks were able to look."""

import pytest
import report
from model import EPS

from pytest_triguard import TriGuardFailure, assert_accuracy, assert_robust, attacks

PGD = attacks.get("pgd", eps=EPS)
SQUARE = attacks.get("square", eps=EPS, queries=200)
BOTH = attacks.Cascade(attacks=(PGD, SQUARE), eps=EPS)


def test_digits_are_recognised(triguard_classifier, triguard_data):
    assert_accuracy(triguard_classifier, *triguard_data, at_least=0.85)


@pytest.mark.triguard(samples=10)
def test_most_digits_withstand_autoattack(triguard_classifier, triguard_data):
    gate = {"eps": EPS, "attack": "autoattack", "at_least": 0.6, "strict": True}
    assert_robust(triguard_classifier, *triguard_data, **gate)


def test_hidden_gradients_look_robust_and_are_told(masked, triguard_data):
    found = assert_robust(masked, *triguard_data, eps=EPS, attack=PGD, at_least=0.8)
    assert "zero gradients" in found.record.warnings
    with pytest.raises(TriGuardFailure, match="black box beats white box"):
        assert_robust(masked, *triguard_data, eps=EPS, attack=BOTH, at_least=0.1, strict=True)


def test_the_report_names_the_attack_that_broke_a_digit(masked, triguard_data):
    images, labels = triguard_data
    found = BOTH(masked, images, labels)
    predicted = masked(found.adversarial).argmax(1)
    _, by_pgd, by_square, last = report.table(found, labels, predicted).splitlines()
    first = found.broken_by.index("square")
    assert f"{first}: {labels[first]} as {predicted[first]}" in by_square
    assert by_pgd.split()[:2] == ["pgd", str(found.broken_by.count("pgd"))]
    assert last == f"{found.broken_by.count(None)} of {len(labels)} digits stand"
