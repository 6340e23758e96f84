"""What explanations are like: their entropy, and how far they drift."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_triguard import attacks, pictures
from pytest_triguard.attacks import Attack
from pytest_triguard.attributions import Attribution
from pytest_triguard.attributions.base import with_logits, with_targets
from pytest_triguard.checks.columns import Array, Columns
from pytest_triguard.checks.finding import Finding, describe_ball, rows, worst_places
from pytest_triguard.checks.maps import Maps, blocks
from pytest_triguard.checks.pictured import overlay, side_by_side, visible
from pytest_triguard.engine.baselines import BASELINES, check_baseline
from pytest_triguard.engine.equality import fingerprint
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.engine.sifting import require_finite
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.metrics.base import Metric
from pytest_triguard.running import Run
from pytest_triguard.validation import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Pair:
    """Two baselines whose maps are compared."""

    first: str | Tensor
    second: str | Tensor

    @property
    def title(self) -> str:
        """The two baselines in words."""
        return " and ".join(_named(each) for each in (self.first, self.second))


@dataclass(frozen=True)
class CleanAndAttacked:
    """The sample and its adversarial example, whose maps are compared."""

    attack: Attack


def parse_between(between: Any, attribution: Attribution, seed: int) -> Pair | CleanAndAttacked:
    """Return what the `between` argument of a drift check asks for.

    Raises:
        InputTypeError: If it is no pair, or a part has the wrong type.
        InputError: If a name is unknown, or the method has no baseline.
    """
    if not isinstance(between, tuple | list) or len(between) != 2:
        raise InputTypeError(
            f"between must be two baselines or ('clean', attack), but {describe(between)} came"
        )
    first, second = between
    if isinstance(first, str) and first == "clean":
        attack = attacks.get(second) if isinstance(second, str) else second
        if not isinstance(attack, Attack):
            raise InputTypeError(
                "between must name an attack after 'clean', or hold one, but "
                f"{describe(second)} came"
            )
        return CleanAndAttacked(attack if attack.seed is not None else replace(attack, seed=seed))
    if "baseline" not in {each.name for each in fields(attribution)}:
        raise InputError(
            f"between must be ('clean', attack) for {attribution.name}, which has no baseline, but "
            f"{describe(between)} came"
        )
    for each in (first, second):
        if isinstance(each, str) and each not in BASELINES:
            choices = ", ".join(repr(name) for name in (*BASELINES, "clean"))
            raise InputError(f"between must name two of {choices}, but {each!r} came")
        check_baseline("between", each)
    return Pair(first, second)


def measure_entropy(run: Run, attribution: Attribution, metric: Metric) -> Finding:
    """Measure the entropy of each map; a zero map is undefined."""
    run.tune(attribution.passes_per_sample)
    columns, about = Columns(), About()
    for batch, maps in Maps(run, attribution).stream():
        about.add(attribution.diagnostics(run.model, batch, maps))
        columns.add(
            batch.positions,
            batch.ids,
            value=metric(maps),
            explained=_targets(batch),
            finite=attribution.sound(maps),
            missing=attribution.missing(maps),
        )
    subject = f"entropy of the {attribution.name} map"
    finding = _finding(columns, metric, about, attribution, subject)
    finding.picture = overlay(attribution)
    return finding


def measure_drift(
    run: Run, attribution: Attribution, metric: Metric, between: Pair | CleanAndAttacked
) -> Finding:
    """Measure how far each map moves; the explained class is held fixed."""
    columns, about = Columns(), About()
    if isinstance(between, Pair):
        run.tune(2 * attribution.passes_per_sample)
        pairs = _between_baselines(run, attribution, between, about)
        subject = f"between the baselines {between.title}"
        ends = (between.first, between.second)
        parameters: list[Any] = [
            fingerprint(each) if isinstance(each, Tensor) else each for each in ends
        ]
    else:
        attack = between.attack
        attack.check_for(run)
        run.tune(2 * attribution.passes_per_sample + attack.passes_per_sample)
        pairs = _clean_and_attacked(run, attribution, attack)
        ball = describe_ball(attack.eps, attack.norm, run.samples.bounds)
        subject = f"from a sample to its adversarial example in the {ball}"
        parameters = ["clean", attack.parameters()]
    for batch, maps, others in pairs:
        columns.add(
            batch.positions,
            batch.ids,
            value=metric(maps, others),
            explained=_targets(batch),
            finite=attribution.sound(maps) & attribution.sound(others),
            missing=attribution.missing(maps) | attribution.missing(others),
        )
    subject = f"drift of the {attribution.name} map of one class {subject}"
    finding = _finding(columns, metric, about, attribution, subject)
    finding.parameters |= {"between": parameters}
    finding.picture = partial(_picture_of_drift, attribution, between)
    if isinstance(between, CleanAndAttacked):
        finding.metric = f"adversarial {finding.metric}"
        finding.method += f"; {between.attack.describe()}"
    return finding


def _between_baselines(
    run: Run, attribution: Attribution, between: Pair, about: About
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    model = run.model
    ends = [_from_baseline(attribution, each) for each in (between.first, between.second)]
    explained = [Maps(run, end) for end in ends]
    for source, block in blocks(run):
        batch = with_logits(model, with_targets(model, block))  # both ends ask for them
        maps = [each.explain(source, batch) for each in explained]
        for end, each in zip(ends, maps, strict=True):
            about.add(end.diagnostics(model, batch, each))
        yield batch, maps[0], maps[1]


def _from_baseline(attribution: Attribution, baseline: str | Tensor) -> Attribution:
    changed: dict[str, Any] = {"baseline": baseline}
    return replace(attribution, **changed)


def _clean_and_attacked(
    run: Run, attribution: Attribution, attack: Attack
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    for clean, broken in _samples_and_attacked(run, attack):
        yield clean, attribution.explain(run.model, clean), attribution.explain(run.model, broken)


def _samples_and_attacked(run: Run, attack: Attack) -> Iterator[tuple[Batch, Batch]]:
    model = run.model
    # Outcomes come a few at a time; side by side as channels they are gathered into full blocks.
    attacked = _attacked(model, run.samples, attack)
    for both in Feed(attacked, model.device).blocks(model.chunk.rows):
        inputs, points = both.inputs.chunk(2, dim=1)
        yield replace(both, inputs=inputs), replace(both, inputs=points)


def _attacked(model: Model, batches: Iterable[Batch], attack: Attack) -> Iterator[Batch]:
    """Yield samples and their adversarial examples, `(n, 2 C, H, W)`, with the explained class."""
    for outcome in attack.stream(model, _labelled_as_explained(model, batches)):
        yield Batch(
            positions=tuple(outcome.positions),
            ids=tuple(outcome.ids),
            keys=outcome.keys,
            inputs=torch.cat([outcome.clean, outcome.points], dim=1),
            targets=outcome.labels,
        )


def _picture_of_drift(
    attribution: Attribution, between: Pair | CleanAndAttacked, run: Run, title: str
) -> Figure:
    """Draw the two maps of a sample, and how one becomes the other."""
    model = run.model
    if isinstance(between, Pair):
        first, second = (
            _from_baseline(attribution, each) for each in (between.first, between.second)
        )
        batch, maps = next(first.stream(model, run.samples))
        named = (
            (_named(between.first), maps[0]),
            (_named(between.second), second.explain(model, batch)[0]),
        )
        return side_by_side(model, batch.inputs[0], named, title)
    both = next(_samples_and_attacked(run, between.attack))
    images = [visible(model, each.inputs[0]) for each in both]
    return pictures.displacement(
        *images, *(attribution.explain(model, each)[0] for each in both), title=title
    )


def _labelled_as_explained(model: Model, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Label samples with the class that is explained, so that the attack moves away from it."""
    for block in Feed(batches, model.device).blocks(model.chunk.rows):
        batch = with_targets(model, block)
        yield replace(batch, labels=batch.targets, targets=None)


