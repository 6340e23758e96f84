"""The methods of the verifier by name: which stages each goes through, in which order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from pytest_triguard.facts import Facts
from pytest_triguard.registry import Family
from pytest_triguard.validation import one_of
from pytest_triguard.verification.budget import Budget, Clock
from pytest_triguard.verification.domains import Domains
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.specification import Rows


@dataclass(frozen=True)
class Margins:
    """What a bound found for a block of samples.

    Attributes:
        margin: `(n,)` lower bound of the least row; NaN or infinite where nothing was bounded.
        logits: Bounds of the logits, `(n, K)`.
        forward: Forward passes that it cost, counted in samples.
        backward: Backward passes, counted in samples.
        points: `(n, C, H, W)` inputs that may break the property, to be predicted; NaN for none.
        leaves: Domains that a search proved, where they are kept.
        seconds: What each sample is to be charged, or None for equal shares.
        cut: Whether the budget alone kept each sample from being decided, or None for no sample.
    """

    margin: Tensor
    logits: Interval
    forward: int
    backward: int = 0
    points: Tensor | None = None
    leaves: list[Domains] | None = None
    seconds: list[float] | None = None
    cut: list[bool] | None = None


@dataclass(frozen=True)
class Effort:
    """What a bound may spend.

    Attributes:
        clock: The limit in time; `BudgetSpent` is raised when it is over.
        budget: Domains and steps.
        keep: Whether a search keeps what it proved, part by part, at the price of memory.
        seconds: What each sample may be charged, or None for no limit.
    """

    clock: Clock = field(default_factory=Clock)
    budget: Budget = field(default_factory=Budget)
    keep: bool = False
    seconds: tuple[float, ...] | None = None


class Bound(Protocol):
    """A sound bound on the logits over a set of inputs.

    Attributes:
        name: Name of the method.
    """

    name: ClassVar[str]

    def samples(self, network: Network) -> int:
        """Return how many samples may be bounded at once."""

    def logits(self, network: Network, region: Interval, effort: Effort) -> Interval:
        """Return bounds of the logits over a set of inputs, `(n, K)`."""

    def margins(self, network: Network, region: Interval, rows: Rows, effort: Effort) -> Margins:
        """Return a lower bound of the least row over a set of inputs, and bounds of the logits."""


_PEERS = {
    "ibp": "PeerIBP",
    "crown_ibp": "PeerCrownIBP",
    "crown": "PeerCrown",
    "alpha_crown": "PeerAlphaCrown",
}
"""What another library offers, where it is installed."""

BOUNDS: Family[Bound] = Family(
    "bound",
    {
        **{
            f"auto_lirpa:{name}": f"pytest_triguard.verification.auto_lirpa_bound:{bound}"
            for name, bound in _PEERS.items()
        },
        "alpha_crown": "pytest_triguard.verification.alpha_crown:AlphaCrown",
        "branch_and_bound": "pytest_triguard.verification.branch_and_bound:BranchAndBound",
        "crown": "pytest_triguard.verification.crown:Crown",
        "crown_ibp": "pytest_triguard.verification.crown:CrownIBP",
        "ibp": "pytest_triguard.verification.ibp:IBP",
    },
)
FALSIFIERS = ("pgd",)
"""Attacks among the stages."""

STAGES: dict[str, tuple[str, ...]] = {
    **{f"auto_lirpa:{name}": (f"auto_lirpa:{name}",) for name in _PEERS},
    "alpha_crown": ("alpha_crown",),
    "auto": ("ibp", "pgd", "crown_ibp", "crown", "alpha_crown", "branch_and_bound"),
    "branch_and_bound": ("pgd", "branch_and_bound"),
    "crown": ("crown",),
    "crown_ibp": ("crown_ibp",),
    "ibp": ("ibp",),
}
"""The stages of each method, after the prediction of the samples themselves."""

FACTS: dict[str, Facts] = {
    "ibp": Facts(cost="about 2 forward", axioms=("sound",), checked="scipy, auto_LiRPA"),
    "crown_ibp": Facts(
        cost="2 forward, and a backward a row", axioms=("sound",), checked="scipy, auto_LiRPA"
    ),
    "crown": Facts(
        cost="a backward a layer and row", axioms=("sound",), checked="scipy, auto_LiRPA"
    ),
    "alpha_crown": Facts(
        cost="that of crown, for each step", axioms=("sound",), checked="scipy, auto_LiRPA"
    ),
    "branch_and_bound": Facts(
        cost="as many as it takes, within the budget",
        axioms=("sound", "complete for affine, ReLU and max-pooling operators"),
        checked="scipy",
    ),
    "auto": Facts(
        cost="as many as it takes, within the budget",
        axioms=("sound", "complete as branch_and_bound"),
        checked="scipy",
        summary="All stages from the cheapest to the dearest, each on the samples still open.",
    ),
    **{
        f"auto_lirpa:{name}": Facts(cost="that of the library", axioms=("sound",))
        for name in _PEERS
    },
}
"""Facts about each method; the axioms hold up to the arithmetic that is asked for."""


def names() -> tuple[str, ...]:
    """Return the names of the verification methods, sorted."""
    return tuple(sorted(STAGES))


def stages(method: Any) -> tuple[str, ...]:
    """Return the stages of a method.

    Raises:
        InputTypeError: If the name is no string.
        InputError: If no method has it.
    """
    return STAGES[one_of("method", method, names())]
