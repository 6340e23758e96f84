"""Verification: sound bounds on the unmodified module, and the cascade around them."""

from __future__ import annotations

from pytest_triguard.verification.methods import names
from pytest_triguard.verification.result import (
    Decision,
    SampleVerdict,
    Stage,
    Status,
    Tally,
    VerificationResult,
)
from pytest_triguard.verification.verifier import bounds, verify, verify_stream

__all__ = [
    "Decision",
    "SampleVerdict",
    "Stage",
    "Status",
    "Tally",
    "VerificationResult",
    "bounds",
    "names",
    "verify",
    "verify_stream",
]
