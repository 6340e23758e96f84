"""The arguments of assertions: methods by name or as they are, classes and thresholds in reach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from pytest_triguard import attacks, attributions, metrics
from pytest_triguard.attacks import Attack
from pytest_triguard.attributions import Attribution
from pytest_triguard.backdoors import Trigger
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.gate import check_threshold
from pytest_triguard.record import Relation
from pytest_triguard.running import Run
from pytest_triguard.validation import describe, whole

Seeded = TypeVar("Seeded", Attack, Attribution)


def chosen_attack(attack: Any, seed: int, *, eps: Any, norm: str | None = None) -> Attack:
    """Return the attack an assertion asks for, by name or as it is.

    Raises:
        InputTypeError: If it is neither a name nor an attack.
        InputError: If an attack object disagrees with the eps or norm given beside it.
    """
    if isinstance(attack, str):
        if eps is None:
            raise InputError(f"eps must be given for the attack {attack!r}, but none came")
        given = {} if norm is None else {"norm": norm}
        return attacks.get(attack, eps=eps, seed=seed, **given)
    if not isinstance(attack, Attack):
        raise InputTypeError(
            f"attack must be a name or an attack, but {describe(attack)} came; "
            "attacks.get(name, ...) makes one"
        )
    if eps is not None and not _same(attack.eps, eps):
        raise InputError(
            f"eps must agree with the attack's own, {describe(attack.eps)}, but "
            f"{describe(eps)} came"
        )
    if norm is not None and attack.norm != norm:
        raise InputError(
            f"norm must agree with the attack's own, but {norm!r} came; give norm={attack.norm!r}"
        )
    return _seeded(attack, seed)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def chosen_attribution(attribution: Any, seed: int) -> Attribution:
    """Return the attribution an assertion asks for, by name or as it is.

    Raises:
        InputTypeError: If it is neither a name nor an attribution.
    """
    if isinstance(attribution, str):
        return attributions.get(attribution, seed=seed)
    if not isinstance(attribution, Attribution):
        raise InputTypeError(
            f"attribution must be a name or an attribution, but {describe(attribution)} came; "
            "attributions.get(name, ...) makes one"
        )
    return _seeded(attribution, seed)


def _seeded(method: Seeded, seed: int) -> Seeded:
    """Give a method the seed of the check, unless it brings its own."""
    return method if method.seed is not None else replace(method, seed=seed)


def forced_class(trigger: Any, target: int | None) -> int:
    """Return the class a trigger is held to: the one asked for, else its own.

    Raises:
        InputTypeError: If `trigger` is none, or `target` is no whole number.
        InputError: If `target` is negative.
    """
    if not isinstance(trigger, Trigger):
        raise InputTypeError(
            f"trigger must be a backdoor trigger, but {describe(trigger)} came; "
            "backdoors.get(name, ...) makes one"
        )
    return trigger.target if target is None else whole("target", target)


def known_class(target: int, run: Run) -> None:
    """Refuse a class that the classifier does not have.

    Raises:
        InputError: If it has fewer.
    """
    classes = run.model.num_classes or 0
    if target >= classes:
        raise InputError(f"target must be a class from 0 to {classes - 1}, but {target} came")


def reachable(
    threshold: float,
    run: Run,
    metric: metrics.Metric,
    name: str = "threshold",
    relation: Relation = "<",
) -> float:
    """Return a threshold that some value of the metric passes and some value fails.

    Raises:
        InputTypeError: If it is no number.
        InputError: If every value lies on one side of it.
    """
    low, high = metric.reach(tuple(run.like.shape[1:]))
    return check_threshold(threshold, low=low, high=high, name=name, relation=relation)
