"""What one check did and found, in plain Python values.

A record crosses process borders and reaches reports, so it holds nothing but
`None`, `bool`, `int`, `float`, `str`, lists and string-keyed dicts.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Literal

SCHEMA_VERSION = 1

Relation = Literal[">=", "<=", "<"]
"""How a value is held against its threshold: `at_least` is `>=`, `at_most` `<=`, `below` `<`."""


class Verdict(StrEnum):
    """Outcome of one gate."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


_SEVERITY = {Verdict.PASSED: 0, Verdict.INCONCLUSIVE: 1, Verdict.FAILED: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One check: what was measured, on what, against which threshold, and at what cost.

    Attributes:
        nodeid: Node id of the test, empty outside pytest.
        name: Name of the check within the test.
        assertion: Name of the assertion, such as `assert_verified`.
        metric: What was measured, such as `verified rate`.
        value: The measured number, or None where no sample was defined.
        relation: How the value is held against the threshold.
        threshold: The threshold given to the assertion.
        verdict: Outcome of the check: of its threshold and, where there is one, of its baseline.
        gate: Outcome of the threshold alone.
        failed: Whether the assertion raised; an inconclusive check may be allowed to pass.
        n: Number of samples the value is computed from.
        undefined: Number of samples for which the metric is undefined.
        counts: Counts by name, such as proven, falsified, unknown, or reasons of undefined values.
        interval: Two ends of the interval, or None where there is none.
        confidence: Two-sided confidence of the interval.
        claim: Whether the given samples or the population they came from is judged.
        reason: Why the gate decided so, as a sentence without its full stop.
        samples_needed: How many samples would decide an inconclusive check, if any number would.
        subject: What was asked of each sample, in words and units.
        method: How it was answered, and at what budget.
        parameters: Method and its parameters.
        diagnostics: Numbers the method says about itself, such as its completeness error.
        warnings: Signs that the number cannot be relied on, by name, each as a sentence.
        strict: Whether a warning fails the check.
        classifier: Fingerprint of weights and architecture.
        data: Fingerprint of the inputs and labels that were used.
        passes: Forward and backward passes, counted in samples.
        seconds: Wall time of the check.
        worst: Worst samples, worst first: id, and what is known about each, such as label,
            prediction, or the value of the metric. Classes have a name too where there is one.
        artifacts: Paths of saved files.
        baseline: Comparison with the baseline, or None.
        compared: Which checks it is compared with: the test, the parameters that differ, their ids
            and those of all others; None where it is compared with none.
        per_sample: Ids and outcomes or values, where a baseline is written or checks are compared,
            else None.
        device: Device the check ran on.
        seed: Seed of its random draws.
        chunk: Rows per pass that were used, or None where nothing was chunked.
        evaluations: How often this check was evaluated in its test.
        reproduce: The command that runs the check again, or the settings to do so.
    """

    nodeid: str
    name: str
    assertion: str
    metric: str
    value: float | None
    relation: Relation
    threshold: float
    verdict: Verdict
    failed: bool
    n: int
    undefined: int
    counts: dict[str, int]
    interval: tuple[float, float] | None
    confidence: float | None
    claim: Literal["sample", "population"]
    gate: Verdict | None = None
    reason: str = ""
    samples_needed: int | None = None
    subject: str = ""
    method: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    strict: bool = False
    classifier: str = ""
    data: str = ""
    passes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    worst: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    baseline: dict[str, Any] | None = None
    compared: dict[str, Any] | None = None
    per_sample: dict[str, Any] | None = None
    device: str = "cpu"
    seed: int = 0
    chunk: int | None = None
    evaluations: int = 1
    reproduce: str = ""

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _plain(getattr(self, each.name), each.name))
        object.__setattr__(self, "verdict", Verdict(self.verdict))
        object.__setattr__(self, "gate", Verdict(self.gate or self.verdict))
        if self.interval is not None:
            low, high = self.interval
            object.__setattr__(self, "interval", (low, high))

    @property
    def doubted(self) -> bool:
        """Whether the check fails by a warning, whatever the number is."""
        return self.strict and bool(self.warnings)

    @property
    def margin(self) -> float | None:
        """How far the value is on the right side of its threshold; negative when on the wrong."""
        if self.value is None:
            return None
        sign = 1.0 if self.relation == ">=" else -1.0
        return sign * (self.value - self.threshold)

    def worse(self, other: Record) -> Record:
        """Return the worse of two evaluations of one check, with both counted."""
        worst = other if other.is_worse_than(self) else self
        return replace(worst, evaluations=self.evaluations + other.evaluations)

    def is_worse_than(self, other: Record) -> bool:
        """Return whether this is the worse evaluation: first by outcome, then by margin."""
        return self._badness() > other._badness()

    def _badness(self) -> tuple[bool, int, float]:
        margin = self.margin
        return self.failed, _SEVERITY[self.verdict], math.inf if margin is None else -margin

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dict of plain values, in field order."""
        return asdict(self) | {
            "verdict": self.verdict.value,
            "gate": str(self.gate),
            "interval": None if self.interval is None else list(self.interval),
        }

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Rebuild a record from `to_dict`."""
        return cls(**values)


def _plain(value: Any, where: str) -> Any:
    """Return `value` unchanged if it is made of plain Python values, else raise `TypeError`."""
    if value is None or type(value) in (bool, int, str) or isinstance(value, Verdict):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"record field {where!r} holds {value}, which JSON cannot carry")
        return value
    if type(value) in (list, tuple):
        return [_plain(each, where) for each in value]
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"record field {where!r} has the key {key!r}; keys must be str")
        return {key: _plain(each, f"{where}.{key}") for key, each in value.items()}
    raise TypeError(
        f"record field {where!r} holds a {type(value).__module__}.{type(value).__qualname__}; "
        "only None, bool, int, float, str, list and dict travel"
    )
