"""What can be proven of each sample."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from pytest_triguard.checks.columns import Columns
from pytest_triguard.checks.finding import (
    Counterexample,
    Finding,
    Worst,
    describe_ball,
    plain_id,
)
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.equality import fingerprint
from pytest_triguard.running import Run
from pytest_triguard.verification import (
    Budget,
    Certificate,
    Decision,
    SampleVerdict,
    Stage,
    Tally,
    verify_stream,
)
from pytest_triguard.verification.certificate import Issuer
from pytest_triguard.verification.falsifier import ATTACK_STEPS
from pytest_triguard.verification.regions import region
from pytest_triguard.verification.specification import Specification
from pytest_triguard.verification.verifier import limits

_VALUES = {"proven": 1.0, "falsified": 0.0, "unknown": np.nan, "unsupported": np.nan}
_BADNESS = {"falsified": 3.0, "unsupported": 2.0, "unknown": 1.0}

_TOLD = 2
"""Reasons that are told in words; samples with others are counted."""
_ALLOWING = "auto_lirpa:"
"""How methods begin that make an allowance for their own rounding, and do not bound it."""

LARGEST = 16 * 2**20
"""Characters of the certificates of a check that are kept; what is beyond is left out."""


class _Proofs:
    """Certificates as they come, as many as there is room for."""

    def __init__(self) -> None:
        self.kept: list[Certificate] = []
        self.left_out = 0
        self._room = LARGEST

    def add(self, certificates: Iterable[Certificate | None]) -> None:
        """Keep certificates while there is room."""
        for each in certificates:
            if each is None:
                continue
            size = len(json.dumps(each.to_dict()))
            if size <= self._room:
                self._room -= size
                self.kept.append(each)
            else:
                self.left_out += 1


def measure_verified(
    run: Run,
    *,
    eps: float | Tensor,
    norm: str,
    method: str,
    budget: float | Budget | None,
    seed: int,
    certified: Classifier | None = None,
) -> Finding:
    """Measure which samples are proven to keep their label in a ball around them.

    Args:
        run: Classifier and samples.
        eps: Radius of the ball, one for all samples or `(N,)`.
        norm: Norm of the ball.
        method: Name of the verification method.
        budget: What may be spent.
        seed: Seed of the attack.
        certified: The classifier, where certificates are to be kept; else None.
    """
    run.require_one_each("eps", eps)
    run.tune(ATTACK_STEPS)
    spent = limits(method, budget)
    issuer = None if certified is None else _issuer(certified, run, eps, norm, method, spent)
    seen = _Seen(issuer)
    for decision in verify_stream(
        run.model,
        run.samples if issuer is None else issuer.watched(run.samples),
        eps=eps,
        norm=norm,
        method=method,
        budget=spent,
        seed=seed,
        keep=issuer is not None,
    ):
        seen.add(decision)
    ids, found = seen.columns.arrays()
    things: list[SampleVerdict] = seen.worst.things()
    left_out = seen.proofs.left_out
    return Finding(
        metric="verified rate",
        ids=ids,
        values=found["value"],
        counts=seen.counts(),
        undefined=0,
        unknown=int(np.isnan(found["value"]).sum()),
        subject="no class but the label in the " + describe_ball(eps, norm, run.samples.bounds),
        method=_budgeted(method, spent, seed, seen.tally.stages, seen.reasons),
        parameters={
            "method": method,
            "eps": fingerprint(eps) if isinstance(eps, Tensor) else float(eps),
            "norm": norm,
            "budget": asdict(budget) if isinstance(budget, Budget) else budget,
            "arithmetic": "real",
            "seed": seed,
        },
        worst=[_row(each) for each in things],
        counterexamples=lambda: [
            _counterexample(each, eps, norm) for each in things if each.counterexample is not None
        ],
        certificates=seen.proofs.kept,
        diagnostics={"certificates left out": float(left_out)} if left_out else {},
    )


def _issuer(
    certified: Classifier, run: Run, eps: float | Tensor, norm: str, method: str, spent: Budget
) -> Issuer:
    """Return what writes the certificates of a check."""
    where = region(eps, norm, None, None, run.model)
    return Issuer(certified, run.model, where, Specification(), method, spent.steps, "real")


class _Seen:
    """What is kept of the decisions, whatever their number.

    Args:
        issuer: Writes certificates, or None where none are kept.
    """

    def __init__(self, issuer: Issuer | None) -> None:
        self.columns, self.worst, self.tally, self.proofs = Columns(), Worst(), Tally(), _Proofs()
        self.reasons: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._issuer = issuer

    def add(self, decision: Decision) -> None:
        """Keep the scalars of some decisions, and what is worst among them."""
        self.tally.add(decision)
        if self._issuer is not None:
            self.proofs.add(self._issuer.issue(decision.verdicts))
        self.columns.add(
            [each.position for each in decision.verdicts],
            [each.id for each in decision.verdicts],
            value=[_VALUES[each.status] for each in decision.verdicts],
        )
        for each in decision.verdicts:
            by = f" by {each.stage}" if each.status == "falsified" else ""
            self._statuses["misclassified" if each.stage == "clean" else f"{each.status}{by}"] += 1
            self.reasons.update([f"{each.status}: {each.reason}"] if each.reason else [])
            if each.status in _BADNESS:
                self.worst.offer(_score(each), each.position, partial(replace, each))

    def counts(self) -> dict[str, int]:
        """Return how many samples have each status, the proven ones first."""
        others = {name: count for name, count in self._statuses.items() if name != "proven"}
        return {"proven": self._statuses["proven"]} | dict(sorted(others.items()))


def _score(verdict: SampleVerdict) -> float:
    """Order samples: fallen to an attack, unsupported, unknown with the least margin, wrong."""
    if verdict.stage == "clean":
        return 0.0
    below = max(0.0, -float(verdict.margin))
    depth = 1.0 if below == np.inf else below / (1.0 + below)  # loose bounds lie far below zero
    return _BADNESS[verdict.status] + 0.5 * depth


def _row(verdict: SampleVerdict) -> dict[str, Any]:
    row: dict[str, Any] = {"id": plain_id(verdict.id), "label": verdict.label}
    if verdict.stage == "clean":
        return row | {"status": "misclassified"}
    row["status"] = verdict.status + (f" by {verdict.stage}" if verdict.stage else "")
    if np.isfinite(verdict.margin):
        row["margin at least"] = float(verdict.margin)
    return row


def _counterexample(verdict: SampleVerdict, eps: float | Tensor, norm: str) -> Counterexample:
    if verdict.clean is None or verdict.counterexample is None or verdict.label is None:
        raise TypeError("a falsified sample has a counterexample and a label")
    radius = float(eps[verdict.position]) if isinstance(eps, Tensor) else float(eps)
    return Counterexample(
        sample=verdict.id,
        clean=verdict.clean,
        broken=verdict.counterexample,
        label=verdict.label,
        eps=radius,
        norm=norm,
    )


def _budgeted(
    method: str,
    budget: Budget,
    seed: int,
    stages: tuple[Stage, ...],
    reasons: Counter[str],
) -> str:
    """Return the stages in words: what each decided, in which time, and why samples stay open."""
    steps = []
    for stage in stages:
        decided = [
            f"{count} {what}"
            for count, what in ((stage.proven, "proven"), (stage.falsified, "falsified"))
            if count
        ]
        found = " and ".join(decided) or "none"
        again = f" ({stage.retried} again in float64)" if stage.retried else ""
        steps.append(f"{stage.name} {stage.samples}{again} -> {found} in {stage.seconds:.2g} s")
    # Messages cut what is long: what every stage rests on, and why samples are left open, come
    # before what each stage did.
    allowed = " up to float rounding" if method.startswith(_ALLOWING) else ""
    spent = f"real arithmetic{allowed}, {budget.describe()}, seed {seed}"
    left = _left_open(reasons)
    return f"{method}, {spent}{f'; {left}' if left else ''}: {', '.join(steps)}"


def _left_open(reasons: Counter[str]) -> str:
    """Return how many samples are left open, and for which reasons; nothing where none is."""
    parts = []
    for told, count in reasons.most_common(_TOLD):
        status, _, why = told.partition(": ")
        parts.append(f"{count} {status} ({why})")
    if others := reasons.total() - sum(count for _, count in reasons.most_common(_TOLD)):
        parts.append(f"{others} open for other reasons")
    return ", ".join(parts)
