"""Whether explanations name the pixels that the output rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from pytest_triguard import pictures
from pytest_triguard.attributions import Attribution
from pytest_triguard.attributions.base import known_targets
from pytest_triguard.checks.columns import Columns
from pytest_triguard.checks.explained import About, about_maps
from pytest_triguard.checks.finding import Finding
from pytest_triguard.checks.maps import Maps
from pytest_triguard.engine.sifting import require_finite
from pytest_triguard.metrics.imputation import ROAD
from pytest_triguard.metrics.removal import Direction
from pytest_triguard.metrics.removal_curve import RemovalCurve
from pytest_triguard.running import Run
from pytest_triguard.validation import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure_faithfulness(
    run: Run, attribution: Attribution, curves: Sequence[RemovalCurve]
) -> list[Finding]:
    """Measure the area under each curve of the same maps, which are made once.

    Args:
        run: The classifier and the samples.
        attribution: What explains.
        curves: Insertion, deletion, or both, alike but for their direction.

    Returns:
        One finding for each curve; a zero map is undefined.
    """
    directions: list[Direction] = [each.direction for each in curves]
    run.tune(attribution.passes_per_sample + len(curves) * curves[0].passes_per_sample)
    columns, about = Columns(), About(run)
    for batch, maps in Maps(run, attribution).stream():
        about.add(attribution.diagnostics(run.model, batch, maps))
        areas = curves[0].areas(run.model, batch, maps, directions)
        columns.add(
            batch.positions,
            batch.ids,
            explained=known_targets(batch),
            finite=attribution.sound(maps),
            missing=attribution.missing(maps),
            **{str(direction): area for direction, area in areas.items()},
        )
    ids, found = columns.arrays()
    require_finite(ids, found["finite"], "maps")
    findings = []
    for each in curves:
        each.require_finite(torch.from_numpy(found[each.direction]), ids)
        finding = about_maps(
            ids,
            found[each.direction],
            found["explained"],
            each,
            about,
            attribution,
            _subject(each, attribution),
            missing={attribution.undefined_reason: found["missing"]},
            worst_largest=each.direction == "deletion",
        )
        finding.picture = partial(_picture_of_curve, attribution, each)
        findings.append(finding)
    return findings


def _picture_of_curve(
    attribution: Attribution, curve: RemovalCurve, run: Run, title: str
) -> Figure:
    """Draw the curve of a sample beside that of a random ranking."""
    batch, maps = next(attribution.stream(run.model, run.samples))
    curves = {
        f"{curve.direction} by {attribution.name}": curve,
        "random ranking": replace(curve, ranking="random"),
    }
    traced = {name: each.trace(run.model, batch, maps) for name, each in curves.items()}
    return pictures.removal_curves(traced, title=title)


def _subject(curve: RemovalCurve, attribution: Attribution) -> str:
    start = curve.baseline
    named = f"the baseline {start if isinstance(start, str) else describe(start)}"
    if isinstance(start, str) and start == ROAD:
        named = "what their neighbours suggest"
    way = f"are replaced by {named}" if curve.direction == "deletion" else f"enter {named}"
    return (
        f"mean {curve.output} of one class while its pixels {way}, those of highest "
        f"{attribution.name} first, in {curve.steps} steps"
    )
