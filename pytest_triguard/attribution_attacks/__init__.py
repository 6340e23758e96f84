"""Attacks on explanations, one file per method: the map moves, the prediction does not.

A new attack is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.attribution_attacks.base import AttributionAttack, AttributionAttackResult
from pytest_triguard.attribution_attacks.evaluation import (
    EPS_255,
    AttackCurve,
    area_over_log_eps,
    attack_curve,
)
from pytest_triguard.attribution_attacks.transfer import transfer_between
from pytest_triguard.registry import Family

__all__ = [
    "EPS_255",
    "AttackCurve",
    "AttributionAttack",
    "AttributionAttackResult",
    "area_over_log_eps",
    "attack_curve",
    "get",
    "names",
    "transfer_between",
]

_FAMILY: Family[AttributionAttack] = Family(
    "attribution attack",
    {
        "manipulate": "pytest_triguard.attribution_attacks.manipulate:Manipulate",
        "mass_center": "pytest_triguard.attribution_attacks.mass_center:MassCenterAttack",
        "targeted": "pytest_triguard.attribution_attacks.targeted:Targeted",
        "topk": "pytest_triguard.attribution_attacks.topk:TopK",
    },
)

names = _FAMILY.names
get = _FAMILY.get
