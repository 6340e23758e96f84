"""Assertions about explanations: concentrated, steady, and right where the truth is known."""

from __future__ import annotations

import math
from typing import Any, Unpack

from torch import Tensor

from pytest_triguard import metrics
from pytest_triguard.assertions.arguments import (
    chosen_attribution,
    forced_class,
    known_class,
    reachable,
)
from pytest_triguard.attribution_attacks import AttributionAttack
from pytest_triguard.attribution_attacks.evaluation import as_measure
from pytest_triguard.attributions import Attribution
from pytest_triguard.backdoors import Trigger
from pytest_triguard.checks.alike import (
    check_methods,
    measure_against,
    measure_agreement,
    parse_twin,
)
from pytest_triguard.checks.callsite import points_at_caller
from pytest_triguard.checks.check import Check, CheckOptions
from pytest_triguard.checks.deceived import measure_explanations, parse_attack, parse_gate
from pytest_triguard.checks.drifted import measure_drift, parse_between
from pytest_triguard.checks.explained import measure_entropy
from pytest_triguard.checks.faithful import measure_faithfulness
from pytest_triguard.checks.triggered import measure_trigger_recall
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError
from pytest_triguard.gate import check_threshold
from pytest_triguard.measurement import Measurement
from pytest_triguard.metrics import PairMetric
from pytest_triguard.metrics.deletion import Deletion
from pytest_triguard.metrics.insertion import Insertion
from pytest_triguard.metrics.removal_curve import RemovalCurve
from pytest_triguard.record import Relation


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
    method = chosen_attribution(attribution, check.seed)
    with check.running(classifier, inputs, labels) as run:
        threshold = reachable(threshold, run, metric)
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
            tensor; more than two for the largest drift among all pairs of them; or
            `("clean", attack)` for the drift from the sample to its adversarial example, with the
            explained class held fixed.
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
    method = chosen_attribution(attribution, check.seed)
    compared = parse_between(between, method, check.seed)
    with check.running(classifier, inputs, labels) as run:
        threshold = reachable(threshold, run, metric)
        finding = measure_drift(run, method, metric, compared)
        return check.statistic(finding, "<", threshold, statistic)


@points_at_caller
def assert_explanation_robust(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    attack: str | AttributionAttack,
    attribution: str | Attribution,
    eps: float | Tensor | None,
    metric: str | PairMetric,
    at_least: float | None = None,
    at_most: float | None = None,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that an attack hardly changes explanations while the prediction stays.

    That an attack finds little is no proof: the report says what was tried. Samples whose every
    iterate changed the prediction say nothing about the explanation and are undefined.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64 classes to explain; None for the loader's, else the predictions.
        attack: Name of an attack on explanations, or the attack itself, whose eps must agree. One
            that names its own attribution is made for that one, and its transfer is judged.
        attribution: Name of an attribution, or the attribution itself.
        eps: Radius of the ball in input units, one for all samples or `(N,)`; None for no bound
            but the valid range.
        metric: Metric of two maps, or its name.
        at_least: Smallest mean that passes; for similarities.
        at_most: Largest mean that passes; for distances.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values compare the map of each sample with that of its attacked twin.

    Raises:
        TriGuardFailure: If the mean is on the wrong side of the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_explanation_robust, options)
    judged, method = as_measure(metric), chosen_attribution(attribution, check.seed)
    relation, threshold = parse_gate(judged, at_least, at_most)
    used = parse_attack(attack, method, judged, eps=eps, seed=check.seed)
    with check.running(classifier, inputs, labels) as run:
        threshold = reachable(
            threshold,
            run,
            judged,
            name="at_least" if relation == ">=" else "at_most",
            relation=relation,
        )
        finding = measure_explanations(run, used, method, judged)
        return check.statistic(finding, relation, threshold, "mean")


