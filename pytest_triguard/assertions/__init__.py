"""The assertions that model repositories write in their tests.

Each measures, holds the number against a threshold, keeps a record for the reports, and raises
`TriGuardFailure` when the check does not pass. They work outside pytest too. Everything after the
data is keyword-only but a threshold and a trigger; the options they share are in `CheckOptions`.
"""

from __future__ import annotations

from pytest_triguard.assertions.explanations import (
    assert_drift_below,
    assert_entropy_below,
    assert_explanation_robust,
    assert_explanations_agree,
    assert_faithful,
    assert_passes_sanity_check,
    assert_trigger_recall,
)
from pytest_triguard.assertions.predictions import (
    assert_accuracy,
    assert_attack_success_below,
    assert_robust,
    assert_transfer_below,
    assert_verified,
)

__all__ = [
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
]
