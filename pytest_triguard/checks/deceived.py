"""What an attack does to explanations while the prediction stays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_triguard import attribution_attacks, pictures
from pytest_triguard.attribution_attacks import AttributionAttack
from pytest_triguard.attribution_attacks.evaluation import for_attribution, judged_blocks
from pytest_triguard.attributions import Attribution
from pytest_triguard.checks.columns import Array, Columns
from pytest_triguard.checks.finding import Finding, describe_ball, rows, worst_places
from pytest_triguard.checks.pictured import visible
from pytest_triguard.engine.sifting import require_finite
from pytest_triguard.errors import InputError
from pytest_triguard.metrics import PairMetric
from pytest_triguard.record import Relation
from pytest_triguard.running import Run
from pytest_triguard.validation import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTION_CHANGED = "the prediction changed at every iterate"
NO_SECOND_ORDER = "nothing found, and no second-order gradient to go by"


def parse_attack(
    attack: Any, attribution: Attribution, metric: PairMetric, *, eps: Any, seed: int
) -> AttributionAttack:
    """Return the attack an assertion asks for, made for its attribution and metric.

    What an attack object brings of its own stays: the attribution it is made for, so that its
    transfer is judged, and the criterion it chooses the worst iterate by.

    Raises:
        InputTypeError: If it is neither a name nor an attack on explanations.
        InputError: If an attack object disagrees with the eps given beside it.
    """
    if isinstance(attack, str):
        attack = attribution_attacks.get(attack, eps=eps)
    made = for_attribution(attack, attribution)
    if not _same(made.eps, eps):
        raise InputError(
            f"eps must agree with the attack's own, {describe(made.eps)}, but {describe(eps)} came"
        )
    chosen = metric if made.criterion is None else made.criterion
    return replace(made, criterion=chosen, seed=seed if made.seed is None else made.seed)


def parse_gate(metric: PairMetric, at_least: Any, at_most: Any) -> tuple[Relation, Any]:
    """Return how a metric is held against its threshold, and the threshold.

    Raises:
        InputError: If not exactly one threshold is given, or it looks the wrong way.
    """
    if (at_least is None) == (at_most is None):
        came = "neither" if at_least is None else "both"
        raise InputError(f"either at_least or at_most must be given, but {came} came")
    if metric.similarity and at_least is None:
        raise InputError(
            f"at_least must be given for {metric.name}, which is a similarity, but at_most came"
        )
    if not metric.similarity and at_most is None:
        raise InputError(
            f"at_most must be given for {metric.name}, which is a distance, but at_least came"
        )
    return (">=", at_least) if metric.similarity else ("<=", at_most)


def measure_explanations(
    run: Run, attack: AttributionAttack, attribution: Attribution, metric: PairMetric
) -> Finding:
    """Measure how alike the maps of samples and attacked samples are.

    A sample is undefined where no iterate kept its prediction, where the attack had nothing to go
    by, and where the metric is.
    """
    attack.check_eps_for(run)
    run.tune(attack.passes_per_sample)
    columns = Columns()
    for outcome, numbers, mapless in judged_blocks(run, attack, attribution, {"value": metric}):
        columns.add(
            outcome.batch.positions,
            outcome.batch.ids,
            value=numbers["value"],
            explained=outcome.targets,
            distance=outcome.distance,
            kept=outcome.kept,
            stuck=outcome.stuck,
            mapless=mapless,
            deceived=outcome.success,
            finite=~outcome.broken,
        )
    ids, found = columns.arrays()
    require_finite(ids, found["finite"], "logits and gradients")
    values = found["value"]
    return Finding(
        metric=f"{metric.title} under attack",
        ids=ids,
        values=values,
        counts=_counts(found, attack, attribution, metric),
        undefined=int(np.isnan(values).sum()),
        subject=f"{attribution.name} maps of a sample and of one predicted alike in the "
        + _ball(run, attack),
        method=f"{attack.describe()}; {attribution.describe()}",
        warnings=run.doubts(),
        parameters=attack.parameters()
        | {"judged": attribution.parameters(), "metric": metric.parameters()},
        worst=rows(
            ids,
            worst_places(values, largest=not metric.similarity),
            value=values,
            **{"class": found["explained"].astype(np.int64)},
            distance=found["distance"],
        ),
        picture=partial(_picture, attack, attribution),
    )


def _picture(attack: AttributionAttack, attribution: Attribution, run: Run, title: str) -> Figure:
    """Draw a sample, its attacked twin, and where the map moved."""
    outcome = next(attack.stream(run))
    both = outcome.batch, replace(outcome.batch, inputs=outcome.points, logits=None)
    images = [visible(run.model, each.inputs[0]) for each in both]
    maps = [attribution.explain(run.model, each)[0] for each in both]
    return pictures.displacement(*images, *maps, title=title)


def _counts(
    found: dict[str, Array],
    attack: AttributionAttack,
    attribution: Attribution,
    metric: PairMetric,
) -> dict[str, int]:
    """Return how many samples are defined, how many were deceived, and why the others are not."""
    missing = np.isnan(found["value"])
    changed, stuck = found["kept"] == 0, found["stuck"] == 1
    left, mapless = missing & ~changed & ~stuck, found["mapless"] == 1
    reasons = {
        PREDICTION_CHANGED: missing & changed,
        NO_SECOND_ORDER: missing & ~changed & stuck,
        attribution.undefined_reason: left & mapless,
        metric.undefined_reason: left & ~mapless,
    }
    counts = {
        "defined": int((~missing).sum()),
        f"moved by {attack.name}": int((~missing & (found["deceived"] == 1)).sum()),
    }
    return counts | {
        f"undefined ({reason})": int(where.sum())
        for reason, where in reasons.items()
        if where.any()
    }


def _ball(run: Run, attack: AttributionAttack) -> str:
    if attack.eps is None:
        return "valid range"
    return describe_ball(attack.eps, attack.norm, run.samples.bounds)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other.to(one)))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other
