"""The assertions that model repositories write in their tests.

Each measures, holds the number against a threshold, keeps a record for the reports, and raises
`TriGuardFailure` when the check does not pass. They work outside pytest too. Everything after the
data is keyword-only but a threshold and a trigger; the options they share are in `CheckOptions`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar, Unpack

from torch import Tensor

from pytest_triguard import attacks, attributions, metrics
from pytest_triguard.attacks import Attack
from pytest_triguard.attributions import Attribution
from pytest_triguard.backdoors import Trigger
from pytest_triguard.checks.attacked import measure_attack_success, measure_robustness
from pytest_triguard.checks.callsite import points_at_caller
from pytest_triguard.checks.check import Check, CheckOptions
from pytest_triguard.checks.clean import measure_accuracy
from pytest_triguard.checks.explained import measure_drift, measure_entropy, parse_between
from pytest_triguard.checks.triggered import measure_trigger_recall, measure_trigger_success
from pytest_triguard.checks.verified import measure_verified
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.gate import check_threshold
from pytest_triguard.measurement import Measurement
from pytest_triguard.running import Run
from pytest_triguard.validation import describe, whole
from pytest_triguard.verification import Budget

__all__ = [
    "assert_accuracy",
    "assert_attack_success_below",
    "assert_drift_below",
    "assert_entropy_below",
    "assert_robust",
    "assert_trigger_recall",
    "assert_verified",
]

Seeded = TypeVar("Seeded", Attack, Attribution)


@points_at_caller
def assert_accuracy(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    at_least: float,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that enough samples are classified as their label.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        at_least: Smallest accuracy that passes, in [0, 1].
        **options: See `CheckOptions`.

    Returns:
        The measurement; values are 1 where the prediction is the label, else 0.

    Raises:
        TriGuardFailure: If the accuracy is below the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_accuracy, options)
    threshold = check_threshold(at_least, low=0, high=1, name="at_least")
    with check.running(classifier, inputs, labels, needs_labels=True) as run:
        return check.rate(measure_accuracy(run), ">=", threshold)


@points_at_caller
def assert_robust(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    eps: float | Tensor,
    at_least: float,
    norm: str = "linf",
    attack: str | Attack = "pgd",
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that enough samples withstand an attack.

    That an attack finds nothing is no proof: the report says "not falsified by" its name.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        eps: Radius of the ball in input units, one for all samples or `(N,)`.
        at_least: Smallest share of samples that are classified correctly and stay so, in [0, 1].
        norm: `"linf"` or `"l2"`.
        attack: Name of an attack, or the attack itself, whose eps and norm must then agree.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values are 1 where a sample stands, else 0.

    Raises:
        TriGuardFailure: If the robust accuracy is below the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_robust, options)
    threshold = check_threshold(at_least, low=0, high=1, name="at_least")
    method = _attack(attack, check.seed, eps=eps, norm=norm)
    with check.running(classifier, inputs, labels, needs_labels=True) as run:
        return check.rate(measure_robustness(run, method), ">=", threshold)


@points_at_caller
def assert_verified(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    eps: float | Tensor,
    at_least: float,
    norm: str = "linf",
    method: str = "auto",
    budget: float | Budget | None = None,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that enough samples are proven to keep their label in a ball around them.

    Args:
        classifier: The `Classifier` under test; its exact module is verified.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        eps: Radius of the ball in input units, one for all samples or `(N,)`; the ball is clipped
            to the bounds.
        at_least: Smallest share of proven samples, in [0, 1].
        norm: `"linf"`, `"l2"` or `"l1"`.
        method: A verification method; `"auto"` tries the cheap ones first.
        budget: Seconds per sample, a `verification.Budget`, or None for the session's.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values are 1 where a sample is proven, 0 where it is falsified, NaN where
        it is unknown or unsupported.

    Raises:
        TriGuardFailure: If too many samples are falsified, or too many are left open.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_verified, options)
    threshold = check_threshold(at_least, low=0, high=1, name="at_least")
    given = check.settings.budget if budget is None else budget
    with check.running(classifier, inputs, labels, needs_labels=True) as run:
        finding = measure_verified(
            run, eps=eps, norm=norm, method=method, budget=given, seed=check.seed
        )
        return check.rate(finding, ">=", threshold)


@points_at_caller
def assert_entropy_below(
    classifier: Any,
    inputs: Any,
    threshold: float,
    *,
    labels: Any = None,
    attribution: str | Attribution = "integrated_gradients",
    form: str = "normalized",
    statistic: str = "mean",
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that explanations are concentrated: that the entropy of their maps is low.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        threshold: The statistic must be smaller.
        labels: `(N,)` int64 classes to explain; None for the loader's, else the predictions.
        attribution: Name of an attribution, or the attribution itself.
        form: `"normalized"`, over pixels, in [0, 1], or `"raw"`, over elements, in nats.
        statistic: `"mean"`, `"median"`, `"max"`, or a percentile such as `"p95"`.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values are entropies, NaN where the map is zero.

    Raises:
        TriGuardFailure: If the statistic is not below the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_entropy_below, options)
    check_threshold(threshold, low=-math.inf, high=math.inf, name="threshold")
    metric, statistic = metrics.get("entropy", form=form), check.check_statistic(statistic)
    method = _attribution(attribution, check.seed)
    with check.running(classifier, inputs, labels) as run:
        threshold = _reachable(threshold, run, metric)
        return check.statistic(measure_entropy(run, method, metric), "<", threshold, statistic)


@points_at_caller
def assert_drift_below(
    classifier: Any,
    inputs: Any,
    threshold: float,
    *,
    labels: Any = None,
    between: Any = ("zero", "blur"),
    form: str = "allocation",
    attribution: str | Attribution = "integrated_gradients",
    statistic: str = "mean",
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that explanations hardly depend on what they should not depend on.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        threshold: The statistic must be smaller.
        labels: `(N,)` int64 classes to explain; None for the loader's, else the predictions.
        between: Two baselines, each `"zero"`, `"blur"`, `"noise"`, `"uniform"`, `"midpoint"` or a
            tensor; or `("clean", attack)` for the drift from the sample to its adversarial
            example, with the explained class held fixed.
        form: `"allocation"` (scale-free, 0 to 2), `"l2"`, or `"completeness_orthogonal"`.
        attribution: Name of an attribution, or the attribution itself; one without a baseline
            takes only `("clean", attack)`.
        statistic: `"mean"`, `"median"`, `"max"`, or a percentile such as `"p95"`.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values are drifts, NaN where a map is zero and the form needs its mass.

    Raises:
        TriGuardFailure: If the statistic is not below the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_drift_below, options)
    check_threshold(threshold, low=-math.inf, high=math.inf, name="threshold")
    metric, statistic = metrics.get("drift", form=form), check.check_statistic(statistic)
    method = _attribution(attribution, check.seed)
    compared = parse_between(between, method, check.seed)
    with check.running(classifier, inputs, labels) as run:
        threshold = _reachable(threshold, run, metric)
        finding = measure_drift(run, method, metric, compared)
        return check.statistic(finding, "<", threshold, statistic)


@points_at_caller
def assert_trigger_recall(
    classifier: Any,
    inputs: Any,
    trigger: Trigger,
    *,
    at_least: float,
    attribution: str | Attribution = "smoothgrad",
    target: int | None = None,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that explanations of a trojaned classifier find its trigger.

    Counted are samples whose clean prediction is not the target; those on which the trigger does
    not fire are undefined.

    Args:
        classifier: The trojaned `Classifier`.
        inputs: `(N, C, H, W)` clean samples, or a Dataset or DataLoader of them.
        trigger: The trigger that was planted; it tells which pixels it changes.
        at_least: Smallest mean recall that passes, in [0, 1].
        attribution: Name of an attribution, or the attribution itself.
        target: Class the trigger forces; None for the trigger's own.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values are recalls, NaN where a sample does not count or is undefined.

    Raises:
        TriGuardFailure: If the mean recall is below the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_trigger_recall, options)
    threshold = check_threshold(at_least, low=0, high=1, name="at_least")
    method = _attribution(attribution, check.seed)
    forced = _forced_class(trigger, target)
    with check.running(classifier, inputs) as run:
        _known_class(forced, run)
        finding = measure_trigger_recall(run, trigger, method, forced)
        return check.statistic(finding, ">=", threshold, "mean")


@points_at_caller
def assert_attack_success_below(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    threshold: float,
    trigger: Trigger | None = None,
    target: int | None = None,
    attack: str | Attack | None = None,
    eps: float | Tensor | None = None,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that a backdoor trigger, or an attack, seldom reaches its goal.

    Untargeted, the rate divides by the samples classified correctly before the attack; for a
    trigger or a target, by the samples whose label is not the target.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        threshold: The rate must be smaller, in (0, 1].
        trigger: A backdoor trigger; give either this or `attack`.
        target: Class to reach; None for the trigger's own, or for any class but the label.
        attack: Name of an attack, or the attack itself.
        eps: Radius for a named attack, in input units; an attack object brings its own.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values are 1 where the goal is reached, 0 where not, NaN where a sample
        does not count.

    Raises:
        TriGuardFailure: If the rate is not below the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_attack_success_below, options)
    threshold = check_threshold(threshold, low=0, high=1, name="threshold", relation="<")
    if (trigger is None) == (attack is None):
        came = "neither" if trigger is None else "both"
        raise InputError(f"either trigger or attack must be given, but {came} came")
    if trigger is not None:
        if eps is not None:
            raise InputError(f"eps must go with an attack, but {describe(eps)} came with a trigger")
        forced = _forced_class(trigger, target)
        with check.running(classifier, inputs, labels, needs_labels=True) as run:
            _known_class(forced, run)
            return check.rate(measure_trigger_success(run, trigger, forced), "<", threshold)
    method = _attack(attack, check.seed, eps=eps)
    goal = None if target is None else whole("target", target)
    with check.running(classifier, inputs, labels, needs_labels=True) as run:
        if goal is not None:
            _known_class(goal, run)
        return check.rate(measure_attack_success(run, method, goal), "<", threshold)


def _attack(attack: Any, seed: int, *, eps: Any, norm: str | None = None) -> Attack:
    """Return the attack an assertion asks for, by name or as it is.

    Raises:
        InputTypeError: If it is neither a name nor an attack.
        InputError: If an attack object disagrees with the eps or norm given beside it.
    """
    if isinstance(attack, str):
        if eps is None:
            raise InputError(f"eps must be given for the attack {attack!r}, but none came")
        given = {} if norm is None else {"norm": norm}
        return attacks.get(attack, eps=eps, seed=seed, **given)
    if not isinstance(attack, Attack):
        raise InputTypeError(
            f"attack must be a name or an attack, but {describe(attack)} came; "
            "attacks.get(name, ...) makes one"
        )
    if eps is not None and not _same(attack.eps, eps):
        raise InputError(
            f"eps must agree with the attack's own, {describe(attack.eps)}, but "
            f"{describe(eps)} came"
        )
    if norm is not None and attack.norm != norm:
        raise InputError(
            f"norm must agree with the attack's own, but {norm!r} came; give norm={attack.norm!r}"
        )
    return _seeded(attack, seed)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _attribution(attribution: Any, seed: int) -> Attribution:
    if isinstance(attribution, str):
        return attributions.get(attribution, seed=seed)
    if not isinstance(attribution, Attribution):
        raise InputTypeError(
            f"attribution must be a name or an attribution, but {describe(attribution)} came; "
            "attributions.get(name, ...) makes one"
        )
    return _seeded(attribution, seed)


def _seeded(method: Seeded, seed: int) -> Seeded:
    """Give a method the seed of the check, unless it brings its own."""
    return method if method.seed is not None else replace(method, seed=seed)


def _forced_class(trigger: Any, target: int | None) -> int:
    if not isinstance(trigger, Trigger):
        raise InputTypeError(
            f"trigger must be a backdoor trigger, but {describe(trigger)} came; "
            "backdoors.get(name, ...) makes one"
        )
    return trigger.target if target is None else whole("target", target)


def _known_class(target: int, run: Run) -> None:
    classes = run.model.num_classes or 0
    if target >= classes:
        raise InputError(f"target must be a class from 0 to {classes - 1}, but {target} came")


def _reachable(threshold: float, run: Run, metric: metrics.Metric) -> float:
    low, high = metric.reach(tuple(run.like.shape[1:]))
    return check_threshold(threshold, low=low, high=high, name="threshold", relation="<")
