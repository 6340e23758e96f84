"""Backdoor triggers with known masks, and the poisoning of a dataset, one file per trigger.

A new trigger is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.backdoors.base import Trigger
from pytest_triguard.backdoors.poisoning import PoisonedDataset
from pytest_triguard.registry import Family

__all__ = ["PoisonedDataset", "Trigger", "get", "names"]

_FAMILY: Family[Trigger] = Family(
    "backdoor",
    {
        "badnets": "pytest_triguard.backdoors.badnets:BadNets",
        "blend": "pytest_triguard.backdoors.blend:Blend",
    },
)

names = _FAMILY.names
get = _FAMILY.get
