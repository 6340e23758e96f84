"""What a verifier may spend: time, domains, steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pytest_triguard.errors import InputTypeError
from pytest_triguard.validation import describe, number, whole

DEFAULT_SECONDS = 1.0
"""Seconds per sample where a cascade is given no budget."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent on the samples that cheap bounds leave open.

    More time can only decide more: it never changes a decision.

    Samples are worked on together, and each is charged its share of the time that this takes: the
    same for all in a bound, by passes in an attack, by parts in a branch and bound. A sample whose
    seconds are spent is left, and what it did not decide is not taken from its neighbours. A bound
    that looks at several samples at once goes on as long as their seconds together last.

    Args:
        seconds: Seconds per sample, or None for no limit.
        total: Seconds for all samples of a check, or None for no limit.
        domains: Parts that branch and bound may bound per sample, one more at most, or None for
            no limit.
        steps: Steps of each optimisation of relaxations.
    """

    seconds: float | None = None
    total: float | None = None
    domains: int | None = None
    steps: int = 20

    def __post_init__(self) -> None:
        if self.seconds is not None:
            number("budget.seconds", self.seconds, low=0, low_open=True)
        if self.total is not None:
            number("budget.total", self.total, low=0, low_open=True)
        if self.domains is not None:
            whole("budget.domains", self.domains, low=1)
        whole("budget.steps", self.steps, low=1)

    def describe(self) -> str:
        """Return the budget in words."""
        parts = []
        if self.seconds is not None:
            parts.append(f"{self.seconds:g} s per sample")
        if self.total is not None:
            parts.append(f"{self.total:g} s in all")
        if self.domains is not None:
            parts.append(f"{self.domains:,} domain{'s' * (self.domains > 1)} per sample")
        return ", ".join(parts) or "no time limit"


def parse(budget: Any, default: float | None) -> Budget:
    """Return the budget that an argument describes.

    Args:
        budget: Seconds per sample, a `Budget`, or None for the default.
        default: Seconds per sample, or None for no limit.

    Raises:
        InputTypeError: If it is neither.
        InputError: If a value is refused.
    """
    if budget is None:
        return Budget(seconds=default)
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise InputTypeError(
            f"budget must be seconds per sample or a Budget, but {describe(budget)} came"
        )
    number("budget", budget, low=0, low_open=True)
    return Budget(seconds=float(budget))


class BudgetSpent(Exception):
    """Time ran out in the midst of a bound."""


@dataclass(frozen=True)
class Clock:
    """A limit in time, looked at while bounding.

    Args:
        until: Reading of `time.perf_counter` at which time is over, or None for never.
    """

    until: float | None = None

    @staticmethod
    def of(seconds: float | None) -> Clock:
        """Return a clock that runs from now, or one that never ends."""
        return Clock(None if seconds is None else time.perf_counter() + seconds)

    @property
    def left(self) -> float | None:
        """Seconds left, or None where there is no limit."""
        return None if self.until is None else self.until - time.perf_counter()

    @property
    def over(self) -> bool:
        """Whether time is over."""
        return self.until is not None and time.perf_counter() >= self.until

    def check(self) -> None:
        """Raise `BudgetSpent` if time is over."""
        if self.over:
            raise BudgetSpent
