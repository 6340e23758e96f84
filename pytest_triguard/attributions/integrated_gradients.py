"""Gradients integrated along the straight line from a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from pytest_triguard.attributions.baselined import Complete
from pytest_triguard.attributions.lines import AlongLines, Lines
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import Facts
from pytest_triguard.validation import one_of, whole

RULES = ("midpoint", "gauss_legendre")


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(AlongLines, Complete):
    """The displacement from the baseline times the mean gradient along the way.

    The maps sum to the change of the output between baseline and sample, up to the error of the
    quadrature (completeness); `completeness_error` tells it.

    Args:
        baseline: Where the path starts: `"zero"`, `"blur"`, `"noise"`, `"uniform"`, `"midpoint"`,
            or a tensor `(C, H, W)` or `(N, C, H, W)`.
        points: Number of points on the path.
        rule: Quadrature: `"midpoint"` or `"gauss_legendre"`.

    References:
        Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", arXiv:1703.01365,
        equation 1.
    """

    name: ClassVar[str] = "integrated_gradients"
    facts: ClassVar[Facts] = Facts(sign="signed", axioms=("complete", "linear"), checked="Captum")

    points: int = 50
    rule: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("points", self.points, low=1)
        one_of("rule", self.rule, RULES)

    @property
    def passes_per_sample(self) -> int:
        """One per point."""
        return self.points

    def lines(self, model: Model, batch: Batch) -> Lines:
        """Return the one line from the baseline."""
        places, weights = quadrature(self.rule, self.points)
        start = self.start(model, batch)
        return Lines(1, places, weights, lambda copies: copies.context[0], context=(start,))

    def diagnostics(self, model: Model, batch: Batch, maps: Tensor) -> dict[str, Tensor]:
        """Return the completeness error of each map, `(n,)`, where all contributions are kept."""
        return super().diagnostics(model, batch, maps) if self.keep == "all" else {}


def quadrature(rule: str, points: int) -> tuple[list[float], list[float]]:
    """Return places in (0, 1) and weights that sum to one."""
    if rule == "midpoint":
        return [(place + 0.5) / points for place in range(points)], [1.0 / points] * points
    places, weights = np.polynomial.legendre.leggauss(points)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()
