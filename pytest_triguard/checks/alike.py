"""How alike the maps of one sample are: by two methods, or by one method on two networks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pytest_triguard.attributions import Attribution
from pytest_triguard.attributions.base import known_targets
from pytest_triguard.checks.clean import finite_maps
from pytest_triguard.checks.columns import Columns
from pytest_triguard.checks.explained import About, about_maps
from pytest_triguard.checks.finding import Finding
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.sifting import require_finite
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.metrics import PairMetric
from pytest_triguard.running import Run
from pytest_triguard.validation import describe

Explain = Callable[[Batch], Tensor]


def check_methods(methods: object) -> tuple[object, object]:
    """Return the two parts of what must be a pair.

    Raises:
        InputTypeError: If it is no tuple or list.
        InputError: If it has more or fewer parts.
    """
    if not isinstance(methods, tuple | list):
        raise InputTypeError(f"methods must be two attributions, but {describe(methods)} came")
    if len(methods) != 2:
        raise InputError(f"methods must be two attributions, but {len(methods)} came")
    return methods[0], methods[1]


def measure_agreement(
    run: Run, first: Attribution, second: Attribution, metric: PairMetric
) -> Finding:
    """Measure how alike the maps of two methods are; the explained class is the same."""
    run.tune(first.passes_per_sample + second.passes_per_sample)
    subject = f"{first.name} and {second.name} maps of one class"
    finding = _measured(run, first, lambda batch: second.explain(run.model, batch), metric, subject)
    finding.method += f"; {second.describe()}"
    finding.parameters = {
        "first": first.parameters(),
        "second": second.parameters(),
        "metric": metric.parameters(),
    }
    return finding


def measure_randomized(
    run: Run, attribution: Attribution, randomized: Classifier, layers: str, metric: PairMetric
) -> Finding:
    """Measure how alike the maps of a network and of its randomized twin are.

    The explained class is that of the network itself.
    """
    run.tune(2 * attribution.passes_per_sample)
    with randomized.prepared() as twin:

        def explain(batch: Batch) -> Tensor:
            # The logits that came along are the network's own.
            alone = Batch(batch.positions, batch.ids, batch.keys, batch.inputs, None, batch.targets)
            return attribution.explain(twin, alone)

        which = "the last layer's" if layers == "last" else "all"
        subject = (
            f"{attribution.name} maps of one class by the network and by its twin with {which} "
            "parameters drawn anew"
        )
        finding = _measured(run, attribution, explain, metric, subject, worst_largest=True)
        run.model.passes.forward += twin.passes.forward
        run.model.passes.backward += twin.passes.backward
    finding.parameters |= {"layers": layers}
    return finding


def _measured(
    run: Run,
    attribution: Attribution,
    explain: Explain,
    metric: PairMetric,
    subject: str,
    *,
    worst_largest: bool | None = None,
) -> Finding:
    """Measure the metric of each map of a method and another map of the same samples."""
    columns, about = Columns(), About()
    for batch, maps in attribution.stream(run.model, run.samples):
        about.add(attribution.diagnostics(run.model, batch, maps))
        others = explain(batch)
        columns.add(
            batch.positions,
            batch.ids,
            value=metric(maps, others),
            explained=known_targets(batch),
            finite=finite_maps(maps) & finite_maps(others),
        )
    ids, found = columns.arrays()
    require_finite(ids, found["finite"], "maps")
    return about_maps(
        ids,
        found["value"],
        found["explained"],
        metric,
        about,
        attribution,
        subject,
        worst_largest=not metric.similarity if worst_largest is None else worst_largest,
    )
