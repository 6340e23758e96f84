"""Whether an attack reached its goal on a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import Facts
from pytest_triguard.metrics.base import Metric, check_beside
from pytest_triguard.validation import describe, whole


@dataclass(frozen=True, kw_only=True)
class AttackSuccess(Metric):
    """1 where an attack or a backdoor's trigger reached its goal, 0 where it did not.

    Without targets the goal is any class but the label, and a sample that was misclassified
    before the attack is undefined, and so outside the denominator of the rate. With targets the
    goal is the target, and a sample whose label is the target is undefined.
    """

    name: ClassVar[str] = "attack_success"
    facts: ClassVar[Facts] = Facts(cost="none", sign="lower is better for the classifier")

    @property
    def title(self) -> str:
        """What reports call the number."""
        return "attack success"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "misclassified before the attack, or with targets labelled as the target"

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(0, 1)`."""
        return 0.0, 1.0

    def __call__(
        self,
        before: Tensor,
        after: Tensor,
        labels: Tensor,
        targets: int | Tensor | None = None,
    ) -> Tensor:
        """Return the success on each sample.

        Args:
            before: `(N,)` integer, classes predicted before the attack.
            after: `(N,)` integer, classes predicted after it.
            labels: `(N,)` integer, true classes.
            targets: Class to reach, one for all or `(N,)` integer; None for any but the label.

        Returns:
            `(N,)` float32 on the device of `before`: 1, 0, or NaN where undefined.

        Raises:
            InputTypeError: If one is no integer tensor.
            InputError: If shapes or devices do not agree.
        """
        _check_classes("before", before, like=None)
        _check_classes("after", after, like=before)
        _check_classes("labels", labels, like=before)
        if targets is None:
            counted, success = before == labels, after != labels
        else:
            if isinstance(targets, Tensor):
                _check_classes("targets", targets, like=before)
            else:
                targets = whole("targets", targets)
            counted, success = labels != targets, after == targets
        return success.to(torch.float32).masked_fill(~counted, math.nan)


def _check_classes(name: str, value: Any, *, like: Tensor | None) -> None:
    if like is not None:
        check_beside(name, value, like.shape, reference="before", like=like)
    if not isinstance(value, Tensor):
        raise InputTypeError(f"{name} must be an integer tensor (N,), but {describe(value)} came")
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise InputTypeError(f"{name} must be integers, but {describe(value)} came")
    if value.ndim != 1:
        raise InputError(f"{name} must have shape (N,), but {describe(value)} came")
