"""What explanations are like: what is said of every check of maps, and their entropy."""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np
import torch
from torch import Tensor

from pytest_triguard.attributions import Attribution
from pytest_triguard.attributions.base import known_targets
from pytest_triguard.checks.columns import Array, Columns
from pytest_triguard.checks.finding import Finding, rows, worst_places
from pytest_triguard.checks.maps import Maps
from pytest_triguard.checks.pictured import overlay
from pytest_triguard.engine.sifting import require_finite
from pytest_triguard.metrics.base import Metric
from pytest_triguard.running import Run


def measure_entropy(run: Run, attribution: Attribution, metric: Metric) -> Finding:
    """Measure the entropy of each map; a zero map is undefined."""
    run.tune(attribution.passes_per_sample)
    columns, about = Columns(), About(run)
    for batch, maps in Maps(run, attribution).stream():
        about.add(attribution.diagnostics(run.model, batch, maps))
        columns.add(
            batch.positions,
            batch.ids,
            value=metric(maps),
            explained=known_targets(batch),
            finite=attribution.sound(maps),
            missing=attribution.missing(maps),
        )
    subject = f"entropy of the {attribution.name} map"
    finding = finding_of(*columns.arrays(), metric, about, attribution, subject)
    finding.picture = overlay(attribution)
    return finding


class About:
    """What a method says about its own maps, summed up for the report.

    Args:
        run: The classifier and the samples.

    Attributes:
        doubts: Why numbers about maps of this network may not be relied on, by name.
    """

    def __init__(self, run: Run) -> None:
        self.doubts = run.doubts()
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, diagnostics: dict[str, Tensor]) -> None:
        """Add what a method says about some maps."""
        for name, values in diagnostics.items():
            self._parts.setdefault(name, []).append(values)

    def medians(self) -> dict[str, float]:
        """Return the medians; one that is not finite says nothing and is left out."""
        found = {name: float(torch.cat(parts).nanmedian()) for name, parts in self._parts.items()}
        return {f"median {name}": value for name, value in found.items() if math.isfinite(value)}


def finding_of(
    ids: list[Hashable],
    found: dict[str, Array],
    metric: Metric,
    about: About,
    attribution: Attribution,
    subject: str,
) -> Finding:
    """Return what was found about the maps of a method; where larger is worse.

    Args:
        ids: Sample ids in the order of the data.
        found: `(N,)` numbers by name: the `value`, the class `explained`, and whether the maps are
            `finite` and `missing`.
        metric: The metric.
        about: What the method says about its own maps.
        attribution: The method.
        subject: What was asked of each sample, in words.

    Raises:
        ModelError: If a map is not finite.
    """
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
        warnings=about.doubts,
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
