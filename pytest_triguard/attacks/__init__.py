"""Attacks on predictions, one file per method.

A new attack is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.attacks.base import Attack, AttackResult, Trajectory
from pytest_triguard.registry import Family

__all__ = ["Attack", "AttackResult", "Trajectory", "get", "names"]

_FAMILY: Family[Attack] = Family(
    "attack",
    {
        "bim": "pytest_triguard.attacks.bim:BIM",
        "fgsm": "pytest_triguard.attacks.fgsm:FGSM",
        "pgd": "pytest_triguard.attacks.pgd:PGD",
    },
)

names = _FAMILY.names
get = _FAMILY.get
