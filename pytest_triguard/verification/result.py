"""What a verifier found: per block while it runs, per sample when it is done, and what it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from pytest_triguard.verification.certificate import Certificate
from pytest_triguard.verification.proof_tree import ProofTree

Status = Literal["proven", "falsified", "unknown", "unsupported"]
STATUSES: tuple[Status, ...] = ("proven", "falsified", "unknown", "unsupported")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleVerdict:
    """What a verifier found out about one sample.

    Attributes:
        position: Place of the sample in the data.
        id: Sample id.
        label: Label of the sample, or None where the data has none.
        status: `"proven"`, `"falsified"`, `"unknown"` or `"unsupported"`.
        stage: Name of the stage that decided it, or None.
        reason: Why it is unknown or unsupported, or None.
        margin: Lower bound of the margin, before the slack; -inf where nothing was bounded.
        slack: What the margin has to exceed for a proof.
        clean: `(C, H, W)` the sample on the model's device, where it is falsified.
        counterexample: `(C, H, W)` an input inside the region that breaks the property and was
            predicted again, where it is falsified; the sample itself where that breaks it.
        trees: How a search proved each row that its first bound left open, where that was kept.
        seconds: Time that it was charged: its shares of the stages that it went through.
    """

    position: int
    id: Hashable
    label: int | None
    status: Status
    stage: str | None = None
    reason: str | None = None
    margin: float = -math.inf
    slack: float = math.inf
    clean: Tensor | None = None
    counterexample: Tensor | None = None
    trees: tuple[ProofTree, ...] | None = None
    seconds: float = 0.0


@dataclass
class Stage:
    """What one stage decided, and at what cost.

    Attributes:
        name: `"clean"` for the prediction of the samples themselves, or the name of a bound or of
            an attack.
        samples: Samples that it looked at.
        proven: Samples that it proved.
        falsified: Samples that it falsified.
        seconds: Wall time.
        forward: Forward passes, counted in samples; a bound counts as many as it costs.
        backward: Backward passes, counted in samples.
        retried: Samples that it bounded again in float64, as float32 did not tell.
    """

    name: str
    samples: int = 0
    proven: int = 0
    falsified: int = 0
    seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    retried: int = 0

    def count(self, verdicts: Iterable[SampleVerdict]) -> None:
        """Count what this stage decided among some samples."""
        found = [each.status for each in verdicts if each.stage == self.name]
        self.proven += found.count("proven")
        self.falsified += found.count("falsified")

    def __add__(self, other: Stage) -> Stage:
        return Stage(
            self.name,
            self.samples + other.samples,
            self.proven + other.proven,
            self.falsified + other.falsified,
            self.seconds + other.seconds,
            self.forward + other.forward,
            self.backward + other.backward,
            self.retried + other.retried,
        )


@dataclass(frozen=True)
class Decision:
    """Samples that a verifier is done with, and what was spent since the last decision.

    Attributes:
        verdicts: The samples, in no particular order.
        stages: What was spent, by stage.
    """

    verdicts: list[SampleVerdict]
    stages: list[Stage]


@dataclass
class Tally:
    """Stages summed up over decisions, in the order in which they ran."""

    _stages: dict[str, Stage] = field(default_factory=dict)

    def add(self, decision: Decision) -> None:
        """Add what was spent for a decision."""
        for stage in decision.stages:
            known = self._stages.get(stage.name)
            self._stages[stage.name] = stage if known is None else known + stage

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages so far."""
        return tuple(self._stages.values())


@dataclass(frozen=True)
class VerificationResult:
    """What a verifier found, sample by sample in the order of the data.

    Attributes:
        status: `"proven"`, `"falsified"`, `"unknown"` or `"unsupported"`.
        margin: `(N,)` lower bound of the margin, before the slack; -inf where nothing was bounded.
            In float64, on the host.
        slack: `(N,)` what the margin has to exceed for a proof; likewise.
        counterexample: `(N, C, H, W)`, an input inside the region that breaks the property of each
            falsified sample; NaN for all others.
        stage: Name of the stage that decided each sample, or None.
        reason: Why a sample is unknown or unsupported, or None.
        stages: What each stage decided, and at what cost.
        method: Name of the method.
        arithmetic: The arithmetic that the proofs hold for.
        certificates: What is needed to check each proof again, where that was asked for; None
            where a sample is not proven.
    """

    status: tuple[Status, ...]
    margin: Tensor
    slack: Tensor
    counterexample: Tensor
    stage: tuple[str | None, ...]
    reason: tuple[str | None, ...]
    stages: tuple[Stage, ...]
    method: str
    arithmetic: str
    certificates: tuple[Certificate | None, ...] = ()

    @property
    def counts(self) -> dict[Status, int]:
        """Number of samples by status."""
        found = Counter(self.status)
        return {status: found[status] for status in STATUSES}
