"""The parts of AutoAttack against its authors' code, `github.com/fra31/auto-attack`.

No registry has it: `pip install git+https://github.com/fra31/auto-attack` brings the package.
"""

from __future__ import annotations

import pytest

from pytest_triguard import attacks
from tests.attacks.peers import COUNT, EPS, smooth
from tests.networks import bare

pytest.importorskip("autoattack")

from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from autoattack.fab_pt import FABAttack_PT
from autoattack.square import SquareAttack

STEPS = 20
PARTS = {
    "apgd_ce": (APGDAttack, {"loss": "ce", "n_iter": STEPS}, {"steps": STEPS}, 1),
    "apgd_dlr": (APGDAttack, {"loss": "dlr", "n_iter": STEPS}, {"steps": STEPS}, 1),
    "apgd_t": (
        APGDAttack_targeted,
        {"n_iter": STEPS, "n_target_classes": 3},
        {"steps": STEPS, "classes": 3},
        1,
    ),
    "fab_t": (
        FABAttack_PT,
        {"n_iter": STEPS, "n_restarts": 1, "targeted": True, "n_target_classes": 3},
        {"steps": STEPS, "classes": 3},
        0,
    ),
    "square": (
        SquareAttack,
        {"n_queries": 600, "n_restarts": 1, "p_init": 0.8, "resc_schedule": False},
        {"queries": 600},
        4,
    ),
}
"""By name here: class there, hyperparameters there and here, and how many samples may differ.

The last is 0 where nothing is drawn; the two draw from different generators.
"""
CASES = [(name, norm) for name in PARTS for norm in EPS if (name, norm) != ("square", "l2")]
"""The other Square stops in L2 with an error where images are this small."""


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_same_samples_fall(name, norm):
    there, other, own, spared = PARTS[name]
    subject, inputs, labels = smooth()
    result = attacks.get(name, eps=EPS[norm], norm=norm, **own)(subject, inputs, labels)
    named = {"linf": "Linf", "l2": "L2"}[norm]
    attack = there(bare(subject), norm=named, eps=EPS[norm], seed=0, device="cpu", **other)
    found = attack.perturb(inputs, labels)
    offset = (found - inputs).flatten(1)
    distance = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    fell = (subject(found).argmax(1) != labels) & (distance <= EPS[norm] * 1.0001)
    assert 0 < int(result.success.sum()) < COUNT
    assert int((result.success != fell).sum()) <= spared
