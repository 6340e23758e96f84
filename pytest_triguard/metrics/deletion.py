"""How fast the output falls when the most important pixels are taken away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.removal import Direction
from pytest_triguard.metrics.removal_curve import RemovalCurve


@dataclass(frozen=True, kw_only=True)
class Deletion(RemovalCurve):
    """Area under the output while pixels are replaced by a baseline, most important first.

    Low where the map names the pixels that the output rests on first. With `ranking="reversed"` it
    is high there: the curve of the least important pixels first (LeRF), which is that of
    `Insertion` read backwards, where no step ends on half a pixel. With `baseline="road"` it is
    Remove and Debias.

    References:
        Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box
        Models", arXiv:1806.07421, section 4.2; Samek et al. 2017, "Evaluating the Visualization
        of What a Deep Neural Network Has Learned", arXiv:1509.06321, section III (MoRF);
        Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
        arXiv:2202.00449 (ROAD, noisy linear imputation).
    """

    name: ClassVar[str] = "deletion"
    facts: ClassVar[Facts] = Facts(
        cost=f"at most {PASSES} forward", sign="lower is better", checked="Quantus"
    )
    direction: ClassVar[Direction] = "deletion"
