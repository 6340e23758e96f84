"""Examples crafted on one classifier and judged by others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.attacks.base import Attack, require_attack
from pytest_triguard.engine.sifting import clean_logits, labelled, require_finite
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.running import running
from pytest_triguard.statistics import Interval, clopper_pearson
from pytest_triguard.validation import describe, share


@dataclass(frozen=True)
class TransferMatrix:
    """How often examples crafted on one classifier fool another.

    Rows are the classifiers that examples were crafted on, columns those that judge them.
    Untargeted, a column counts the samples that its classifier got right before the attack;
    targeted, those whose label is not the target.

    Attributes:
        names: Names of the classifiers, in the order of rows and columns.
        succeeded: `(K, K, N)` bool on the host, whether the example of a sample reached its goal;
            False where the sample does not count.
        counted: `(K, N)` bool on the host, whether a sample counts for the classifier that judges.
        confidence: Two-sided confidence of the intervals.
        method: The attack in words.
    """

    names: tuple[str, ...]
    succeeded: Tensor
    counted: Tensor
    confidence: float
    method: str

    def rate(self, source: str, judge: str) -> float:
        """Return the share of successes, NaN where no sample counts."""
        successes, count = self._counts(source, judge)
        return successes / count if count else float("nan")

    def interval(self, source: str, judge: str) -> Interval:
        """Return the exact interval (Clopper and Pearson) of that share."""
        return clopper_pearson(*self._counts(source, judge), self.confidence)

    def _counts(self, source: str, judge: str) -> tuple[int, int]:
        row, column = self._place("source", source), self._place("judge", judge)
        return int(self.succeeded[row, column].sum()), int(self.counted[column].sum())

    def _place(self, argument: str, name: str) -> int:
        if name not in self.names:
            raise InputError(
                f"{argument} must be one of {', '.join(self.names)}, but {describe(name)} came"
            )
        return self.names.index(name)

    def __str__(self) -> str:
        """Return a table of rates with their intervals, in per cent."""
        cells = [["crafted on", *self.names]]
        cells.extend(
            [name, *(self._cell(name, judge) for judge in self.names)] for name in self.names
        )
        widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join([self.method, *lines])

    def _cell(self, source: str, judge: str) -> str:
        successes, count = self._counts(source, judge)
        if not count:
            return "none counts"
        low, high = self.interval(source, judge)
        return f"{successes}/{count} ({100 * low:.0f} to {100 * high:.0f} %)"


def transfer_matrix(
    classifiers: Any,
    attack: Attack,
    inputs: Any,
    labels: Any = None,
    *,
    targets: Any = None,
    ids: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> TransferMatrix:
    """Craft examples on each classifier and judge them with all.

    Args:
        classifiers: Name to `Classifier`, two or more, or a list of them, named by their place.
        attack: The attack. One with `stop="success"` leaves a sample at its first success on the
            classifier it is crafted on, where going on may carry over better.
        inputs: `(N, C, H, W)` floating tensor inside the bounds of all classifiers, or a Dataset
            or DataLoader, which is read once per classifier and attack.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        targets: Class to reach, one for all or `(N,)`; None for any class but the label.
        ids: One unique id per sample, which random draws are keyed with; default: its place.
        confidence: Two-sided confidence of the intervals, in (0, 1).

    Returns:
        Rates with exact intervals. The diagonal is the attack's own success.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If a module breaks what a classifier promises.
    """
    named = _named(classifiers)
    require_attack(attack)
    share("confidence", confidence)
    before = [_predicted(each, inputs, labels, ids) for each in named.values()]
    clean, truth = torch.stack([each for each, _ in before]), before[0][1]
    crafted = []
    for source in named.values():
        found = attack(source, inputs, labels, targets=targets, ids=ids).adversarial
        crafted.append([_predicted(judge, found, truth, ids)[0] for judge in named.values()])
    after = torch.stack([torch.stack(each) for each in crafted])
    if targets is None:
        counted, reached = clean == truth, after != truth
    else:
        goals = torch.as_tensor(targets).cpu()
        counted, reached = (goals != truth).expand_as(clean), after == goals
    return TransferMatrix(tuple(named), reached & counted, counted, confidence, attack.describe())


def _named(classifiers: Any) -> dict[str, Any]:
    """Return classifiers by name; `running` checks what each of them is."""
    if isinstance(classifiers, Mapping):
        named = {str(name): each for name, each in classifiers.items()}
    elif isinstance(classifiers, Iterable) and not isinstance(classifiers, str):
        named = {str(place): each for place, each in enumerate(classifiers)}
    else:
        raise InputTypeError(
            "classifiers must be a dict of names and classifiers, or a list of classifiers, but "
            f"{describe(classifiers)} came"
        )
    if len(named) < 2:
        raise InputError(f"classifiers must be two or more, but {len(named)} came")
    return named


@torch.no_grad()
def _predicted(
    classifier: Any, inputs: Any, labels: Any, ids: Sequence[Hashable] | None
) -> tuple[Tensor, Tensor]:
    """Return predictions and labels of all samples, each `(N,)` on the host."""
    predictions, truth = [], []
    with running(classifier, inputs, labels, ids=ids, needs_labels=True) as run:
        for batch, logits in clean_logits(run.model, run.samples):
            finite = logits.isfinite().all(1).cpu().numpy()
            require_finite(list(batch.ids), finite, "logits")
            predictions.append(logits.argmax(1).cpu())
            truth.append(labelled(batch).cpu())
    return torch.cat(predictions), torch.cat(truth)
