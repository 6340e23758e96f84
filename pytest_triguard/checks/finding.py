"""What a check found, before the gate judges it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_triguard.checks.columns import Array
from pytest_triguard.verification import Certificate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pytest_triguard.running import Run

WORST = 5
"""How many of the worst samples a record names."""


@dataclass(frozen=True)
class Counterexample:
    """An input that breaks a property of a sample, with what is needed to check it again.

    Attributes:
        sample: Id of the sample.
        clean: `(C, H, W)` the sample.
        broken: `(C, H, W)` the input that breaks it.
        label: Label of the sample.
        eps: Radius of the ball `broken` is to be in, or None where there is no ball.
        norm: Norm of the ball.
        target: Class `broken` is to be predicted as, or None for any but the label.
    """

    sample: Hashable
    clean: Tensor
    broken: Tensor
    label: int
    eps: float | None = None
    norm: str = "linf"
    target: int | None = None


@dataclass
class Finding:
    """Per-sample values and what is known about them.

    Attributes:
        metric: What was measured, such as `robust accuracy`.
        ids: Sample ids in the order of the data.
        values: `(N,)` float64; NaN where a sample does not count or is undefined.
        counts: Counts by name.
        undefined: Number of samples for which the metric is undefined.
        subject: What was asked of each sample, in words and units.
        method: How it was answered, and at what budget.
        parameters: Method and parameters as plain values: what was asked, not what was found.
        diagnostics: Numbers the method says about itself, such as its completeness error.
        warnings: Signs that the number cannot be relied on, by name, each as a sentence.
        worst: The worst samples, worst first: id, and what is known about each.
        unknown: Number of samples whose value is not known although it is defined.
        counterexamples: Makes the inputs worth saving, when the check fails.
        statistic: Statistic of the values that is judged, or None for a rate.
        certificates: Proofs worth saving, whether the check fails or not.
        picture: Draws one sample, which the run holds alone, under a title; None where there is
            nothing to see.
    """

    metric: str
    ids: list[Hashable]
    values: Array
    counts: dict[str, int]
    undefined: int
    subject: str
    method: str
    parameters: dict[str, Any]
    diagnostics: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    worst: list[dict[str, Any]] = field(default_factory=list)
    unknown: int = 0
    counterexamples: Callable[[], list[Counterexample]] = list
    statistic: str | None = None
    certificates: Sequence[Certificate] = ()
    picture: Callable[[Run, str], Figure] | None = None


class Worst:
    """Keeps the few worst things seen, by a score that is larger the worse."""

    def __init__(self, keep: int = WORST) -> None:
        self._keep = keep
        self._kept: list[tuple[float, int, Any]] = []

    def offer(self, score: float, position: int, thing: Callable[[], Any]) -> None:
        """Keep a thing if it is among the worst; of equals the first in the data is."""
        rank = (score, -position)
        if len(self._kept) == self._keep and rank <= self._kept[-1][:2]:
            return
        self._kept.append((*rank, thing()))
        self._kept.sort(key=lambda kept: kept[:2], reverse=True)
        del self._kept[self._keep :]

    def things(self) -> list[Any]:
        """Return what was kept, worst first."""
        return [thing for _, _, thing in self._kept]


def rows(ids: list[Hashable], places: Sequence[int], **columns: Array) -> list[dict[str, Any]]:
    """Return what a report says about some samples: the id, and the value of each column.

    Args:
        ids: Sample ids in the order of the data.
        places: Which samples, worst first.
        **columns: `(N,)` numbers by name.
    """
    return [
        {"id": plain_id(ids[place])}
        | {name: values[place].item() for name, values in columns.items()}
        for place in places
    ]


def worst_places(values: Array, *, largest: bool) -> list[int]:
    """Return the places of the worst defined values, worst first."""
    order = np.argsort(-values if largest else values, kind="stable")[:WORST]
    return [int(place) for place in order if not np.isnan(values[place])]


def plain_id(sample_id: Hashable) -> int | str:
    """Return a sample id as a plain value."""
    whole = isinstance(sample_id, Integral) and not isinstance(sample_id, bool)
    return int(sample_id) if whole else str(sample_id)  # type: ignore[call-overload]


def plain_value(value: Any) -> Any:
    """Return an argument as a plain value: numbers and text of numpy, and members of enumerations.

    What is none of these stays as it is, also within dicts, lists and tuples.
    """
    if isinstance(value, dict):
        return {plain_value(key): plain_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, float) else value


def describe_ball(eps: float | Tensor, norm: str, bounds: tuple[tuple[float, ...], ...]) -> str:
    """Return a ball in words and units: `L-inf ball of eps 0.1 (input units, range [0, 1])`."""
    if isinstance(eps, Tensor):
        low, high = (float(each) for each in torch.aminmax(eps))
        size = f"eps {low:g} to {high:g}, one per sample"
    else:
        size = f"eps {float(eps):g}"
    name = {"linf": "L-inf", "l2": "L2", "l1": "L1"}[norm]
    return f"{name} ball of {size} (input units, range [{min(bounds[0]):g}, {max(bounds[1]):g}])"
