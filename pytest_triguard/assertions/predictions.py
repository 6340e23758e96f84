"""Assertions about predictions: right, robust, proven, and hard to steer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from torch import Tensor

from pytest_triguard.assertions.arguments import chosen_attack, forced_class, known_class
from pytest_triguard.attacks import Attack
from pytest_triguard.backdoors import Trigger
from pytest_triguard.checks.attacked import measure_attack_success, measure_robustness
from pytest_triguard.checks.callsite import points_at_caller
from pytest_triguard.checks.check import Check, CheckOptions
from pytest_triguard.checks.clean import measure_accuracy
from pytest_triguard.checks.transferred import measure_transfer, parse_source
from pytest_triguard.checks.triggered import measure_trigger_success
from pytest_triguard.checks.verified import measure_verified
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError
from pytest_triguard.gate import check_threshold
from pytest_triguard.measurement import Measurement
from pytest_triguard.validation import describe, flag, whole
from pytest_triguard.verification import Budget


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
    strict: bool = False,
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
        strict: Whether a warning about the evaluation fails the check, such as zero gradients.
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
    method = chosen_attack(attack, check.seed, eps=eps, norm=norm)
    draws = method.averages
    with check.running(classifier, inputs, labels, needs_labels=True, may_draw=draws) as run:
        found = measure_robustness(run, method)
        return check.rate(found, ">=", threshold, strict=flag("strict", strict))


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

    In a test, the certificates of what is proven are saved beside the counterexamples, in one file
    that `verification.recheck_file` proves again.

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
            run,
            eps=eps,
            norm=norm,
            method=method,
            budget=given,
            seed=check.seed,
            certified=classifier if check.saves else None,
        )
        return check.rate(finding, ">=", threshold)


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
    strict: bool = False,
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
        strict: Whether a warning about the attack fails the check, such as zero gradients.
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
        forced = forced_class(trigger, target)
        with check.running(classifier, inputs, labels, needs_labels=True) as run:
            known_class(forced, run)
            return check.rate(measure_trigger_success(run, trigger, forced), "<", threshold)
    method = chosen_attack(attack, check.seed, eps=eps)
    goal = None if target is None else whole("target", target)
    draws = method.averages
    with check.running(classifier, inputs, labels, needs_labels=True, may_draw=draws) as run:
        if goal is not None:
            known_class(goal, run)
        found = measure_attack_success(run, method, goal)
        return check.rate(found, "<", threshold, strict=flag("strict", strict))


@points_at_caller
def assert_transfer_below(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    threshold: float,
    source: Classifier | Sequence[Classifier],
    attack: str | Attack,
    eps: float | Tensor | None = None,
    target: int | None = None,
    strict: bool = False,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that examples crafted on other classifiers seldom fool this one.

    Untargeted, the rate divides by the samples that this classifier gets right before the attack;
    with a target, by the samples whose label is not the target. Of several sources, one that
    leads to the goal is enough: the next gets only the samples that those before it left standing.

    An attack with `stop="success"`, such as `pgd`, leaves a sample as soon as its source is
    fooled, where going on may carry over better. Those from `mim` on are made for this.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        threshold: The rate must be smaller, in (0, 1].
        source: The classifier that examples are crafted on, or several; each with the bounds,
            dtype and number of classes of the one under test. Records name it by its fingerprint.
        attack: Name of an attack, or the attack itself.
        eps: Radius for a named attack, in input units; an attack object brings its own.
        target: Class to reach; None for any class but the label.
        strict: Whether a warning about the attack on a source fails the check, such as zero
            gradients.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values are 1 where the classifier is fooled, 0 where not, NaN where a
        sample does not count. Its passes include those on the sources.

    Raises:
        TriGuardFailure: If the rate is not below the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_transfer_below, options)
    threshold = check_threshold(threshold, low=0, high=1, name="threshold", relation="<")
    sources, method = parse_source(source), chosen_attack(attack, check.seed, eps=eps)
    goal = None if target is None else whole("target", target)
    with check.running(classifier, inputs, labels, needs_labels=True) as run:
        if goal is not None:
            known_class(goal, run)
        found = measure_transfer(run, sources, method, goal)
        return check.rate(found, "<", threshold, strict=flag("strict", strict))
