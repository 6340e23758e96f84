"""How alike the maps of one sample are: by two methods, or by one method on two networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pytest_triguard.attributions import Attribution
from pytest_triguard.attributions.base import known_targets
from pytest_triguard.attributions.randomization import randomized
from pytest_triguard.checks.beside import beside
from pytest_triguard.checks.columns import Array, Columns
from pytest_triguard.checks.explained import About, about_maps
from pytest_triguard.checks.finding import Finding
from pytest_triguard.checks.maps import Maps
from pytest_triguard.checks.pictured import side_by_side
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.layers import named_layers
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.sifting import require_finite
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.metrics import PairMetric
from pytest_triguard.running import Run
from pytest_triguard.validation import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    methods = first, second
    finding = _measured(
        run, methods, lambda batch: second.explain(run.model, batch), metric, subject
    )
    finding.method += f"; {second.describe()}"
    finding.parameters = {
        "first": first.parameters(),
        "second": second.parameters(),
        "metric": metric.parameters(),
    }

    def draw(one: Run, title: str) -> Figure:
        def explain(batch: Batch) -> Tensor:
            return second.explain(one.model, batch)

        return _picture(one, first, explain, (first.name, second.name), title)

    finding.picture = draw
    return finding


@dataclass(frozen=True)
class Twin:
    """A network that learned nothing, or other labels.

    Attributes:
        classifier: The network.
        named: What it is, in words.
        title: The same in a picture.
        parameters: What a record says of it.
    """

    classifier: Classifier
    named: str
    title: str
    parameters: dict[str, str]


def parse_twin(classifier: Classifier, against: object, layers: str, *, seed: int) -> Twin:
    """Return the network whose maps should be unlike those of the classifier.

    Args:
        classifier: The classifier under test.
        against: The other classifier, or None for a twin with parameters drawn anew.
        layers: Whose parameters are drawn anew.
        seed: Seed of the draws.

    Raises:
        InputTypeError: If `against` is no classifier.
        InputError: If it is the classifier under test, or layers are named beside it, or those are
            unknown.
    """
    if against is None:
        which = "the last layer's" if layers == "last" else "all"
        twin = randomized(classifier, layers=layers, seed=seed)
        named = f"its twin with {which} parameters drawn anew"
        return Twin(twin, named, "randomized twin", {"layers": layers})
    if not isinstance(against, Classifier):
        raise InputTypeError(f"against must be a Classifier, but {describe(against)} came")
    if layers != "all":
        raise InputError(
            "layers must be left out where against brings the other network, but "
            f"{describe(layers)} came"
        )
    if against.fingerprint() == classifier.fingerprint():
        raise InputError("against must be another classifier, but the one under test came")
    given = {"against": against.fingerprint()}
    return Twin(against, "the one given beside it", "other network", given)


def measure_against(run: Run, attribution: Attribution, twin: Twin, metric: PairMetric) -> Finding:
    """Measure how alike the maps of a network and of its twin are.

    The explained class is that of the network itself.

    Args:
        run: The classifier and the samples.
        attribution: What explains.
        twin: The other network.
        metric: Similarity of two maps.
    """
    run.tune(2 * attribution.passes_per_sample)
    with _explained_by(attribution, twin, run) as explain:
        subject = f"{attribution.name} maps of one class by the network and by {twin.named}"
        methods = attribution, attribution
        finding = _measured(run, methods, explain, metric, subject, worst_largest=True)
    finding.parameters |= twin.parameters

    def draw(one: Run, title: str) -> Figure:
        with _explained_by(attribution, twin, one) as explain:
            return _picture(one, attribution, explain, ("network", twin.title), title)

    finding.picture = draw
    return finding


@contextmanager
def _explained_by(attribution: Attribution, twin: Twin, run: Run) -> Iterator[Explain]:
    """Hold what explains samples by another network; its passes count as the run's."""
    attribution = named_layers(attribution, run.classifier.module)
    with beside("against", twin.classifier, run) as model:
        before = model.passes.copy()

        def explain(batch: Batch) -> Tensor:
            # The logits that came along are the run's own network's.
            alone = Batch(batch.positions, batch.ids, batch.keys, batch.inputs, None, batch.targets)
            return attribution.explain(model, alone)

        yield explain
        run.model.passes.add(model.passes - before)


def _picture(
    run: Run, attribution: Attribution, explain: Explain, names: tuple[str, str], title: str
) -> Figure:
    """Draw the two maps of a sample, and their difference."""
    batch, maps = next(attribution.stream(run.model, run.samples))
    both = (names[0], maps[0]), (names[1], explain(batch)[0])
    return side_by_side(run.model, batch.inputs[0], both, title)


def _measured(
    run: Run,
    methods: tuple[Attribution, Attribution],
    explain: Explain,
    metric: PairMetric,
    subject: str,
    *,
    worst_largest: bool | None = None,
) -> Finding:
    """Measure the metric of each map of a method and another map of the same samples."""
    columns, about = Columns(), About(run)
    attribution, other = methods
    for batch, maps in Maps(run, attribution).stream():
        about.add(attribution.diagnostics(run.model, batch, maps))
        others = explain(batch)
        columns.add(
            batch.positions,
            batch.ids,
            value=metric(maps, others),
            explained=known_targets(batch),
            finite=attribution.sound(maps) & other.sound(others),
            missing=attribution.missing(maps),
            others_missing=other.missing(others),
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
        missing=_by_reason(methods, (found["missing"], found["others_missing"])),
        worst_largest=not metric.similarity if worst_largest is None else worst_largest,
    )


def _by_reason(
    methods: tuple[Attribution, Attribution], missing: tuple[Array, Array]
) -> dict[str, Array]:
    """Return which samples lack a map of either method, by the reason."""
    first, second = (each.undefined_reason for each in methods)
    if first == second:
        return {first: np.maximum(*missing)}
    return {first: missing[0], second: missing[1]}
