"""What an attack does: which samples stand, and how often it reaches its goal."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pytest_triguard.attacks import Attack
from pytest_triguard.checks.columns import Array, Columns
from pytest_triguard.checks.falls import Falls
from pytest_triguard.checks.finding import WORST, Finding, describe_ball, plain_id
from pytest_triguard.checks.sanity import Sanity
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.sifting import labelled, sift
from pytest_triguard.running import Run


def measure_robustness(run: Run, attack: Attack) -> Finding:
    """Measure which samples an attack leaves standing; a misclassified one does not stand."""
    ids, fell, falls, sanity = _attacked(run, attack, None)
    out = np.isnan(fell)
    worst = falls.rows(run.model) or [
        {"id": plain_id(ids[place]), "misclassified": "before the attack"}
        for place in np.flatnonzero(out)[:WORST]
    ]
    return Finding(
        metric="robust accuracy",
        ids=ids,
        values=(fell == 0).astype(np.float64),
        counts={
            f"not falsified by {attack.name}": int((fell == 0).sum()),
            **{f"falsified by {name}": count for name, count in sanity.fell().items()},
            "misclassified before the attack": int(out.sum()),
        },
        undefined=0,
        subject="no class but the label in the "
        + describe_ball(attack.eps, attack.norm, run.samples.bounds),
        method=attack.describe(),
        parameters=attack.parameters(),
        diagnostics=_costs(run),
        warnings=sanity.warnings(),
        worst=worst,
        counterexamples=falls.examples,
    )


def measure_attack_success(run: Run, attack: Attack, target: int | None) -> Finding:
    """Measure how often an attack reaches its goal.

    Untargeted, samples misclassified before the attack do not count; targeted, samples whose
    label is the target do not.
    """
    ids, fell, falls, sanity = _attacked(run, attack, target)
    return Finding(
        metric="attack success",
        ids=ids,
        values=fell,
        counts=success_counts(fell, left_out(target)) | _broken_by(sanity),
        undefined=0,
        subject=f"{attack.name} reaches {goal(target)} in the "
        + describe_ball(attack.eps, attack.norm, run.samples.bounds),
        method=attack.describe(),
        parameters=attack.parameters() | {"target": target},
        diagnostics=_costs(run),
        warnings=sanity.warnings(),
        worst=falls.rows(run.model),
        counterexamples=falls.examples,
    )


def success_counts(values: Array, left_out: str) -> dict[str, int]:
    """Return the counts behind a rate of success; NaN marks samples that do not count."""
    return {
        "succeeded": int((values == 1).sum()),
        "did not succeed": int((values == 0).sum()),
        f"not counted ({left_out})": int(np.isnan(values).sum()),
    }


def others(batches: Iterable[Batch], target: int, columns: Columns) -> Iterator[Batch]:
    """Pass on the samples of other classes than the target, and book the rest as not counted."""
    for batch in batches:
        other = (labelled(batch) != target).tolist()
        out = batch.pick([place for place, flag in enumerate(other) if not flag])
        columns.add(out.positions, out.ids)
        yield batch.pick([place for place, flag in enumerate(other) if flag])


def _broken_by(sanity: Sanity) -> dict[str, int]:
    """Return what each attack of a cascade broke."""
    fell = sanity.fell()
    return {f"by {name}": count for name, count in fell.items()} if len(fell) > 1 else {}


def _costs(run: Run) -> dict[str, float]:
    """Return the passes of each attack of a cascade."""
    return {
        f"{kind} passes of {name}": float(count)
        for name, spent in run.model.spent_by.items()
        for kind, count in spent.to_dict().items()
    }


def _attacked(
    run: Run, attack: Attack, target: int | None
) -> tuple[list[Hashable], Array, Falls, Sanity]:
    """Attack the samples that count.

    Returns:
        Ids; 1 where a sample fell, 0 where not and NaN where it does not count; the first falls;
        and what speaks against the result.
    """
    attack.check_for(run, targeted=target is not None)
    run.tune(attack.passes_per_sample, gradients=attack.needs_gradients)
    columns, falls = Columns("fell"), Falls(attack, target)
    sanity = Sanity(run, attack, targeted=target is not None, sifted=target is None)
    for outcome in attack.stream(run.model, counted(run, target, columns)):
        fell = [float(each) for each in outcome.success]
        columns.add(outcome.positions, outcome.ids, fell=fell)
        falls.offer(outcome)
        sanity.offer(outcome)
    ids, found = columns.arrays()
    return ids, found["fell"], falls, sanity


def counted(run: Run, target: int | None, columns: Columns) -> Iterator[Batch]:
    """Pass on the samples that count, aimed at the target if there is one; book the others."""
    if target is None:
        return _correct(run.model, run.samples, columns)
    return _aimed(run.samples, target, columns)


def goal(target: int | None) -> str:
    """Return the goal in words."""
    return "another class" if target is None else f"class {target}"


def left_out(target: int | None) -> str:
    """Return why the samples that do not count do not."""
    return "misclassified before the attack" if target is None else "label is the target"


def _correct(model: Model, batches: Iterable[Batch], columns: Columns) -> Iterator[Batch]:
    for batch, out in sift(model, batches, _is_correct):
        columns.add(out.positions, out.ids, fell=math.nan)
        yield batch


def _is_correct(batch: Batch, logits: Tensor) -> Tensor:
    return logits.argmax(1) == labelled(batch)


def _aimed(batches: Iterable[Batch], target: int, columns: Columns) -> Iterator[Batch]:
    for batch in others(batches, target, columns):
        yield replace(batch, targets=torch.full_like(labelled(batch), target))
