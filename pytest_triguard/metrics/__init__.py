"""Numbers read off maps and predictions, one per sample, one file per metric.

A new metric is one file with a class, and one line in the table below.
"""

from __future__ import annotations

from pytest_triguard.metrics.base import Metric
from pytest_triguard.metrics.correlations import Correlation, correlations
from pytest_triguard.metrics.model_metric import ModelMetric
from pytest_triguard.metrics.pair import PairMetric
from pytest_triguard.registry import Family

__all__ = [
    "Correlation",
    "Metric",
    "ModelMetric",
    "PairMetric",
    "correlations",
    "get",
    "names",
]

_FAMILY: Family[Metric] = Family(
    "metric",
    {
        "attack_success": "pytest_triguard.metrics.attack_success:AttackSuccess",
        "completeness_error": "pytest_triguard.metrics.completeness_error:CompletenessError",
        "cosine": "pytest_triguard.metrics.cosine:Cosine",
        "deletion": "pytest_triguard.metrics.deletion:Deletion",
        "drift": "pytest_triguard.metrics.drift:Drift",
        "entropy": "pytest_triguard.metrics.entropy:Entropy",
        "infidelity": "pytest_triguard.metrics.infidelity:Infidelity",
        "insertion": "pytest_triguard.metrics.insertion:Insertion",
        "mass_center": "pytest_triguard.metrics.mass_center:MassCenter",
        "max_sensitivity": "pytest_triguard.metrics.max_sensitivity:MaxSensitivity",
        "pointing_game": "pytest_triguard.metrics.pointing_game:PointingGame",
        "sensitivity_n": "pytest_triguard.metrics.sensitivity_n:SensitivityN",
        "spearman": "pytest_triguard.metrics.spearman:Spearman",
        "topk_intersection": "pytest_triguard.metrics.topk_intersection:TopKIntersection",
        "trigger_recall": "pytest_triguard.metrics.trigger_recall:TriggerRecall",
    },
)

names = _FAMILY.names
get = _FAMILY.get
