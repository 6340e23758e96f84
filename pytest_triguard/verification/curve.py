"""Certified accuracy over eps: which share of the samples is proven, and which not falsified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pytest_triguard.errors import InputError
from pytest_triguard.statistics import clopper_pearson
from pytest_triguard.validation import number


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What is known at one radius.

    Attributes:
        eps: The radius, in input units.
        n: Number of samples; a misclassified one counts against both rates.
        proven: Samples that are proven to keep their label within the radius.
        falsified: Samples with a known counterexample within the radius.
        certified: `proven / n`, at most the robust accuracy of the samples.
        certified_interval: Its Clopper-Pearson interval: what the samples tell about others.
        empirical: `1 - falsified / n`, at least the robust accuracy of the samples.
        empirical_interval: Its Clopper-Pearson interval.
    """

    eps: float
    n: int
    proven: int
    falsified: int
    certified: float
    certified_interval: tuple[float, float]
    empirical: float
    empirical_interval: tuple[float, float]

    @property
    def unknown(self) -> int:
        """Samples that are neither proven nor falsified."""
        return self.n - self.proven - self.falsified


@dataclass(frozen=True)
class CertifiedAccuracy:
    """Certified and empirical accuracy over eps; neither rises with eps.

    Attributes:
        points: What is known at each radius, in ascending order.
        confidence: Two-sided confidence of each interval; not of all of them at once.
    """

    points: tuple[CurvePoint, ...]
    confidence: float

    def __iter__(self) -> Iterator[CurvePoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def rows(self) -> list[dict[str, Any]]:
        """Return the points as plain values, for a table or a file."""
        names = [*CurvePoint.__slots__, "unknown"]
        return [{name: getattr(each, name) for name in names} for each in self.points]


def curve(
    proven: list[float],
    falsified: list[float],
    eps: Iterable[float],
    largest: float,
    confidence: float,
) -> CertifiedAccuracy:
    """Count at each radius what is proven and falsified; what radii say makes the curve monotone.

    Args:
        proven: The largest radius at which each sample is proven, negative for none.
        falsified: The smallest radius at which each is falsified, infinite for none.
        eps: Where to count.
        largest: The largest radius that was asked about.
        confidence: Two-sided confidence of the intervals.

    Raises:
        InputTypeError: If a radius is no number.
        InputError: If a radius is out of range, or the confidence is.
    """
    if not 0 < number("confidence", confidence) < 1:
        raise InputError(f"confidence must lie between 0 and 1, but {confidence:g} came")
    radii = sorted({number("eps", each, low=0, high=largest) for each in eps})
    return CertifiedAccuracy(
        tuple(_point(each, proven, falsified, confidence) for each in radii), confidence
    )


def _point(
    eps: float, proven: list[float], falsified: list[float], confidence: float
) -> CurvePoint:
    n = len(proven)
    good = sum(each >= eps for each in proven)
    bad = sum(each <= eps for each in falsified)
    return CurvePoint(
        eps=eps,
        n=n,
        proven=good,
        falsified=bad,
        certified=good / n,
        certified_interval=clopper_pearson(good, n, confidence),
        empirical=(n - bad) / n,
        empirical_interval=clopper_pearson(n - bad, n, confidence),
    )
