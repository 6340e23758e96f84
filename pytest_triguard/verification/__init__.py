"""Verification: sound bounds on the unmodified module, and the cascade around them."""

from __future__ import annotations

from pytest_triguard.verification.budget import Budget
from pytest_triguard.verification.certificate import (
    Certificate,
    read_certificates,
    write_certificates,
)
from pytest_triguard.verification.curve import CertifiedAccuracy, CurvePoint
from pytest_triguard.verification.gradient_bounds import gradient_bounds
from pytest_triguard.verification.methods import names
from pytest_triguard.verification.proof_tree import ProofTree
from pytest_triguard.verification.radius import (
    CertifiedRadius,
    certified_accuracy,
    certified_radius,
)
from pytest_triguard.verification.recheck import Recheck, recheck, recheck_file
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
from pytest_triguard.verification.specification import TopK
from pytest_triguard.verification.verifier import bounds, verify, verify_stream

__all__ = [
    "Budget",
    "Certificate",
    "CertifiedAccuracy",
    "CertifiedRadius",
    "CurvePoint",
    "Decision",
    "ProofTree",
    "Recheck",
    "SampleVerdict",
    "SmoothedMapCertificate",
    "Stage",
    "Status",
    "Tally",
    "TopK",
    "VerificationResult",
    "bounds",
    "certified_accuracy",
    "certified_radius",
    "certify_smoothgrad",
    "gradient_bounds",
    "names",
    "read_certificates",
    "recheck",
    "recheck_file",
    "saliency_drift_bound",
    "verify",
    "verify_stream",
    "write_certificates",
]
