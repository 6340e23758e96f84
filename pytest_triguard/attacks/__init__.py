"""Attacks on predictions, one file per method.

A new attack is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.attacks.base import Attack, AttackResult, Trajectory
from pytest_triguard.attacks.cascade import Cascade
from pytest_triguard.attacks.curve import RobustCurve, robust_curve
from pytest_triguard.attacks.transfer import TransferMatrix, transfer_matrix
from pytest_triguard.registry import Family

__all__ = [
    "Attack",
    "AttackResult",
    "Cascade",
    "RobustCurve",
    "Trajectory",
    "TransferMatrix",
    "get",
    "names",
    "robust_curve",
    "transfer_matrix",
]

_FAMILY: Family[Attack] = Family(
    "attack",
    {
        "apgd_ce": "pytest_triguard.attacks.apgd_ce:APGDCE",
        "apgd_dlr": "pytest_triguard.attacks.apgd_dlr:APGDDLR",
        "apgd_t": "pytest_triguard.attacks.apgd_t:APGDT",
        "autoattack": "pytest_triguard.attacks.autoattack:AutoAttack",
        "bim": "pytest_triguard.attacks.bim:BIM",
        "cw": "pytest_triguard.attacks.cw:CW",
        "dim": "pytest_triguard.attacks.dim:DIM",
        "fab": "pytest_triguard.attacks.fab:FAB",
        "fab_t": "pytest_triguard.attacks.fab_t:FABT",
        "fgsm": "pytest_triguard.attacks.fgsm:FGSM",
        "fsps": "pytest_triguard.attacks.fsps:FSPS",
        "gra": "pytest_triguard.attacks.gra:GRA",
        "mig": "pytest_triguard.attacks.mig:MIG",
        "mim": "pytest_triguard.attacks.mim:MIM",
        "naa": "pytest_triguard.attacks.naa:NAA",
        "nim": "pytest_triguard.attacks.nim:NIM",
        "pgd": "pytest_triguard.attacks.pgd:PGD",
        "si_nim": "pytest_triguard.attacks.si_nim:SINIM",
        "sia": "pytest_triguard.attacks.sia:SIA",
        "square": "pytest_triguard.attacks.square:Square",
        "ssa": "pytest_triguard.attacks.ssa:SSA",
        "tim": "pytest_triguard.attacks.tim:TIM",
    },
)

names = _FAMILY.names
get = _FAMILY.get
