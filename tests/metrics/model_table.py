"""The metrics that ask the network, as the tests see them: a new one is one row in `TABLE`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pytest_triguard import metrics


@dataclass(frozen=True)
class Row:
    """One metric that asks the network, as the table tests it.

    Attributes:
        name: Its name in the family.
        few: Hyperparameters that make it fast enough for a test.
        defaults: Hyperparameters it must have unless told otherwise.
        passes: Forward passes of 5 samples where every state differs.
        random: Whether it draws.
    """

    name: str
    few: dict[str, Any]
    defaults: dict[str, Any]
    passes: int
    random: bool = False

    def metric(self, **changed: Any) -> metrics.ModelMetric:
        """Return the metric, fast, with changed hyperparameters."""
        found = metrics.get(self.name, **(self.few | changed))
        assert isinstance(found, metrics.ModelMetric)
        return found


CURVE = {
    "output": "probability",
    "steps": 100,
    "baseline": "zero",
    "absolute": True,
    "ranking": "map",
}
TABLE = (
    Row("completeness_error", {}, {"output": "logit", "baseline": "zero"}, 5 * 2),
    Row("deletion", {"steps": 6, "baseline": "midpoint"}, CURVE, 5 * 7),
    Row("insertion", {"steps": 6, "baseline": "midpoint"}, CURVE, 5 * 7),
    Row(
        "infidelity",
        {"copies": 4},
        {"output": "logit", "noise_level": 0.2, "copies": 50, "scaled": False},
        5 * 5,
        random=True,
    ),
    Row("max_sensitivity", {"copies": 3}, {"radius": 0.02, "copies": 10}, 5 * 3, random=True),
    Row(
        "sensitivity_n",
        {"subsets": 6, "baseline": "midpoint"},
        {"output": "logit", "n": 0.1, "subsets": 100, "baseline": "zero"},
        5 * 7,
        random=True,
    ),
)
every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
