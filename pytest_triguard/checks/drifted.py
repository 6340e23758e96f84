"""How far explanations drift: between baselines, and from a sample to its adversarial example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_triguard import attacks, pictures
from pytest_triguard.attacks import Attack
from pytest_triguard.attributions import Attribution
from pytest_triguard.attributions.base import known_targets, with_logits, with_targets
from pytest_triguard.checks.columns import Array, Columns
from pytest_triguard.checks.explained import About, finding_of
from pytest_triguard.checks.finding import Finding, describe_ball
from pytest_triguard.checks.maps import Maps, blocks
from pytest_triguard.checks.pictured import side_by_side, visible
from pytest_triguard.engine.baselines import BASELINES, check_baseline
from pytest_triguard.engine.equality import fingerprint
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import InputError, InputTypeError, nearest
from pytest_triguard.metrics.base import Metric
from pytest_triguard.running import Run
from pytest_triguard.validation import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Ends(ABC):
    """What the maps of one sample are compared between."""

    @abstractmethod
    def begin(self, run: Run, attribution: Attribution) -> None:
        """Find the chunk, and refuse what cannot be compared."""

    @abstractmethod
    def maps(
        self, run: Run, attribution: Attribution, about: About
    ) -> Iterator[tuple[Batch, list[Tensor]]]:
        """Yield blocks of samples with their maps, `(n, C, H, W)`, two or more."""

    @abstractmethod
    def tell(self, finding: Finding, run: Run, pair: Array | None) -> None:
        """Say in a finding what was compared.

        Args:
            finding: What was found.
            run: The classifier and the samples.
            pair: `(N,)` place, among all pairs of maps, of the two furthest apart; None where there
                is one pair.
        """

    @abstractmethod
    def picture(self, attribution: Attribution, run: Run, title: str) -> Figure:
        """Draw the maps of a single sample."""


@dataclass(frozen=True)
class Baselines(Ends):
    """Maps from two or more baselines; of more than two, the pair that lies furthest apart."""

    each: tuple[str | Tensor, ...]

    @property
    def names(self) -> list[str]:
        """The baselines in words."""
        return [each if isinstance(each, str) else describe(each) for each in self.each]

    def begin(self, run: Run, attribution: Attribution) -> None:
        """Find the chunk."""
        run.tune(len(self.each) * attribution.passes_per_sample)

    def maps(
        self, run: Run, attribution: Attribution, about: About
    ) -> Iterator[tuple[Batch, list[Tensor]]]:
        """Yield blocks of samples with a map for each baseline."""
        model, methods = run.model, self._methods(attribution)
        explained = [Maps(run, method) for method in methods]
        for source, block in blocks(run):
            batch = with_logits(model, with_targets(model, block))  # every method asks for them
            maps = [each.explain(source, batch) for each in explained]
            for method, each in zip(methods, maps, strict=True):
                about.add(method.diagnostics(model, batch, each))
            yield batch, maps

    def tell(self, finding: Finding, run: Run, pair: Array | None) -> None:
        """Name the baselines and, of more than two, how often each pair was the worst."""
        finding.parameters["between"] = [
            fingerprint(each) if isinstance(each, Tensor) else each for each in self.each
        ]
        if pair is None:
            finding.subject += f" between the baselines {' and '.join(self.names)}"
            return
        finding.metric = f"worst-pair {finding.metric}"
        among = f"{', '.join(self.names[:-1])} and {self.names[-1]}"
        finding.subject += f" between the two furthest apart of the baselines {among}"
        pairs, defined = combinations(self.names, 2), pair[~np.isnan(finding.values)]
        finding.diagnostics |= {
            f"samples furthest apart between {first} and {second}": float((defined == place).sum())
            for place, (first, second) in enumerate(pairs)
        }

    def picture(self, attribution: Attribution, run: Run, title: str) -> Figure:
        """Draw the maps side by side."""
        model, (first, *others) = run.model, self._methods(attribution)
        batch, maps = next(first.stream(model, run.samples))
        found = [maps[0], *(other.explain(model, batch)[0] for other in others)]
        return side_by_side(
            model, batch.inputs[0], list(zip(self.names, found, strict=True)), title
        )

    def _methods(self, attribution: Attribution) -> list[Attribution]:
        changes: list[dict[str, Any]] = [{"baseline": each} for each in self.each]
        return [replace(attribution, **changed) for changed in changes]


@dataclass(frozen=True)
class CleanAndAttacked(Ends):
    """The map of a sample, and that of its adversarial example."""

    attack: Attack

    def begin(self, run: Run, attribution: Attribution) -> None:
        """Find the chunk; the attack must suit the run."""
        self.attack.check_for(run)
        run.tune(2 * attribution.passes_per_sample + self.attack.passes_per_sample)

    def maps(
        self, run: Run, attribution: Attribution, about: About
    ) -> Iterator[tuple[Batch, list[Tensor]]]:
        """Yield blocks of samples with both maps."""
        for both in self._samples(run):
            yield both[0], [attribution.explain(run.model, each) for each in both]

    def tell(self, finding: Finding, run: Run, pair: Array | None) -> None:
        """Name the ball and the attack."""
        attack = self.attack
        ball = describe_ball(attack.eps, attack.norm, run.samples.bounds)
        finding.subject += f" from a sample to its adversarial example in the {ball}"
        finding.parameters["between"] = ["clean", attack.parameters()]
        finding.metric = f"adversarial {finding.metric}"
        finding.method += f"; {attack.describe()}"

    def picture(self, attribution: Attribution, run: Run, title: str) -> Figure:
        """Draw how one map becomes the other."""
        model, both = run.model, next(self._samples(run))
        images = [visible(model, each.inputs[0]) for each in both]
        maps = [attribution.explain(model, each)[0] for each in both]
        return pictures.displacement(*images, *maps, title=title)

    def _samples(self, run: Run) -> Iterator[tuple[Batch, Batch]]:
        """Yield samples and their adversarial examples, block by block."""
        model = run.model
        # Outcomes come a few at a time; side by side as channels they are gathered to full blocks.
        attacked = self._attacked(model, run.samples)
        for both in Feed(attacked, model.device).blocks(model.chunk.rows):
            inputs, points = both.inputs.chunk(2, dim=1)
            yield replace(both, inputs=inputs), replace(both, inputs=points)

    def _attacked(self, model: Model, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield samples and adversarial examples, `(n, 2 C, H, W)`, with the explained class."""
        for outcome in self.attack.stream(model, _labelled_as_explained(model, batches)):
            yield Batch(
                positions=tuple(outcome.positions),
                ids=tuple(outcome.ids),
                keys=outcome.keys,
                inputs=torch.cat([outcome.clean, outcome.points], dim=1),
                targets=outcome.labels,
            )


