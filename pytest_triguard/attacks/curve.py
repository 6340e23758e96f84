"""Robust accuracy at several radii, from one attack and with the work of each shared.

What is shared, and exact:

- Samples are predicted once. One that is misclassified stands at no radius, and at radius 0 every
  other one stands: there is nothing to attack.
- A sample that fell at one radius is not attacked at larger ones, as the same example lies in the
  larger ball. So a sample stands at a radius if no attack at this or a smaller radius that was
  asked for broke it.

What is not shared: a search never begins where one at another radius ended. Its result would
depend on which radii were asked for. Every search is the one that an attack at its radius alone
does, draw by draw. So the numbers are those of separate attacks, but for samples that an attack at
a larger radius misses after one at a smaller radius found them: separate attacks count them as
standing there, although they are not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.attacks.base import Attack, check_radii, require_attack
from pytest_triguard.attacks.cascade import metered
from pytest_triguard.engine.passes import Passes
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.sifting import labelled, sift
from pytest_triguard.errors import InputError
from pytest_triguard.running import Run, running
from pytest_triguard.statistics import Interval, clopper_pearson
from pytest_triguard.validation import describe, share


@dataclass(frozen=True)
class RobustCurve:
    """How many samples stand at each of several radii.

    Attributes:
        eps: The radii, rising.
        fell_at: `(N,)` float64 on the host, the smallest of the radii at which a sample fell;
            -1 where it was misclassified before, infinity where it stands at all of them.
        confidence: Two-sided confidence of the intervals.
        method: The attack in words.
        costs: Forward and backward passes of the attack at each radius.
        cost: Forward and backward passes in all, with those of the clean samples.
    """

    eps: tuple[float, ...]
    fell_at: Tensor
    confidence: float
    method: str
    costs: tuple[dict[str, int], ...]
    cost: dict[str, int]

    def standing(self, eps: float) -> Tensor:
        """Return which samples are classified correctly and stay so, `(N,)` bool on the host."""
        if eps not in self.eps:
            known = ", ".join(f"{each:g}" for each in self.eps)
            raise InputError(f"eps must be one of {known}, but {describe(eps)} came")
        return self.fell_at > eps

    def rate(self, eps: float) -> float:
        """Return the robust accuracy: the share of all samples that stand."""
        return int(self.standing(eps).sum()) / len(self.fell_at)

    def interval(self, eps: float) -> Interval:
        """Return the exact interval (Clopper and Pearson) of that share."""
        standing = self.standing(eps)
        return clopper_pearson(int(standing.sum()), len(standing), self.confidence)

    def __str__(self) -> str:
        """Return a table: a line per radius, with counts, interval in per cent, and passes."""
        lines = [self.method, "eps       standing   interval       backward passes"]
        for eps, cost in zip(self.eps, self.costs, strict=True):
            low, high = self.interval(eps)
            counts = f"{int(self.standing(eps).sum())}/{len(self.fell_at)}"
            shown = f"{100 * low:.1f} to {100 * high:.1f} %"
            lines.append(f"{eps:<9.4g} {counts:<10} {shown:<14} {cost['backward']}")
        return "\n".join(lines)


def robust_curve(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    attack: Attack,
    eps: Sequence[float],
    ids: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> RobustCurve:
    """Attack samples at several radii, each on what still stands.

    A sample that fell is not attacked again at larger radii, where the same example breaks it.
    Everything else is as in separate attacks: each search begins anew, with the same draws.

    Args:
        classifier: The `Classifier` under attack.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        attack: The attack; the radii take the place of its own.
        eps: The radii in input units, rising.
        ids: One unique id per sample, which random draws are keyed with; default: its place.
        confidence: Two-sided confidence of the intervals, in (0, 1).

    Returns:
        Robust accuracies with exact intervals, and the passes at each radius.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module breaks what a classifier promises.
    """
    require_attack(attack)
    radii, confidence = check_radii(eps), share("confidence", confidence)
    seed, draws = attack.drawn_seed, attack.averages
    with running(
        classifier, inputs, labels, ids=ids, seed=seed, needs_labels=True, may_draw=draws
    ) as run:
        stages = [replace(attack, eps=each) for each in radii]
        for each in stages:
            each.check_for(run)
        run.tune(attack.passes_per_sample * len(stages), gradients=attack.needs_gradients)
        fell_at, costs = _attacked(run, stages)
        return RobustCurve(
            eps=radii,
            fell_at=fell_at,
            confidence=confidence,
            method=attack.describe(),
            costs=costs,
            cost=run.model.passes.to_dict(),
        )


def _attacked(run: Run, stages: list[Attack]) -> tuple[Tensor, tuple[dict[str, int], ...]]:
    """Send samples through the radii; return where each fell, and the passes at each radius."""
    found: dict[int, float] = {}
    totals = [Passes() for _ in range(len(stages) + 1)]
    standing = metered(_correct(run, found), run.model, totals[0])
    for attack, total in zip(stages, totals[1:], strict=True):
        if attack.eps != 0:
            standing = _standing(run, attack, standing, found)
        standing = metered(standing, run.model, total)
    for batch in standing:
        found |= dict.fromkeys(batch.positions, torch.inf)
    fell_at = torch.tensor([found[place] for place in sorted(found)], dtype=torch.float64)
    pairs = zip(totals[1:], totals, strict=False)
    return fell_at, tuple((total - drawn).to_dict() for total, drawn in pairs)


def _correct(run: Run, found: dict[int, float]) -> Iterator[Batch]:
    """Hand on the samples that are classified correctly."""
    parted = sift(run.model, run.samples, lambda batch, logits: logits.argmax(1) == labelled(batch))
    for batch, out in parted:
        found |= dict.fromkeys(out.positions, -1.0)
        yield batch


def _standing(
    run: Run, attack: Attack, batches: Iterable[Batch], found: dict[int, float]
) -> Iterator[Batch]:
    """Hand on the samples that stand at a radius, as they were."""
    for outcome in attack.stream(run.model, batches):
        fell = zip(outcome.positions, outcome.success, strict=True)
        found |= {place: float(attack.eps) for place, won in fell if won}
        yield outcome.pick(
            [place for place, won in enumerate(outcome.success) if not won]
        ).samples()
