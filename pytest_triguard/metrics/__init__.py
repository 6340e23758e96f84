"""Numbers read off maps and predictions, one per sample, one file per metric.

A new metric is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.metrics.base import Metric
from pytest_triguard.registry import Family

__all__ = ["Metric", "get", "names"]

_FAMILY: Family[Metric] = Family(
    "metric",
    {
        "attack_success": "pytest_triguard.metrics.attack_success:AttackSuccess",
        "drift": "pytest_triguard.metrics.drift:Drift",
        "entropy": "pytest_triguard.metrics.entropy:Entropy",
        "trigger_recall": "pytest_triguard.metrics.trigger_recall:TriggerRecall",
    },
)

names = _FAMILY.names
get = _FAMILY.get