@points_at_caller
def assert_faithful(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    attribution: str | Attribution,
    insertion_at_least: float | None = None,
    deletion_at_most: float | None = None,
    output: str = "probability",
    baseline: str | Tensor = "zero",
    absolute: bool = True,
    steps: int = 100,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that explanations name the pixels that the prediction rests on.

    Give one threshold or both; with both, each is a check of its own, and the maps are made once.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64 classes to explain; None for the loader's, else the predictions.
        attribution: Name of an attribution, or the attribution itself.
        insertion_at_least: Smallest mean area under the insertion curve that passes.
        deletion_at_most: Largest mean area under the deletion curve that passes.
        output: `"probability"`, of which areas lie in [0, 1], `"logit"`, `"log_probability"` or
            `"contrast"`.
        baseline: What pixels are exchanged for: `"zero"`, `"blur"`, `"noise"`, `"uniform"`,
            `"midpoint"`, `"road"` (imputed from their neighbours) or a tensor.
        absolute: Whether pixels are ordered by absolute attribution or by signed.
        steps: Steps at which the output is read.
        **options: See `CheckOptions`.

    Returns:
        The measurement of the insertion, or of the deletion where only that is asked for; values
        are areas, NaN where the map is zero.

    Raises:
        TriGuardFailure: If a mean is on the wrong side of its threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_faithful, options)
    if insertion_at_least is None and deletion_at_most is None:
        raise InputError("insertion_at_least or deletion_at_most must be given, but neither came")
    method = chosen_attribution(attribution, check.seed)
    shared: dict[str, Any] = {
        "output": output,
        "baseline": baseline,
        "absolute": absolute,
        "steps": steps,
        "seed": check.seed,
    }
    asked: list[tuple[RemovalCurve, str, float, Relation]] = []
    if insertion_at_least is not None:
        asked.append((Insertion(**shared), "insertion_at_least", insertion_at_least, ">="))
    if deletion_at_most is not None:
        asked.append((Deletion(**shared), "deletion_at_most", deletion_at_most, "<="))
    with check.running(classifier, inputs, labels) as run:
        thresholds = [
            reachable(given, run, curve, name=name, relation=relation)
            for curve, name, given, relation in asked
        ]
        found = measure_faithfulness(run, method, [curve for curve, *_ in asked])
        gates = [
            (curve.name, finding, relation, threshold)
            for (curve, _, _, relation), finding, threshold in zip(
                asked, found, thresholds, strict=True
            )
        ]
        return check.statistics(gates, "mean")


@points_at_caller
def assert_explanations_agree(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    methods: tuple[str | Attribution, str | Attribution],
    metric: str | PairMetric = "spearman",
    at_least: float | None = None,
    at_most: float | None = None,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that two methods explain alike.

    Args:
        classifier: The `Classifier` under test.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64 classes to explain; None for the loader's, else the predictions.
        methods: Two attributions, or their names.
        metric: Metric of two maps, or its name.
        at_least: Smallest mean that passes; for similarities.
        at_most: Largest mean that passes; for distances.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values compare the two maps of each sample.

    Raises:
        TriGuardFailure: If the mean is on the wrong side of the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.
    """
    __tracebackhide__ = True
    check = Check.begin(assert_explanations_agree, options)
    judged = as_measure(metric)
    relation, threshold = parse_gate(judged, at_least, at_most)
    first, second = (chosen_attribution(each, check.seed) for each in check_methods(methods))
    with check.running(classifier, inputs, labels) as run:
        name = "at_least" if relation == ">=" else "at_most"
        threshold = reachable(threshold, run, judged, name=name, relation=relation)
        finding = measure_agreement(run, first, second, judged)
        return check.statistic(finding, relation, threshold, "mean")


@points_at_caller
def assert_passes_sanity_check(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    attribution: str | Attribution,
    at_most: float,
    metric: str | PairMetric = "spearman",
    layers: str = "all",
    against: Classifier | None = None,
    **options: Unpack[CheckOptions],
) -> Measurement:
    """Assert that explanations depend on what the network has learned.

    Each map is compared with that of a twin whose parameters are drawn anew (model
    randomisation), or of a network that you trained alike on permuted labels (data
    randomisation); a method whose maps stay alike explains the input, not the network.

    Args:
        classifier: The `Classifier` under test; its parameters stay as they are.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64 classes to explain; None for the loader's, else the predictions.
        attribution: Name of an attribution, or the attribution itself.
        at_most: Largest mean similarity that passes.
        metric: Similarity of two maps, or its name.
        layers: Whose parameters are drawn anew: `"all"`, or `"last"` for the last layer's.
        against: Classifier trained on the same images with permuted labels, of the same bounds,
            dtype and number of classes; None for a twin with parameters drawn anew.
        **options: See `CheckOptions`.

    Returns:
        The measurement; values compare the two maps of each sample.

    Raises:
        TriGuardFailure: If the mean similarity is above the threshold, or inconclusive.
        ValueError: If an argument or the data is refused; a TypeError if a type is wrong.

    References:
        Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292, sections 3
        (model randomisation) and 4 (data randomisation).
    """
    __tracebackhide__ = True
    check = Check.begin(assert_passes_sanity_check, options)
    judged, method = as_measure(metric), chosen_attribution(attribution, check.seed)
    if not judged.similarity:
        raise InputError(f"metric must be a similarity, but {judged.name} came, a distance")
    with check.running(classifier, inputs, labels) as run:
        threshold = reachable(at_most, run, judged, name="at_most", relation="<=")
        twin = parse_twin(classifier, against, layers, seed=check.seed)
        finding = measure_against(run, method, twin, judged)
        return check.statistic(finding, "<=", threshold, "mean")


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
    method = chosen_attribution(attribution, check.seed)
    forced = forced_class(trigger, target)
    with check.running(classifier, inputs) as run:
        known_class(forced, run)
        finding = measure_trigger_recall(run, trigger, method, forced)
        return check.statistic(finding, ">=", threshold, "mean")
