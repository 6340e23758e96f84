"""The attacks against those of Foolbox."""

from __future__ import annotations

import pytest

from pytest_triguard import attacks
from tests.attacks.peers import ALIKE, EPS, STEP, STEPS, Pair, check_equal, claimed, smooth
from tests.attacks.table import distance
from tests.networks import bare

foolbox = pytest.importorskip("foolbox")

PAIRS = (
    Pair("fgsm", "LinfFastGradientAttack", {}, {"random_start": False}),
    Pair("bim", "LinfBasicIterativeAttack", ALIKE, {"abs_stepsize": STEP, "steps": STEPS}),
    Pair(
        "pgd",
        "LinfProjectedGradientDescentAttack",
        ALIKE | {"random_start": False},
        {"abs_stepsize": STEP, "steps": STEPS, "random_start": False},
    ),
    Pair(
        "pgd",
        "L2ProjectedGradientDescentAttack",
        ALIKE | {"random_start": False},
        {"abs_stepsize": STEP, "steps": STEPS, "random_start": False},
        norm="l2",
    ),
)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_examples_are_the_same(pair):
    subject, inputs, labels = smooth()
    attack = getattr(foolbox.attacks, pair.there)(**pair.other)
    model = foolbox.PyTorchModel(bare(subject), bounds=(0, 1), device="cpu")
    _, there, _ = attack(model, inputs, labels, epsilons=EPS[pair.norm])
    check_equal(pair.run(subject, inputs, labels), there)


def test_the_nearest_examples_are_as_near():
    """Both bisect the weight of the margin; Adam starts elsewhere."""
    subject, inputs, labels = smooth()
    own = attacks.get("cw", eps=9.0, searches=5, steps=80, step_size=0.02, stop="never")
    result = own(subject, inputs, labels)
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=80, stepsize=0.02)
    model = foolbox.PyTorchModel(bare(subject), bounds=(0, 1), device="cpu")
    there, _, fell = attack(model, inputs, labels, epsilons=None)
    assert result.success.all()
    assert fell.all()
    ratio = distance(result.adversarial, inputs, "l2") / distance(there, inputs, "l2")
    assert float(ratio.median()) == pytest.approx(1, abs=0.01)
    assert float(ratio.max()) <= 1.1


def test_what_is_checked_here_is_said():
    assert claimed("Foolbox") == {pair.name for pair in PAIRS} | {"cw"}
