"""The methods of the verifier by name: which bound is tried, and which attack after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from pytest_triguard.registry import Family
from pytest_triguard.validation import one_of
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.specification import Rows


@dataclass(frozen=True)
class Margins:
    """What a bound found for a block of samples.

    Attributes:
        margin: `(n,)` lower bound of the least row; NaN or infinite where nothing was bounded.
        logits: Bounds of the logits, `(n, K)`.
    """

    margin: Tensor
    logits: Interval


class Bound(Protocol):
    """A sound bound on the logits over a set of inputs.

    Attributes:
        name: Name of the method.
        forwards: Forward passes that it costs about as much as.
    """

    name: ClassVar[str]
    forwards: ClassVar[int]

    def logits(self, network: Network, region: Interval) -> Interval:
        """Return bounds of the logits over a set of inputs, `(n, K)`."""

    def margins(self, network: Network, region: Interval, rows: Rows) -> Margins:
        """Return a lower bound of the least row over a set of inputs, and bounds of the logits."""


@dataclass(frozen=True)
class Plan:
    """The stages of a method.

    Attributes:
        bound: Name of the bound.
        falsifier: Name of the attack on what the bound leaves open, or None.
    """

    bound: str
    falsifier: str | None


BOUNDS: Family[Bound] = Family("bound", {"ibp": "pytest_triguard.verification.ibp:IBP"})
PLANS: dict[str, Plan] = {
    "auto": Plan("ibp", "pgd"),
    "ibp": Plan("ibp", None),
}


def names() -> tuple[str, ...]:
    """Return the names of the verification methods, sorted."""
    return tuple(sorted(PLANS))


def plan(method: Any) -> Plan:
    """Return the stages of a method.

    Raises:
        InputTypeError: If the name is no string.
        InputError: If no method has it.
    """
    return PLANS[one_of("method", method, names())]
