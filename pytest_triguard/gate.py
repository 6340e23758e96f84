"""The gate: a number, a relation and a threshold become a verdict, with an interval.

A sample claim is about the samples given. A population claim is about what they were drawn from:
the whole interval has to be on one side of the threshold. Everything here is pure.
"""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.record import Relation, Verdict
from pytest_triguard.statistics import (
    FEWEST_FOR_MEAN,
    Interval,
    Statistic,
    Values,
    clopper_pearson,
    mean_interval,
    parse_statistic,
    quantile_interval,
    samples_for_quantile,
    samples_to_decide_mean,
    samples_to_decide_rate,
    statistic_value,
)

SHOWN_CONFIDENCE = 0.95
"""Confidence of the interval that a sample claim shows and does not judge by."""

_HOLDS: dict[Relation, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
}
_PREDICATES: dict[tuple[Relation, Verdict], str] = {
    (">=", Verdict.PASSED): "reaches the threshold",
    (">=", Verdict.FAILED): "is below the threshold",
    ("<=", Verdict.PASSED): "does not exceed the threshold",
    ("<=", Verdict.FAILED): "exceeds the threshold",
    ("<", Verdict.PASSED): "is below the threshold",
    ("<", Verdict.FAILED): "is not below the threshold",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a gate decided, and why.

    Attributes:
        verdict: Passed, failed or inconclusive.
        value: The number held against the threshold, or None where no sample is defined.
        interval: Two ends of the interval, or None where there is none.
        confidence: Two-sided confidence of the interval.
        claim: Whether the given samples or the population they came from is judged.
        n: Number of defined samples.
        undefined: Number of undefined samples.
        reason: Why, as a sentence without its full stop.
        samples_needed: How many samples would decide an inconclusive check if what was observed
            stayed the same, or None where more samples alone would not decide it.
    """

    verdict: Verdict
    value: float | None
    interval: Interval | None
    confidence: float
    claim: Literal["sample", "population"]
    n: int
    undefined: int
    reason: str
    samples_needed: int | None = None


def gate_rate(
    *,
    successes: int,
    failures: int,
    n: int,
    relation: Relation,
    threshold: float,
    confidence: float | None,
    undefined: int = 0,
    undefined_at_most: float = 0.05,
) -> Decision:
    """Hold a proportion against its threshold.

    Samples that are neither successes nor failures are unknown: the rate lies between
    `successes / n` and `(n - failures) / n`, and both ends have to agree on the verdict. Under a
    population claim, the low Clopper-Pearson end of the first and the high end of the second do.

    Args:
        successes: Number of samples known to have the property.
        failures: Number of samples known not to have it.
        n: Number of defined samples.
        relation: How `successes / n` is held against the threshold.
        threshold: Threshold in [0, 1].
        confidence: Two-sided confidence in (0, 1), or None or False for a sample claim.
        undefined: Number of undefined samples, not among the n.
        undefined_at_most: Largest share of undefined samples that leaves a verdict, in [0, 1].

    Raises:
        InputError: An argument is out of its range.
        InputTypeError: The threshold, the confidence or the share is not a number.
    """
    _check_counts(successes, failures, n, undefined)
    threshold = check_threshold(threshold, low=0.0, high=1.0, name="threshold")
    question = _Question.checked(relation, threshold, confidence, undefined_at_most)
    base = question.undecided(n, undefined)
    return base if n == 0 else _decide_rate(question, base, successes, failures)


def gate_statistic(
    *,
    values: Values,
    statistic: str,
    relation: Relation,
    threshold: float,
    confidence: float | None,
    undefined: int,
    undefined_at_most: float,
    seed: int,
) -> Decision:
    """Hold a statistic of per-sample values against its threshold.

    A population claim about a mean is judged by the BCa bootstrap interval and takes 20 values
    that are not all equal; one about a quantile is judged by order statistics.

    Args:
        values: `(n,)` float64, finite: the defined samples only.
        statistic: `mean`, `median`, `max`, `min`, or a percentile such as `p95`.
        relation: How the statistic is held against the threshold.
        threshold: Threshold, finite.
        confidence: Two-sided confidence in (0, 1), or None or False for a sample claim.
        undefined: Number of undefined samples, not among the values.
        undefined_at_most: Largest share of undefined samples that leaves a verdict, in [0, 1].
        seed: Seed of the bootstrap.

    Raises:
        InputError: The statistic is not known, a population claim is made about a maximum or a
            minimum, or another argument is out of its range.
        InputTypeError: The threshold, the confidence or the share is not a number.
    """
    threshold = check_threshold(threshold, low=-math.inf, high=math.inf, name="threshold")
    question = _Question.checked(relation, threshold, confidence, undefined_at_most)
    asked = check_statistic(statistic, question.confidence)
    base = question.undecided(int(values.size), undefined)
    return base if base.n == 0 else _decide_statistic(question, base, values, asked, seed)


def check_threshold(
    threshold: Any, *, low: float, high: float, name: str, relation: Relation | None = None
) -> float:
    """Return a threshold as a float if it is a number that the metric can reach.

    Args:
        threshold: What the user gave.
        low: Smallest value of the metric, maybe minus infinity.
        high: Largest value of the metric, maybe infinity.
        name: Name of the argument, for the message.
        relation: With `<`, a threshold equal to `low` is refused too: nothing lies below it.

    Raises:
        InputError: The threshold is NaN, infinite, or out of the metric's reach.
        InputTypeError: The threshold is not a number; where it can be given by position, a tensor
            mostly means that labels were.
    """
    ends = [f"{'above' if relation == '<' else 'at least'} {low:g}", f"at most {high:g}"]
    finite = [end for end, at in zip(ends, (low, high), strict=True) if math.isfinite(at)]
    expected = f"{name} must be a finite number{', ' if finite else ''}{' and '.join(finite)}"
    if not _is_number(threshold):
        hint = "; labels are keyword-only: give them as labels=" if name == "threshold" else ""
        raise InputTypeError(f"{expected}, got {_describe(threshold)}{hint}")
    value = float(threshold)
    unreachable = value == low and relation == "<"
    if not math.isfinite(value) or not low <= value <= high or unreachable:
        raise InputError(f"{expected}, got {value}")
    return value


def check_fraction(name: str, value: Any) -> float:
    """Return a share as a float if it is a number in [0, 1].

    Args:
        name: Name of the argument, for the message.
        value: What the user gave.

    Raises:
        InputError: The number is out of range.
        InputTypeError: It is not a number.
    """
    if not _is_number(value):
        raise InputTypeError(f"{name} must be a number from 0 to 1, got {_describe(value)}")
    if not 0.0 <= float(value) <= 1.0:
        raise InputError(f"{name} must be a number from 0 to 1, got {float(value)}")
    return float(value)


def check_confidence(confidence: Any) -> float | None:
    """Return the confidence of a population claim, or None for a sample claim.

    Args:
        confidence: A number in (0, 1), or False or None for a sample claim.

    Raises:
        InputError: It is True, which names no level, or a number out of range.
        InputTypeError: It is not a number.
    """
    expected = "confidence must be a number between 0 and 1, or False for a sample claim"
    if confidence is None or confidence is False:
        return None
    if confidence is True:
        raise InputError(f"{expected}, got True, which names no level: 0.95 is a usual one")
    if not _is_number(confidence):
        raise InputTypeError(f"{expected}, got {_describe(confidence)}")
    level = float(confidence)
    if not 0.0 < level < 1.0:
        hint = f"; did you mean {level / 100:g}?" if 1.0 < level < 100.0 else ""
        raise InputError(f"{expected}, got {level}{hint}")
    return level


def check_statistic(statistic: str, confidence: float | None) -> Statistic:
    """Return the statistic of a name if there is an interval for the claim about it.

    Args:
        statistic: `mean`, `median`, `max`, `min`, or a percentile such as `p95`.
        confidence: Confidence of a population claim, or None for a sample claim.

    Raises:
        InputError: The name is not known, or a population claim is made about a maximum or a
            minimum.
        InputTypeError: The name is not a string.
    """
    asked = parse_statistic(statistic)
    if confidence is not None and asked.kind in ("max", "min"):
        raise InputError(
            f"statistic {asked.name!r} allows no population claim, for no interval bounds what was "
            "not sampled: use confidence=False, or a percentile such as 'p99'"
        )
    return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What a gate is asked, checked; without a confidence the claim is about the samples."""

    relation: Relation
    threshold: float
    confidence: float | None
    undefined_at_most: float

    @classmethod
    def checked(
        cls, relation: Relation, threshold: float, confidence: Any, undefined_at_most: Any
    ) -> _Question:
        return cls(
            relation=relation,
            threshold=threshold,
            confidence=check_confidence(confidence),
            undefined_at_most=check_fraction("undefined_at_most", undefined_at_most),
        )

    def undecided(self, n: int, undefined: int) -> Decision:
        """Return the decision before a value is known; it stands where no sample is defined."""
        return Decision(
            verdict=Verdict.INCONCLUSIVE,
            value=None,
            interval=None,
            confidence=SHOWN_CONFIDENCE if self.confidence is None else self.confidence,
            claim="sample" if self.confidence is None else "population",
            n=n,
            undefined=undefined,
            reason=_empty_reason(undefined),
        )

    def judge(self, possible: Interval) -> Verdict:
        """Judge a range of possible values: both ends have to hold, or neither."""
        holds = [_HOLDS[self.relation](end, self.threshold) for end in possible]
        if all(holds):
            return Verdict.PASSED
        return Verdict.INCONCLUSIVE if any(holds) else Verdict.FAILED


def _decide_rate(question: _Question, base: Decision, successes: int, failures: int) -> Decision:
    n, unknown = base.n, base.n - successes - failures
    known = (successes / n, (n - failures) / n)
    low = clopper_pearson(successes, n, base.confidence)[0]
    high = clopper_pearson(n - failures, n, base.confidence)[1]
    base = replace(base, value=known[0], interval=(low, high))
    if _too_many_undefined(question, base):
        return replace(base, reason=_undefined_reason(question, base))
    verdict = question.judge(known if base.claim == "sample" else (low, high))
    if verdict is not Verdict.INCONCLUSIVE:
        reason = _decided_reason(question, base, verdict, unknown)
        return replace(base, verdict=verdict, reason=reason)
    if base.claim == "sample":
        return replace(base, reason=_unknown_reason(n, unknown))
    return replace(
        base,
        reason=_straddle_reason(question, base, unknown),
        samples_needed=_samples_for_rate(question, base, known),
    )


def _decide_statistic(
    question: _Question, base: Decision, values: Values, asked: Statistic, seed: int
) -> Decision:
    value = statistic_value(values, asked.name)
    interval = _statistic_interval(values, asked, base.confidence, seed)
    base = replace(base, value=value, interval=interval)
    if _too_many_undefined(question, base):
        return replace(base, reason=_undefined_reason(question, base))
    judged = (value, value) if base.claim == "sample" else interval
    verdict = Verdict.INCONCLUSIVE if judged is None else question.judge(judged)
    if verdict is not Verdict.INCONCLUSIVE:
        reason = _decided_reason(question, base, verdict)
        return replace(base, verdict=verdict, reason=reason)
    lacking = interval is None
    return replace(
        base,
        reason=_lacking_reason(base, asked) if lacking else _straddle_reason(question, base),
        samples_needed=_samples_for_statistic(question, base, values, asked),
    )


def _statistic_interval(
    values: Values, asked: Statistic, confidence: float, seed: int
) -> Interval | None:
    if asked.q is not None:
        return quantile_interval(values, asked.q, confidence)
    return mean_interval(values, confidence, seed=seed) if asked.kind == "mean" else None


def _samples_for_rate(question: _Question, base: Decision, known: Interval) -> int | None:
    """Return how many samples would decide, or None where the unknown ones have to."""
    low, high = known
    if low <= question.threshold <= high:
        return None
    nearer = low if question.threshold < low else high
    return samples_to_decide_rate(nearer, question.threshold, base.confidence)


def _samples_for_statistic(
    question: _Question, base: Decision, values: Values, asked: Statistic
) -> int | None:
    """Return how many samples would decide, always more than there are."""
    threshold, fewest = question.threshold, base.n + 1
    if asked.q is None:
        needed = samples_to_decide_mean(values, threshold, base.confidence)
    else:
        below = values <= threshold if question.relation == "<=" else values < threshold
        needed = samples_to_decide_rate(float(below.mean()), asked.q, base.confidence)
        fewest = max(fewest, samples_for_quantile(asked.q, base.confidence))
    return None if needed is None else max(needed, fewest)


def _too_many_undefined(question: _Question, base: Decision) -> bool:
    return base.undefined / (base.n + base.undefined) > question.undefined_at_most


def _empty_reason(undefined: int) -> str:
    return f"none of {_samples(undefined)} is defined" if undefined else "there are no samples"


def _undefined_reason(question: _Question, base: Decision) -> str:
    counted = f"{base.undefined} of {_samples(base.n + base.undefined)}"
    at_most = _percent(question.undefined_at_most)
    return f"{counted} {_are(base.undefined)} undefined, more than {at_most}"


def _unknown_reason(n: int, unknown: int) -> str:
    return f"{unknown} of {_samples(n)} {_are(unknown)} unknown"


def _decided_reason(question: _Question, base: Decision, verdict: Verdict, unknown: int = 0) -> str:
    """Return why a check passed or failed, and that unknown samples made no difference."""
    predicate = _PREDICATES[question.relation, verdict]
    if base.claim == "population":
        return f"the whole {_percent(base.confidence)} interval {predicate}"
    by_high_end = (verdict is Verdict.PASSED) != (question.relation == ">=")
    if unknown and by_high_end:
        predicate += f", even with {_samples(unknown, 'unknown ')} counted in"
    return f"the value {predicate}"


def _straddle_reason(question: _Question, base: Decision, unknown: int = 0) -> str:
    equal = ", which the value equals" if base.value == question.threshold else ""
    left = f", and {_unknown_reason(base.n, unknown)}" if unknown else ""
    return f"the {_percent(base.confidence)} interval straddles the threshold{equal}{left}"


def _lacking_reason(base: Decision, asked: Statistic) -> str:
    """Return why there is no interval."""
    fewest = FEWEST_FOR_MEAN if asked.q is None else samples_for_quantile(asked.q, base.confidence)
    if base.n >= fewest:
        return f"all {base.n} values are equal, which gives no interval of the mean"
    interval = f"{_percent(base.confidence)} interval of the {asked.name}"
    return f"{_samples(base.n)} {_are(base.n)} too few for a {interval}, which takes {fewest}"


def _check_counts(successes: int, failures: int, n: int, undefined: int) -> None:
    if min(successes, failures, undefined) < 0 or successes + failures > n:
        raise InputError(
            "successes, failures and undefined must be 0 or more, the first two at most n together,"
            f" got {successes}, {failures} and {undefined} with n = {n}"
        )


def _is_number(value: Any) -> bool:
    """Tell whether a value is a plain or numpy real number; truth values and tensors are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _describe(value: Any) -> str:
    """Return a few words on a value that should have been a number."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _samples(count: int, kind: str = "") -> str:
    return f"{count} {kind}sample{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
