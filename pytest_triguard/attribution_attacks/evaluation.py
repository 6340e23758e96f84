"""How far explanations give way as the ball grows, in one number per measure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_triguard import metrics
from pytest_triguard.attacks.base import check_radii
from pytest_triguard.attribution_attacks.base import AttributionAttack, Broken
from pytest_triguard.attribution_attacks.search import Outcome
from pytest_triguard.attributions import Attribution
from pytest_triguard.engine.model import Model
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.metrics import PairMetric
from pytest_triguard.running import Run, running
from pytest_triguard.validation import describe

EPS_255 = (2 / 255, 4 / 255, 8 / 255, 16 / 255)
"""The radii of Smoothed Geometry for pixels in [0, 1]: 2, 4, 8 and 16 of 255."""

MEASURES = ("topk_intersection", "spearman", "mass_center", "cosine")


@dataclass(frozen=True)
class AttackCurve:
    """What an attack does to explanations at several radii.

    Attributes:
        eps: The radii, rising.
        values: For each measure `(len(eps), N)`, one number per radius and sample; NaN where it is
            undefined: no iterate kept the prediction, no gradient had a derivative, or the measure
            itself is undefined.
        means: For each measure its mean over the defined samples at each radius.
        areas: For each measure the area under its means over log2 eps.
        success: `(len(eps), N)` bool, the success of the attack by its own measure.
        cost: Forward and backward passes in all, counted in samples.
    """

    eps: tuple[float, ...]
    values: dict[str, Tensor]
    means: dict[str, tuple[float, ...]]
    areas: dict[str, float]
    success: Tensor
    cost: dict[str, int]


def attack_curve(
    classifier: Any,
    inputs: Any,
    targets: Any = None,
    *,
    attack: AttributionAttack,
    attribution: Attribution,
    eps: Sequence[float] = EPS_255,
    measures: Sequence[str | PairMetric] = MEASURES,
    ids: Sequence[Hashable] | None = None,
) -> AttackCurve:
    """Attack explanations at several radii, and sum each measure up over log2 eps.

    A similarity of 1 at all of the default radii has an area of 3; a distance of 0 has one of 0.

    Args:
        classifier: The `Classifier` under attack.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        targets: Class explained, one for all or `(N,)`; None for the labels a loader brings, else
            the prediction.
        attack: The attack; its own eps is not used.
        attribution: What is judged, and attacked too unless the attack names its own.
        eps: Radii in input units, greater than 0 and rising, two at least.
        measures: Metrics of two maps, or their names.
        ids: One unique id per sample.

    Returns:
        The measures at each radius, and their areas.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module breaks what a classifier promises.

    References:
        Wang et al. 2020, "Smoothed Geometry for Robust Attribution", arXiv:2006.06643, section 5.
    """
    radii = check_radii(eps, fewest=2, positive=True)
    judged = {each.name: each for each in map(as_measure, measures)}
    made = for_attribution(attack, attribution)
    with running(classifier, inputs, ids=ids, targets=targets) as run:
        return _curve(run, [replace(made, eps=each) for each in radii], attribution, judged, radii)


def _curve(
    run: Run,
    attacks: list[AttributionAttack],
    attribution: Attribution,
    judged: dict[str, PairMetric],
    radii: tuple[float, ...],
) -> AttackCurve:
    for each in attacks:
        each.check_eps_for(run)
    run.tune(sum(each.passes_per_sample for each in attacks))
    found: dict[str, list[Tensor]] = {name: [] for name in judged}
    success = []
    for each in attacks:
        broken, parts = Broken(), []
        for outcome, numbers, _ in judged_blocks(run, each, attribution, judged):
            broken.add(outcome)
            parts.append({"success": outcome.success} | numbers)
        broken.refuse(run.model)
        success.append(torch.cat([part["success"] for part in parts]))
        for name, rows in found.items():
            rows.append(torch.cat([part[name] for part in parts]))
    device = run.like.device
    values = {name: torch.stack(rows).to(device) for name, rows in found.items()}
    means = {name: tuple(rows.nanmean(1).tolist()) for name, rows in values.items()}
    return AttackCurve(
        eps=radii,
        values=values,
        means=means,
        areas={name: area_over_log_eps(each, radii) for name, each in means.items()},
        success=torch.stack(success).to(device),
        cost=run.model.passes.to_dict(),
    )


def judged_blocks(
    run: Run, attack: AttributionAttack, attribution: Attribution, judged: dict[str, PairMetric]
) -> Iterator[tuple[Outcome, dict[str, Tensor], Tensor]]:
    """Attack block by block, and measure how the maps of an attribution change.

    Args:
        run: Classifier and samples.
        attack: The attack.
        attribution: Whose maps are compared; the attack may have been made for another.
        judged: Metrics by name.

    Yields:
        Outcomes; for each metric `(n,)` numbers, NaN where no iterate kept the prediction, or
        nothing was found because no gradient had a derivative; and `(n,)` bool, which samples lack
        a map for the method's own reason, before or after.
    """
    for outcome in attack.stream(run):
        maps = _maps(run.model, outcome, attack, attribution)
        batch = replace(outcome.batch, inputs=outcome.points, logits=None)
        others = attribution.explain(run.model, batch)
        usable = outcome.kept & ~outcome.stuck
        yield (
            outcome,
            {
                name: metric(maps, others).masked_fill(~usable, math.nan)
                for name, metric in judged.items()
            },
            attribution.missing(maps) | attribution.missing(others),
        )


def _maps(
    model: Model, outcome: Outcome, attack: AttributionAttack, attribution: Attribution
) -> Tensor:
    if attribution is attack.explained:
        return outcome.maps
    return attribution.explain(model, outcome.batch)


def for_attribution(attack: AttributionAttack, attribution: Attribution) -> AttributionAttack:
    """Return the attack with what it is to attack, unless it brings its own.

    Raises:
        InputTypeError: If `attack` is no attack on explanations, or `attribution` no attribution.
    """
    if not isinstance(attack, AttributionAttack):
        raise InputTypeError(
            f"attack must be an attack on explanations, but {describe(attack)} came; "
            "attribution_attacks.get(name, ...) makes one"
        )
    if not isinstance(attribution, Attribution):
        raise InputTypeError(
            f"attribution must be an attribution, but {describe(attribution)} came; "
            "attributions.get(name, ...) makes one"
        )
    return attack if attack.attribution is not None else replace(attack, attribution=attribution)


def as_measure(measure: Any) -> PairMetric:
    """Return a metric of two maps, by name or as it is.

    Raises:
        InputTypeError: If it is no metric.
        InputError: If it is a metric of something else.
    """
    metric = metrics.get(measure) if isinstance(measure, str) else measure
    if isinstance(metric, PairMetric):
        return metric
    if isinstance(metric, metrics.Metric):
        raise InputError(f"metric must compare two maps, but {metric.name!r} came")
    raise InputTypeError(
        f"metric must be a name or a metric, but {describe(measure)} came; "
        "metrics.get(name, ...) makes one"
    )


def area_over_log_eps(values: Sequence[float], eps: Sequence[float]) -> float:
    """Return the area under values over log2 eps, by trapezoids.

    The unit of eps does not matter: from 2 / 255 to 16 / 255 it is as far as from 2 to 16.

    Args:
        values: One per radius.
        eps: The radii, greater than 0 and rising.

    Raises:
        InputTypeError: If `eps` is no sequence of numbers.
        InputError: If the radii are too few or do not rise, or there are more or fewer values.
    """
    radii = check_radii(eps, fewest=2, positive=True)
    if len(values) != len(radii):
        raise InputError(
            f"values must hold one number for each of {len(radii)} radii, but {len(values)} came"
        )
    logs = [math.log2(each) for each in radii]
    return sum(
        (values[place] + values[place + 1]) / 2 * (logs[place + 1] - logs[place])
        for place in range(len(logs) - 1)
    )