def _targets(batch: Batch) -> Tensor:
    if batch.targets is None:
        raise TypeError("a sample that was explained has a target")
    return batch.targets


class About:
    """What a method says about its own maps, summed up for the report."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, diagnostics: dict[str, Tensor]) -> None:
        """Add what a method says about some maps."""
        for name, values in diagnostics.items():
            self._parts.setdefault(name, []).append(values)

    def medians(self) -> dict[str, float]:
        """Return the medians; one that is not finite says nothing and is left out."""
        found = {name: float(torch.cat(parts).nanmedian()) for name, parts in self._parts.items()}
        return {f"median {name}": value for name, value in found.items() if math.isfinite(value)}


def _finding(
    columns: Columns, metric: Metric, about: About, attribution: Attribution, subject: str
) -> Finding:
    ids, found = columns.arrays()
    require_finite(ids, found["finite"], "maps")
    values, classes = found["value"], found["explained"]
    missing = {attribution.undefined_reason: found["missing"]}
    return about_maps(ids, values, classes, metric, about, attribution, subject, missing=missing)


def about_maps(
    ids: list[Hashable],
    values: Array,
    classes: Array,
    metric: Metric,
    about: About,
    attribution: Attribution,
    subject: str,
    *,
    missing: dict[str, Array],
    worst_largest: bool = True,
) -> Finding:
    """Return what was found about the maps of a method.

    Args:
        ids: Sample ids in the order of the data.
        values: `(N,)` numbers of the metric, NaN where undefined.
        classes: `(N,)` classes that were explained.
        metric: The metric.
        about: What the method says about its own maps.
        attribution: The method.
        subject: What was asked of each sample, in words.
        missing: `(N,)` which samples have no map, by the reason that a method has.
        worst_largest: Whether the largest numbers are the worst, or the smallest.
    """
    undefined, medians = np.isnan(values), about.medians()
    counts = {"defined": int((~undefined).sum())} | counted(undefined, metric, missing)
    return Finding(
        metric=metric.title,
        ids=ids,
        values=values,
        counts=counts,
        undefined=int(undefined.sum()),
        subject=subject,
        method=attribution.describe()
        + "".join(f"; {name} {value:.2g}" for name, value in medians.items()),
        parameters=attribution.parameters() | metric.parameters(),
        diagnostics=medians,
        worst=rows(
            ids,
            worst_places(values, largest=worst_largest),
            value=values,
            **{"class": classes.astype(np.int64)},
        ),
    )


def counted(undefined: Array, metric: Metric, missing: dict[str, Array]) -> dict[str, int]:
    """Return how many samples are undefined for each reason: no map, else the metric's own."""
    counts, left = {}, undefined
    for reason, where in missing.items():
        counts[reason] = int((left & (where == 1)).sum())
        left = left & (where != 1)
    counts[metric.undefined_reason] = int(left.sum())
    return {f"undefined ({reason})": count for reason, count in counts.items() if count}


def _named(baseline: str | Tensor) -> str:
    return baseline if isinstance(baseline, str) else describe(baseline)
