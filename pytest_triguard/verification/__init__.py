"""Verification: sound bounds on the unmodified module, and the cascade around them."""

from __future__ import annotations

from pytest_triguard.verification.budget import Budget
from pytest_triguard.verification.gradient_bounds import gradient_bounds
from pytest_triguard.verification.methods import names
from pytest_triguard.verification.result import (
    Decision,
    SampleVerdict,
    Stage,
    Status,
    Tally,
    VerificationResult,
)
from pytest_triguard.verification.saliency_drift import saliency_drift_bound
from pytest_triguard.verification.smoothed_maps import SmoothedMapCertificate, certify_smoothgrad
from pytest_triguard.verification.verifier import bounds, verify, verify_stream

__all__ = [
    "Budget",
    "Decision",
    "SampleVerdict",
    "SmoothedMapCertificate",
    "Stage",
    "Status",
    "Tally",
    "VerificationResult",
    "bounds",
    "certify_smoothgrad",
    "gradient_bounds",
    "names",
    "saliency_drift_bound",
    "verify",
    "verify_stream",
]