def parse_between(between: Any, attribution: Attribution, seed: int) -> Ends:
    """Return what the `between` argument of a drift check asks for.

    Raises:
        InputTypeError: If it is no sequence of two or more, or a part has the wrong type.
        InputError: If a name is unknown or stands twice, or the method has no baseline.
    """
    if not isinstance(between, tuple | list) or len(between) < 2:
        raise InputTypeError(
            "between must be two or more baselines or ('clean', attack), but "
            f"{describe(between)} came"
        )
    if isinstance(between[0], str) and between[0] == "clean":
        return _parse_attack(between, seed)
    if "baseline" not in {each.name for each in fields(attribution)}:
        raise InputError(
            f"between must be ('clean', attack) for {attribution.name}, which has no baseline, but "
            f"{describe(between)} came"
        )
    for place, each in enumerate(between):
        if isinstance(each, str) and each not in BASELINES:
            choices = ", ".join(repr(name) for name in (*BASELINES, "clean"))
            hint = nearest(each, BASELINES)
            raise InputError(f"between must name some of {choices}, but {each!r} came{hint}")
        check_baseline("between", each)
        if isinstance(each, str) and each in between[:place]:
            raise InputError(
                f"between must name each of several baselines once, but {each!r} came twice"
            )
    return Baselines(tuple(between))


def _parse_attack(between: Any, seed: int) -> CleanAndAttacked:
    if len(between) != 2:
        raise InputTypeError(
            f"between must hold one attack after 'clean', but {describe(between)} came"
        )
    attack = attacks.get(between[1]) if isinstance(between[1], str) else between[1]
    if not isinstance(attack, Attack):
        raise InputTypeError(
            "between must name an attack after 'clean', or hold one, but "
            f"{describe(between[1])} came"
        )
    return CleanAndAttacked(attack if attack.seed is not None else replace(attack, seed=seed))


def measure_drift(run: Run, attribution: Attribution, metric: Metric, between: Ends) -> Finding:
    """Measure how far each map moves; the explained class is held fixed."""
    between.begin(run, attribution)
    columns, about = Columns(), About(run)
    for batch, maps in between.maps(run, attribution, about):
        apart = torch.stack([metric(*pair) for pair in combinations(maps, 2)])
        columns.add(
            batch.positions,
            batch.ids,
            value=apart.amax(0),
            explained=known_targets(batch),
            finite=torch.stack([attribution.sound(each) for each in maps]).all(0),
            missing=torch.stack([attribution.missing(each) for each in maps]).any(0),
            **({"pair": apart.argmax(0)} if len(apart) > 1 else {}),
        )
    ids, found = columns.arrays()
    subject = f"drift of the {attribution.name} map of one class"
    finding = finding_of(ids, found, metric, about, attribution, subject)
    between.tell(finding, run, found.get("pair"))
    finding.picture = partial(between.picture, attribution)
    return finding


def _labelled_as_explained(model: Model, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Label samples with the class that is explained, so that the attack moves away from it."""
    for block in Feed(batches, model.device).blocks(model.chunk.rows):
        batch = with_targets(model, block)
        yield replace(batch, labels=batch.targets, targets=None)
