"""Numbers read off maps and predictions, one per sample, one file per metric.

A new metric is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.metrics.base import Metric
from pytest_triguard.metrics.pair import PairMetric
from pytest_triguard.registry import Family

__all__ = ["Metric", "PairMetric", "get", "names"]

_FAMILY: Family[Metric] = Family(
    "metric",
    {
        "attack_success": "pytest_triguard.metrics.attack_success:AttackSuccess",
        "cosine": "pytest_triguard.metrics.cosine:Cosine",
        "drift": "pytest_triguard.metrics.drift:Drift",
        "entropy": "pytest_triguard.metrics.entropy:Entropy",
        "mass_center": "pytest_triguard.metrics.mass_center:MassCenter",
        "spearman": "pytest_triguard.metrics.spearman:Spearman",
        "topk_intersection": "pytest_triguard.metrics.topk_intersection:TopKIntersection",
        "trigger_recall": "pytest_triguard.metrics.trigger_recall:TriggerRecall",
    },
)

names = _FAMILY.names
get = _FAMILY.get
