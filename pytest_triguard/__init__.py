"""Safety gates for image classifiers, as ordinary pytest tests.

Importing this package imports neither torch nor numpy nor captum: names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_triguard import attacks as attacks
    from pytest_triguard import attribution_attacks as attribution_attacks
    from pytest_triguard import attributions as attributions
    from pytest_triguard import backdoors as backdoors
    from pytest_triguard import metrics as metrics
    from pytest_triguard import pictures as pictures
    from pytest_triguard import strategies as strategies
    from pytest_triguard import verification as verification
    from pytest_triguard.assertions import assert_accuracy as assert_accuracy
    from pytest_triguard.assertions import (
        assert_attack_success_below as assert_attack_success_below,
    )
    from pytest_triguard.assertions import assert_drift_below as assert_drift_below
    from pytest_triguard.assertions import assert_entropy_below as assert_entropy_below
    from pytest_triguard.assertions import (
        assert_explanation_robust as assert_explanation_robust,
    )
    from pytest_triguard.assertions import assert_explanations_agree as assert_explanations_agree
    from pytest_triguard.assertions import assert_faithful as assert_faithful
    from pytest_triguard.assertions import assert_passes_sanity_check as assert_passes_sanity_check
    from pytest_triguard.assertions import assert_robust as assert_robust
    from pytest_triguard.assertions import assert_transfer_below as assert_transfer_below
    from pytest_triguard.assertions import assert_trigger_recall as assert_trigger_recall
    from pytest_triguard.assertions import assert_verified as assert_verified
    from pytest_triguard.classifier import Classifier as Classifier
    from pytest_triguard.errors import TriGuardFailure as TriGuardFailure
    from pytest_triguard.measurement import Measurement as Measurement
    from pytest_triguard.record import Verdict as Verdict

__version__ = "0.1.0"

_FAMILIES = (
    "attacks",
    "attribution_attacks",
    "attributions",
    "backdoors",
    "metrics",
    "verification",
)
# Not in __all__: not every install has the package they need.
_NEEDS_MORE = ("pictures", "strategies")
_HOMES = {
    "Classifier": "classifier",
    "Measurement": "measurement",
    "TriGuardFailure": "errors",
    "Verdict": "record",
    "assert_accuracy": "assertions",
    "assert_attack_success_below": "assertions",
    "assert_drift_below": "assertions",
    "assert_entropy_below": "assertions",
    "assert_explanation_robust": "assertions",
    "assert_explanations_agree": "assertions",
    "assert_faithful": "assertions",
    "assert_passes_sanity_check": "assertions",
    "assert_robust": "assertions",
    "assert_transfer_below": "assertions",
    "assert_trigger_recall": "assertions",
    "assert_verified": "assertions",
}

__all__ = [
    "Classifier",
    "Measurement",
    "TriGuardFailure",
    "Verdict",
    "assert_accuracy",
    "assert_attack_success_below",
    "assert_drift_below",
    "assert_entropy_below",
    "assert_explanation_robust",
    "assert_explanations_agree",
    "assert_faithful",
    "assert_passes_sanity_check",
    "assert_robust",
    "assert_transfer_below",
    "assert_trigger_recall",
    "assert_verified",
    "attacks",
    "attribution_attacks",
    "attributions",
    "backdoors",
    "metrics",
    "verification",
]


def __getattr__(name: str) -> Any:
    if name in _FAMILIES or name in _NEEDS_MORE:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
