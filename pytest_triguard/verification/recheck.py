"""Checking a certificate: the proof is made again, without a search, or it is said why not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.running import running
from pytest_triguard.validation import describe, number, one_of, whole
from pytest_triguard.verification import judging
from pytest_triguard.verification.branch_and_bound import BranchAndBound
from pytest_triguard.verification.budget import Budget
from pytest_triguard.verification.certificate import (
    Certificate,
    digest,
    graph_digest,
    read_certificates,
    unpack,
    versions,
)
from pytest_triguard.verification.faithful import refuse_unfaithful
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import BOUNDS, Effort, Margins
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import Unsupported
from pytest_triguard.verification.regions import Region
from pytest_triguard.verification.regions import region as parse_region
from pytest_triguard.verification.specification import Rows, Specification, TopK, check_classes
from pytest_triguard.verification.specification import parse as parse_specification

_CLOSE = 1e-6
"""Relative difference of two margins that rounding explains."""
_MOST_CLASSES = 2**31
"""More would not go into a tensor of labels."""


@dataclass(frozen=True)
class Recheck:
    """What became of a certificate.

    Attributes:
        holds: Whether certificate, classifier and sample belong together, and the proof was made
            again.
        reason: Why it does not hold, or None.
        changed: What is different from when the certificate was issued and does not matter for the
            proof, such as a version.
        margin: Lower bound of the margin that was found now; -inf where nothing was bounded.
        slack: What it has to exceed.
    """

    holds: bool
    reason: str | None
    changed: tuple[str, ...]
    margin: float = -math.inf
    slack: float = math.inf


class _Refusal(Exception):
    """A certificate does not belong to what it is checked with."""


def recheck(certificate: Certificate, classifier: Any, inputs: Tensor) -> Recheck:
    """Prove a certificate again.

    The bound that it names is computed again on that sample alone; where a search made the proof,
    the leaves of its tree are bounded once each. Nothing that the certificate says is believed:
    margins and splits are only hints. Changed weights, another graph under the same versions,
    another sample and a changed certificate are refused before anything is bounded.

    Args:
        certificate: The certificate.
        classifier: The `Classifier` it is about.
        inputs: The sample `(C, H, W)`, or samples `(N, C, H, W)` among which it is found by its
            hash.

    Returns:
        Whether it holds, else why not.

    Raises:
        InputTypeError: If an argument has the wrong type.
    """
    for name, value, kind in (
        ("certificate", certificate, Certificate),
        ("classifier", classifier, Classifier),
        ("inputs", inputs, Tensor),
    ):
        if not isinstance(value, kind):
            raise InputTypeError(f"{name} must be a {kind.__name__}, but {describe(value)} came")
    changed = _changed(certificate)
    try:
        sample = _matched(certificate, classifier, inputs)
        with torch.no_grad():
            margin, slack, why = _proved(certificate, classifier, sample, bool(changed))
    except (_Refusal, InputError, InputTypeError, ModelError, Unsupported) as refusal:
        return Recheck(False, str(refusal), changed)
    if why is None and margin < certificate.margin - _CLOSE * max(1.0, abs(certificate.margin)):
        changed += (f"the margin is at least {margin:g}, but was {certificate.margin:g}",)
    return Recheck(why is None, why, changed, margin, slack)


def recheck_file(path: Path | str, classifier: Any, inputs: Tensor) -> dict[int | str, Recheck]:
    """Prove every certificate of a file again.

    Args:
        path: A file that `write_certificates` or `assert_verified` wrote.
        classifier: The `Classifier` the certificates are about.
        inputs: `(N, C, H, W)` samples, among which each is found by its hash.

    Returns:
        What became of each certificate, by the id of its sample; of several for one sample, one
        that does not hold, if there is one.

    Raises:
        InputTypeError: If an argument has the wrong type.
        InputError: If the file holds no certificates.
        OSError: If it cannot be read.
    """
    certificates = read_certificates(path)
    if not isinstance(inputs, Tensor):
        raise InputTypeError(f"inputs must be a Tensor, but {describe(inputs)} came")
    places = {digest(each): place for place, each in enumerate(inputs)}
    found: dict[int | str, Recheck] = {}
    for each in certificates:
        place = places.get(each.input)
        own = inputs[:0] if place is None else inputs[place]
        known = found.get(each.sample)
        if known is None or known.holds:  # what does not hold is not hidden by what does
            found[each.sample] = recheck(each, classifier, own)
    return found


def _changed(certificate: Certificate) -> tuple[str, ...]:
    """Return which versions are others than they were."""
    return tuple(
        f"{name} is {now}, but was {certificate.versions.get(name)}"
        for name, now in versions().items()
        if certificate.versions.get(name) != now
    )


def _matched(certificate: Certificate, classifier: Classifier, inputs: Tensor) -> Tensor:
    """Return the sample `(1, C, H, W)` where everything belongs together."""
    if certificate.summed() != certificate.checksum:
        raise _Refusal("the certificate was changed after it was issued: its checksum is wrong")
    found = classifier.fingerprint()
    if found != certificate.classifier:
        raise _Refusal(
            "the classifier is another one: weights, architecture, bounds or normalisation have "
            f"hash {found}, but the certificate is for {certificate.classifier}"
        )
    samples = inputs.unsqueeze(0) if inputs.ndim == 3 else inputs
    for each in samples:
        if digest(each) == certificate.input:
            sample: Tensor = each.unsqueeze(0)
            return sample
    raise _Refusal(
        f"the sample is not among the inputs: none is {certificate.input}, as the certificate says"
    )


def _proved(
    certificate: Certificate, classifier: Classifier, sample: Tensor, renewed: bool
) -> tuple[float, float, str | None]:
    """Return margin and slack, and why they prove nothing, or None."""
    one_of("stage", certificate.stage, BOUNDS.names())
    one_of("arithmetic", certificate.arithmetic, ("real", "float32"))
    wanted = _specification(certificate.specification)
    labels = None
    if certificate.label is not None:
        if not 0 <= certificate.label < _MOST_CLASSES:
            raise _Refusal(f"label must be a class, but {certificate.label} came")
        labels = torch.tensor([certificate.label])
    with running(classifier, sample, labels, needs_labels=wanted.needs_labels) as run:
        check_classes(wanted, run.model.num_classes or 0)
        block = next(iter(run.samples)).to(run.model.device)
        block = _targeted(block, wanted)
        network = Network(
            run.model, block.inputs.dtype, rounded=certificate.arithmetic == "float32"
        )
        if not renewed and graph_digest(network.graph) != certificate.graph:
            raise _Refusal(
                "the graph is another one: the weights agree, but the operators that the module "
                "runs do not"
            )
        where = _region(certificate.region, run.model)
        set_ = where.around(run.model, block, network.dtype)
        ends = [end.to(block.inputs.dtype) for end in (set_.lower, set_.upper)]
        refuse_unfaithful(network, run.model, torch.cat([block.inputs, *ends]))
        logits = run.model.logits(block.inputs)
        rows = wanted.of(block, logits.shape[1], network.dtype)
        if bool(rows.violated(logits).any()):
            return -math.inf, math.inf, "the sample itself breaks the property"
        found = _bounded(certificate, network, set_, rows)
        code, margin, slack = (
            float(each[0]) for each in judging.judge(network, found, rows, logits)
        )
    proven = code == judging.PROVEN
    why = f"{certificate.stage} does not prove it: the margin is at least {margin:g} only"
    return margin, slack, None if proven else why


def _bounded(certificate: Certificate, network: Network, region: Interval, rows: Rows) -> Margins:
    """Compute the bound that a certificate names, or bound the leaves that it lists."""
    effort = Effort(budget=Budget(steps=whole("steps", certificate.steps, low=1)))
    if certificate.trees is not None:
        return BranchAndBound().rechecked(network, region, rows, effort, certificate.trees)
    return BOUNDS.get(certificate.stage).margins(network, region, rows, effort)


def _specification(values: dict[str, Any]) -> Specification:
    if "top_k" in values:
        return parse_specification(TopK(values["top_k"]))
    if "rows" not in values:
        return parse_specification(values.get("target"))
    try:
        rows = torch.tensor(values["rows"], dtype=torch.float64)
    except (TypeError, ValueError):
        raise InputError("a certificate must have numbers as rows on the logits") from None
    return parse_specification(rows)


def _targeted(block: Batch, wanted: Specification) -> Batch:
    return Batch(
        block.positions,
        block.ids,
        block.keys,
        block.inputs,
        block.labels,
        wanted.targeted(block),
    )


def _region(values: dict[str, Any], model: Model) -> Region:
    if "lower" in values and "upper" in values:
        lower, upper = (unpack(values[name]).unsqueeze(0) for name in ("lower", "upper"))
        return parse_region(None, "linf", lower, upper, model)
    eps = number("eps", values.get("eps"), low=0)
    return parse_region(eps, values.get("norm"), None, None, model)
