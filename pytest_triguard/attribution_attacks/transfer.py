"""Whether an attack on one explanation method deceives the others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_triguard import attributions
from pytest_triguard.attribution_attacks.base import AttributionAttack, Broken
from pytest_triguard.attribution_attacks.evaluation import as_measure, for_attribution
from pytest_triguard.attributions import Attribution
from pytest_triguard.errors import InputError
from pytest_triguard.metrics import PairMetric
from pytest_triguard.running import Run, running
from pytest_triguard.validation import describe


@dataclass(frozen=True)
class AttributionTransfer:
    """What attacks made for each of some methods do to the maps of all of them.

    Attributes:
        methods: Names of the attributions.
        values: `(M, M, N)`: made for the first, judged on the second, per sample; NaN where it is
            undefined.
        means: `(M, M)` means over the defined samples.
        metric: What was measured.
        cost: Forward and backward passes in all, counted in samples.
    """

    methods: tuple[str, ...]
    values: Tensor
    means: Tensor
    metric: str
    cost: dict[str, int]


def transfer_between(
    classifier: Any,
    inputs: Any,
    targets: Any = None,
    *,
    attack: AttributionAttack,
    methods: Sequence[str | Attribution],
    metric: str | PairMetric = "topk_intersection",
    ids: Sequence[Hashable] | None = None,
) -> AttributionTransfer:
    """Attack each of some explanation methods, and judge the result on all of them.

    Args:
        classifier: The `Classifier` under attack.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        targets: Class explained, one for all or `(N,)`; None for the labels a loader brings, else
            the prediction.
        attack: The attack; what it is made for is set to each method in turn.
        methods: Attributions or their names.
        metric: Metric of two maps, or its name.
        ids: One unique id per sample.

    Returns:
        The metric for every pair of methods.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module breaks what a classifier promises.
    """
    made = [attributions.get(each) if isinstance(each, str) else each for each in methods]
    if not made:
        raise InputError(
            f"methods must name one attribution at least, but {describe(methods)} came"
        )
    judged = as_measure(metric)
    attacks = [for_attribution(replace(attack, attribution=None), each) for each in made]
    with running(classifier, inputs, ids=ids, targets=targets) as run:
        for each in attacks:
            each.check_eps_for(run)
        run.tune(sum(each.passes_per_sample for each in attacks))
        values = torch.stack([_row(run, each, made, judged) for each in attacks])
        return AttributionTransfer(
            tuple(each.name for each in made),
            values.to(run.like.device),
            values.nanmean(2).to(run.like.device),
            judged.title,
            run.model.passes.to_dict(),
        )


def _row(
    run: Run, attack: AttributionAttack, methods: Sequence[Attribution], metric: PairMetric
) -> Tensor:
    """Return what one attack does to the maps of all methods, `(M, N)`."""
    broken, parts = Broken(), []
    for outcome in attack.stream(run):
        broken.add(outcome)
        moved = replace(outcome.batch, inputs=outcome.points, logits=None)
        maps = (
            (method.explain(run.model, outcome.batch), method.explain(run.model, moved))
            for method in methods
        )
        parts.append(torch.stack([metric(*pair) for pair in maps]))
        parts[-1].masked_fill_(~outcome.kept | outcome.stuck, torch.nan)
    broken.refuse(run.model)
    return torch.cat(parts, 1)
