"""How often examples crafted on other classifiers fool the one under test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pytest_triguard.attacks import Attack
from pytest_triguard.checks.attacked import counted, goal, left_out, success_counts
from pytest_triguard.checks.beside import beside
from pytest_triguard.checks.clean import predictions
from pytest_triguard.checks.columns import Array, Columns
from pytest_triguard.checks.falls import Falls
from pytest_triguard.checks.finding import Finding, describe_ball
from pytest_triguard.checks.sanity import Sanity
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.sifting import require_finite
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.running import Run
from pytest_triguard.validation import describe


@dataclass(frozen=True)
class _Source:
    """A classifier that examples are crafted on.

    Attributes:
        name: Its fingerprint.
        run: The classifier, ready to run, and the samples of the check.
        sanity: What speaks against the attack on it.
    """

    name: str
    run: Run
    sanity: Sanity


def parse_source(source: Any) -> tuple[Classifier, ...]:
    """Return the classifiers that examples are crafted on.

    Raises:
        InputTypeError: If it is neither a classifier nor a list of classifiers.
        InputError: If the list is empty, or holds one classifier twice.
    """
    several = tuple(source) if isinstance(source, list | tuple) else (source,)
    for each in several:
        if not isinstance(each, Classifier):
            raise InputTypeError(
                f"source must be a Classifier or a list of them, but {describe(each)} came"
            )
    if not several:
        raise InputError("source must hold at least one classifier, but an empty list came")
    if len({each.fingerprint() for each in several}) < len(several):
        raise InputError("source must hold different classifiers, but two of them are the same")
    return several


def measure_transfer(
    run: Run, sources: Sequence[Classifier], attack: Attack, target: int | None
) -> Finding:
    """Measure how often the classifier is fooled by an example crafted on any of the sources.

    Examples of a sample are crafted on one source after the other until one fools the classifier.
    Which samples count is up to the classifier alone.
    """
    columns, falls = Columns("fell", "source"), Falls(attack, target)
    with ExitStack() as stack:
        held = [_held(stack, run, each, attack, target) for each in sources]
        _tune_alike(run, held, attack)
        standing = counted(run, target, columns)
        for place, source in enumerate(held):
            outcomes = _judged(run, _crafted(source, attack, standing), target)
            by = source.name if len(held) > 1 else ""
            standing = _standing(outcomes, columns, falls, place, by)
        for batch in standing:
            columns.add(batch.positions, batch.ids, fell=0.0)
    costs = _costs(run, held)
    ids, found = columns.arrays()
    return Finding(
        metric="transfer success",
        ids=ids,
        values=found["fell"],
        counts=success_counts(found["fell"], left_out(target)) | _by_source(found, held),
        undefined=0,
        subject=f"{attack.name} on {_some(len(held))} leads this one to {goal(target)} in the "
        + describe_ball(attack.eps, attack.norm, run.samples.bounds),
        method=attack.describe(),
        parameters=attack.parameters()
        | {"target": target, "sources": [each.name for each in held]},
        diagnostics=costs,
        warnings=_warnings(held),
        worst=falls.rows(run.model),
        counterexamples=falls.examples,
    )


def _held(
    stack: ExitStack, run: Run, source: Classifier, attack: Attack, target: int | None
) -> _Source:
    """Hold a source ready on the device of the classifier.

    Raises:
        InputError: If its range, dtype or number of classes is not the classifier's.
    """
    model = stack.enter_context(
        beside("source", source, run, seed=attack.drawn_seed, may_draw=attack.averages)
    )
    own, targeted = replace(run, model=model), target is not None
    attack.check_for(own, targeted=targeted)
    sanity = Sanity(own, attack, targeted=targeted, sifted=False)
    return _Source(source.fingerprint(), own, sanity)


def _tune_alike(run: Run, sources: list[_Source], attack: Attack) -> None:
    """Choose one chunk for all: one number in the record says how to get the same results."""
    first = sources[0].run
    first.tune(attack.passes_per_sample, gradients=attack.needs_gradients)
    for each in (run, *(source.run for source in sources)):
        each.model.chunk.used = first.model.chunk.used


def _crafted(source: _Source, attack: Attack, batches: Iterable[Batch]) -> Iterator[Outcome]:
    for outcome in attack.stream(source.run.model, batches):
        source.sanity.offer(outcome)
        yield replace(outcome, path={})


def _judged(run: Run, outcomes: Iterator[Outcome], target: int | None) -> Iterator[Outcome]:
    """Put the success on the classifier in place of that on the source, chunk by chunk."""
    waiting: list[Outcome] = []
    for outcome in outcomes:
        waiting.append(outcome)
        if sum(len(each.positions) for each in waiting) >= run.model.chunk.rows:
            yield from _judged_together(run, waiting, target)
            waiting = []
    if waiting:
        yield from _judged_together(run, waiting, target)


@torch.no_grad()
def _judged_together(run: Run, outcomes: list[Outcome], target: int | None) -> Iterator[Outcome]:
    """Judge some outcomes with one read from the device."""
    classes, finite = predictions(run.model, torch.cat([each.points for each in outcomes]))
    labels = torch.cat([each.labels for each in outcomes])
    reached = classes != labels if target is None else classes == target
    won, whole = torch.stack([reached, finite]).tolist()
    require_finite(
        [each for outcome in outcomes for each in outcome.ids], np.array(whole), "logits"
    )
    for outcome in outcomes:
        count = len(outcome.positions)
        yield replace(outcome, success=won[:count])
        won = won[count:]


def _standing(
    outcomes: Iterator[Outcome], columns: Columns, falls: Falls, place: int, by: str
) -> Iterator[Batch]:
    """Book the samples that fooled the classifier, and pass on the others as they were."""
    for outcome in outcomes:
        fell = replace(outcome.pick([at for at, won in enumerate(outcome.success) if won]), by=by)
        columns.add(fell.positions, fell.ids, fell=1.0, source=float(place))
        falls.offer(fell)
        yield outcome.pick([at for at, won in enumerate(outcome.success) if not won]).samples()


def _some(count: int) -> str:
    return "another classifier" if count == 1 else f"any of {count} other classifiers"


def _by_source(found: dict[str, Array], sources: list[_Source]) -> dict[str, int]:
    """Return how many samples each source brought down of those it was given."""
    if len(sources) == 1:
        return {}
    return {
        f"crafted on {source.name}": int((found["source"] == place).sum())
        for place, source in enumerate(sources)
    }


def _costs(run: Run, sources: list[_Source]) -> dict[str, float]:
    """Count the passes of the sources in, and return them by source."""
    for source in sources:
        run.model.passes.add(source.run.model.passes)
    return {
        f"{kind} passes on {source.name}": float(count)
        for source in sources
        for kind, count in source.run.model.passes.to_dict().items()
    }


def _warnings(sources: list[_Source]) -> dict[str, str]:
    """Return what speaks against the attack on the sources; of equal names the first source's."""
    found: dict[str, str] = {}
    for source in sources:
        for name, said in source.sanity.warnings().items():
            found.setdefault(name, f"{said} (on the source {source.name})")
    return found
