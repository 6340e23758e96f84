"""What a backdoor trigger does: whether it fires, and whether explanations find it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pytest_triguard import metrics, pictures
from pytest_triguard.attributions import Attribution
from pytest_triguard.backdoors import Trigger
from pytest_triguard.checks.attacked import others, success_counts
from pytest_triguard.checks.bounds import check_bounds
from pytest_triguard.checks.clean import predictions
from pytest_triguard.checks.columns import Array, Columns
from pytest_triguard.checks.finding import WORST, Finding, rows, worst_places
from pytest_triguard.checks.pictured import visible
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.sifting import clean_logits, labelled, require_finite, sift
from pytest_triguard.running import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ADVICE = "backdoors.get({!r}, bounds=...) sets them"


def measure_trigger_recall(
    run: Run, trigger: Trigger, attribution: Attribution, target: int
) -> Finding:
    """Measure how much of the trigger an explanation of the forced class finds.

    Counted are samples whose clean prediction is not the target; those on which the trigger does
    not fire are undefined. Only the others are explained.
    """
    check_bounds("trigger", trigger.bounds, run, _ADVICE.format(trigger.name))
    run.tune(attribution.passes_per_sample)
    metric, columns = (
        metrics.get("trigger_recall"),
        Columns("fires", "value", "chance", "finite", "missing"),
    )
    for batch, maps in attribution.stream(run.model, _fired(run, trigger, target, columns)):
        mask = trigger.mask(batch.inputs)
        columns.add(
            batch.positions,
            batch.ids,
            fires=1,
            value=metric(maps, mask),
            chance=mask.flatten(1).to(maps.dtype).mean(1),
            finite=attribution.sound(maps),
            missing=attribution.missing(maps),
        )
    ids, found = columns.arrays()
    require_finite(ids, found["finite"], "maps")
    return _recall_finding(ids, found, attribution, trigger, target, run.doubts())


def _fired(run: Run, trigger: Trigger, target: int, columns: Columns) -> Iterator[Batch]:
    """Pass on samples with the trigger on which it fires, and book the others."""
    poisoned = _poisoned(run, trigger, target, columns)
    for batch, dud in sift(run.model, poisoned, lambda _, logits: logits.argmax(1) == target):
        columns.add(dud.positions, dud.ids, fires=0)
        yield batch


def _poisoned(run: Run, trigger: Trigger, target: int, columns: Columns) -> Iterator[Batch]:
    """Pass on samples with the trigger whose prediction without it is not the target."""
    clean = sift(run.model, run.samples, lambda _, logits: logits.argmax(1) != target)
    for batch, out in clean:
        columns.add(out.positions, out.ids)
        yield replace(
            batch,
            inputs=trigger(batch.inputs),
            targets=torch.full_like(batch.keys, target),
        )


def _recall_finding(
    ids: list[Hashable],
    found: dict[str, Array],
    attribution: Attribution,
    trigger: Trigger,
    target: int,
    doubts: dict[str, str],
) -> Finding:
    fires, values = found["fires"], found["value"]
    defined = ~np.isnan(values)
    dud, missing = fires == 0, found["missing"] == 1
    zero = (fires == 1) & ~defined & ~missing
    chance = float(found["chance"][defined].mean()) if defined.any() else None
    counts = {
        "defined": int(defined.sum()),
        "not counted (clean prediction is the target)": int(np.isnan(fires).sum()),
        "undefined (the trigger does not fire)": int(dud.sum()),
        "undefined (zero map)": int(zero.sum()),
        f"undefined ({attribution.undefined_reason})": int(missing.sum()),
    }
    level = "" if chance is None else f"; chance level {chance:.3g}"
    return Finding(
        metric="trigger recall",
        ids=ids,
        values=values,
        counts={name: count for name, count in counts.items() if count or name == "defined"},
        undefined=int(dud.sum() + zero.sum() + missing.sum()),
        subject=f"share of the {trigger.name} trigger's pixels among as many top pixels of the map "
        f"of class {target}{level}",
        method=attribution.describe(),
        parameters=attribution.parameters() | {"trigger": trigger.parameters(), "target": target},
        diagnostics={} if chance is None else {"chance level": chance},
        warnings=doubts,
        worst=rows(ids, worst_places(values, largest=False), value=values),
        picture=partial(_picture, attribution, trigger, target),
    )


def _picture(
    attribution: Attribution, trigger: Trigger, target: int, run: Run, title: str
) -> Figure:
    """Draw a sample with the trigger, and its map."""
    fired = _fired(run, trigger, target, Columns())
    batch, maps = next(attribution.stream(run.model, fired))
    return pictures.heatmap_overlay(visible(run.model, batch.inputs[0]), maps[0], title=title)


def measure_trigger_success(run: Run, trigger: Trigger, target: int) -> Finding:
    """Measure how often a trigger turns samples of other classes into the target."""
    check_bounds("trigger", trigger.bounds, run, _ADVICE.format(trigger.name))
    run.tune(2)
    metric = metrics.get("attack_success")
    columns = Columns("value", "label", "before", "finite")
    counted = others(run.samples, target, columns)
    for batch, logits in clean_logits(run.model, counted):
        before, labels = logits.argmax(1), labelled(batch)
        after, finite = predictions(run.model, trigger(batch.inputs))
        columns.add(
            batch.positions,
            batch.ids,
            value=metric(before, after, labels, target),
            label=labels,
            before=before,
            finite=finite & torch.isfinite(logits).all(1),
        )
    ids, found = columns.arrays()
    require_finite(ids, found["finite"], "logits")
    values = found["value"]
    already = int((found["before"] == target).sum())
    classes = {name: np.nan_to_num(found[name]).astype(np.int64) for name in ("label", "before")}
    return Finding(
        metric="attack success",
        ids=ids,
        values=values,
        counts=success_counts(values, "label is the target")
        | {f"predicted as class {target} without the trigger": already},
        undefined=0,
        subject=f"the {trigger.name} trigger turns a sample of another class into class {target}",
        method="one forward pass per sample, one with the trigger",
        parameters={"trigger": trigger.parameters(), "target": target},
        worst=rows(
            ids,
            np.flatnonzero(values == 1)[:WORST].tolist(),
            label=classes["label"],
            predicted=np.full(len(ids), target),
            **{"without the trigger": classes["before"]},
        ),
    )
