"""The attacks against those of torchattacks."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_triguard import attacks
from tests.attacks.peers import ALIKE, COUNT, EPS, STEP, STEPS, Pair, check_equal, claimed, smooth
from tests.networks import CLASSES, bare

torchattacks = pytest.importorskip("torchattacks")

THERE = {"eps": EPS["linf"], "alpha": STEP, "steps": STEPS}


def stepwise(name: str, there: str, own: dict[str, Any] | None = None, **other: Any) -> Pair:
    """Return a pair that takes the same steps."""
    return Pair(name, there, ALIKE | (own or {}), THERE | other)


PAIRS = (
    Pair("fgsm", "FGSM", {}, {"eps": EPS["linf"]}),
    stepwise("bim", "BIM"),
    stepwise("pgd", "PGD", {"random_start": False}, random_start=False),
    stepwise("mim", "MIFGSM", {"momentum": 0.9}, decay=0.9),
    stepwise("nim", "NIFGSM", {"momentum": 0.9}, decay=0.9),
    stepwise("si_nim", "SINIFGSM", {"copies": 3}, m=3),
    stepwise("dim", "DIFGSM", {"probability": 0.0, "rate": 1.5}, diversity_prob=0.0, decay=1.0),
    stepwise("tim", "TIFGSM", {"size": 5}, diversity_prob=0.0, decay=1.0, len_kernel=5),
    Pair(
        "pgd",
        "PGDL2",
        ALIKE | {"random_start": False},
        THERE | {"eps": EPS["l2"], "random_start": False},
        norm="l2",
    ),
)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_examples_are_the_same(pair):
    subject, inputs, labels = smooth()
    there = getattr(torchattacks, pair.there)(bare(subject), **pair.other)(inputs, labels)
    check_equal(pair.run(subject, inputs, labels), there)


SEARCHES = {
    "fab": ("FAB", {"steps": 20}, {"steps": 20}, 0),
    "fab_t": (
        "FAB",
        {"steps": 20, "classes": 3},
        {"steps": 20, "multi_targeted": True, "n_classes": CLASSES},
        0,
    ),
    "apgd_ce": ("APGD", {"steps": 20}, {"steps": 20, "loss": "ce"}, 1),
    "apgd_dlr": ("APGD", {"steps": 20}, {"steps": 20, "loss": "dlr"}, 1),
    "apgd_t": ("APGDT", {"steps": 20, "classes": 3}, {"steps": 20, "n_classes": CLASSES}, 1),
    "square": ("Square", {"queries": 1500}, {"n_queries": 1500}, 3),
}
"""By name here: name there, hyperparameters here and there, and how many samples may differ.

The last is 0 where nothing is drawn; the libraries draw from different generators.
"""
SEARCHED = [(name, norm) for name in SEARCHES for norm in EPS if (name, norm) != ("square", "l2")]
"""The other library's Square stops in L2 with an error where images are this small."""


@pytest.mark.parametrize(("name", "norm"), SEARCHED)
def test_the_same_samples_fall(name, norm):
    there, own, other, spared = SEARCHES[name]
    subject, inputs, labels = smooth()
    result = attacks.get(name, eps=EPS[norm], norm=norm, **own)(subject, inputs, labels)
    named = {"linf": "Linf", "l2": "L2"}[norm]
    attack = getattr(torchattacks, there)(bare(subject), norm=named, eps=EPS[norm], **other)
    fell = subject(attack(inputs, labels)).argmax(1) != labels
    assert 0 < int(result.success.sum()) < COUNT
    assert int((result.success != fell).sum()) <= spared


def test_what_is_checked_here_is_said():
    assert claimed("torchattacks") == {pair.name for pair in PAIRS} | set(SEARCHES)
