"""Several attacks, one after the other, each on the samples that still stand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from pytest_triguard.attacks.base import Attack
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.passes import Passes
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import describe

Item = TypeVar("Item", Outcome, Batch)

_Before = tuple[int, bool]
"""Passes that a sample took in earlier attacks, and whether a loss was still rising in one."""

_WINDOW = 16
"""Chunks of samples that go through the cascade together: what fell waits for the rest of them."""


@dataclass(frozen=True, kw_only=True)
class Cascaded(Attack):
    """What a fixed cascade and a cascade of one's own share."""

    @property
    @abstractmethod
    def chosen(self) -> Sequence[Attack]:
        """The attacks in order, whatever ball they bring."""

    @cached_property
    def members(self) -> tuple[Attack, ...]:
        """The attacks in order, in the ball of the cascade."""
        return tuple(
            replace(
                each,
                eps=self.eps,
                norm=self.norm,
                seed=self.seed if each.seed is None else each.seed,
            )
            for each in self.chosen
        )

    @property
    def takes_targets(self) -> bool:
        """Whether every attack can aim at a class."""
        return all(each.takes_targets for each in self.members)

    @property
    def needs_gradients(self) -> bool:
        """Whether any attack follows gradients."""
        return any(each.needs_gradients for each in self.members)

    @property
    def averages(self) -> bool:
        """Whether every attack averages over passes."""
        return all(each.averages for each in self.members)

    @property
    def passes_per_sample(self) -> int:
        """Most passes a sample can take, all attacks together."""
        return sum(each.passes_per_sample for each in self.members)

    def describe(self) -> str:
        """Return the attacks in words, for reports."""
        names = ", ".join(each.name for each in self.members)
        return f"{self.name}: {names}, each on what still stands, seed {self.drawn_seed}"

    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""
        feed = Feed(batches, model.device)
        while window := feed.take(_WINDOW * model.chunk.rows):
            yield from self._window(model, window)

    def _window(self, model: Model, window: list[Batch]) -> Iterator[Outcome]:
        """Send samples through all attacks: each draws what it needs from the one before."""
        targeted = window[0].targets is not None
        members = fitting(self.members, model, targeted=targeted)
        fell: list[Outcome] = []
        before: dict[int, _Before] = {}
        totals = [Passes() for _ in members]
        standing: Iterable[Batch] = window
        for attack, total in zip(members[:-1], totals, strict=False):
            outcomes = metered(attack.stream(model, standing), model, total)
            standing = _standing(outcomes, attack, fell, before)
        last = members[-1]
        for outcome in metered(last.stream(model, standing), model, totals[-1]):
            yield _finished(outcome, last, before)
        yield from fell
        for attack, total, drawn in zip(members, totals, [Passes(), *totals], strict=False):
            model.spent_by.setdefault(attack.name, Passes()).add(total - drawn)


@dataclass(frozen=True, kw_only=True)
class Cascade(Cascaded):
    """Attacks of your choice, one after the other, each on the samples that still stand.

    Attacks that are not defined for so few classes are left out; a check says so.

    Args:
        attacks: The attacks in order, as `attacks.get` returns them. The eps and norm of the
            cascade take the place of theirs. None may keep its trajectory.

    Example:
        >>> from pytest_triguard import attacks
        >>> quick = attacks.get("pgd", steps=10), attacks.get("square", queries=500)
        >>> attacks.Cascade(attacks=quick, eps=8 / 255).describe()
        'cascade: pgd, square, each on what still stands, seed 0'
    """

    name: ClassVar[str] = "cascade"

    attacks: Sequence[Attack]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.attacks, str) or not isinstance(self.attacks, Sequence):
            raise InputTypeError(
                f"attacks must be a list of attacks, but {describe(self.attacks)} came"
            )
        for each in self.attacks:
            if not isinstance(each, Attack):
                raise InputTypeError(
                    f"attacks must hold attacks, but {describe(each)} came; attacks.get(name, "
                    "...) makes one"
                )
            if getattr(each, "trajectory", False):
                raise InputError(
                    f"attacks must not keep trajectories in a cascade, but {each.name!r} with "
                    "trajectory=True came"
                )
        if not self.attacks:
            raise InputError("attacks must hold at least one attack, but an empty list came")
        object.__setattr__(self, "attacks", tuple(self.attacks))
        _ = self.members  # refuses a norm that one of them is not defined for

    @property
    def chosen(self) -> Sequence[Attack]:
        """The attacks in order, whatever ball they bring."""
        return self.attacks

    def classes_needed(self, *, targeted: bool) -> int:
        """Return the fewest classes that any of the attacks is defined for."""
        return min(each.classes_needed(targeted=targeted) for each in self.members)

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        return super().parameters() | {"attacks": [each.parameters() for each in self.members]}


def fitting(attacks: Sequence[Attack], model: Model, *, targeted: bool) -> list[Attack]:
    """Return the attacks that are defined for as many classes as the network has."""
    classes = model.num_classes
    return [
        each
        for each in attacks
        if classes is None or each.classes_needed(targeted=targeted) <= classes
    ]


def metered(items: Iterator[Item], model: Model, total: Passes) -> Iterator[Item]:
    """Hand on outcomes or samples, and book the passes they took.

    Booked are also the passes of whatever they are drawn from.
    """
    while True:
        before = model.passes.copy()
        item = next(items, None)
        total.add(model.passes - before)
        if item is None:
            return
        yield item


def _standing(
    outcomes: Iterator[Outcome], attack: Attack, fell: list[Outcome], before: dict[int, _Before]
) -> Iterator[Batch]:
    """Hand on the samples that an attack left standing; set aside the outcomes of the others."""
    for each in outcomes:
        outcome = _finished(each, attack, before)
        broken = [place for place, won in enumerate(outcome.success) if won]
        if broken:
            fell.append(outcome.pick(broken))
        if len(broken) == len(outcome.positions):
            continue
        left = outcome.pick([place for place, won in enumerate(outcome.success) if not won])
        before |= zip(left.positions, zip(left.passes, left.rising, strict=True), strict=True)
        yield left.samples()


def _finished(outcome: Outcome, attack: Attack, before: dict[int, _Before]) -> Outcome:
    """Return an outcome with the name of its attack, and what was known before counted in."""
    known = [before.get(position, (0, False)) for position in outcome.positions]
    return replace(
        outcome,
        by=attack.name,
        passes=[own + spent for own, (spent, _) in zip(outcome.passes, known, strict=True)],
        rising=[
            rose or (own and attack.needs_gradients)
            for own, (_, rose) in zip(outcome.rising, known, strict=True)
        ],
    )
