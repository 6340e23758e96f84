"""Gradients along the trajectory of a transferable attack in the frequency domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pytest_triguard.attacks.ssa import SSA
from pytest_triguard.attributions.base import known_targets
from pytest_triguard.attributions.lines import MODES
from pytest_triguard.attributions.trajectories import LOSS_OF, AlongTrajectory
from pytest_triguard.engine.path_integral import (
    Integrand,
    step_times_gradient,
    step_times_momentum,
)
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.transforms.base import Transform
from pytest_triguard.engine.transforms.kernel import Kernel
from pytest_triguard.engine.transforms.resize_pad import ResizePad
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import one_of


@dataclass(frozen=True, kw_only=True)
class AttEXplore(AlongTrajectory):
    """Steps of an attack that changes spectra times the gradients they are estimated from.

    The attack is SSA through random resizing, with smoothed gradients and momentum. Steps follow
    the sign of what was accumulated, so hardly any term is negative: an element loses only where a
    step goes against the gradient of the moment. The maps carry no sign of contribution, and are
    to be compared with the absolute values of others. As gradients are averaged over copies, the
    map does not sum to the change of the output.

    Args:
        output: What is explained, descended and differentiated; see `Attribution`.
        eps: Radius of the L-inf ball in input units.
        step_size: Length of a step in input units, or None for eps / steps.
        steps: Number of steps.
        copies: Number of copies of each iterate.
        rho: How far the factor of a frequency strays from 1.
        sigma: Standard deviation of the noise, in input units.
        probability: Probability with which a copy is resized and padded.
        rate: Size it is padded to, as a share of its own; see the attack `dim`.
        size: Side of the Gaussian kernel that smoothes the gradient, in pixels, odd.
        momentum: Decay of what was accumulated.
        mode: `"canonical"` descends the output, so that the way leads to the boundary, and
            multiplies steps with the estimated gradients. `"reference"` goes the other way, to
            higher confidence, and multiplies steps with the accumulated gradients, each divided by
            the mean of its absolute values, so that maps are never negative and have no unit: the
            published code does so. It also takes several softmaxes of one output, which is not
            reproduced.

    References:
        Zhu et al. 2024, "AttEXplore: Attribution for Explanation with Model Parameters
        eXploration", ICLR 2024, algorithm 1.
    """

    name: ClassVar[str] = "attexplore"
    facts: ClassVar[Facts] = Facts(
        cost=f"at most {PASSES}", sign="hardly ever negative; never in mode reference"
    )

    output: str = "log_probability"
    eps: float = 16 / 255
    step_size: float | None = None
    steps: int = 10
    copies: int = 20
    rho: float = 0.5
    sigma: float = 16 / 255
    probability: float = 0.5
    rate: float = 1.15
    size: int = 7
    momentum: float = 1.0
    mode: str = "canonical"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mode", self.mode, MODES)
        _ = self.exploration  # refuses what it does not take

    @property
    def exploration(self) -> SSA:
        """The attack, which descends the output."""
        through: list[Transform] = [Kernel(size=self.size)]
        if self.probability:
            through.append(ResizePad(probability=self.probability, rate=self.rate))
        return SSA(
            eps=self.eps,
            seed=self.drawn_seed,
            step_size=self.step_size,
            steps=self.steps,
            loss=LOSS_OF[self.output],
            momentum=self.momentum,
            copies=self.copies,
            rho=self.rho,
            sigma=self.sigma,
            transforms=through,
        )

    @property
    def integrand(self) -> Integrand:
        """What a step adds."""
        return step_times_gradient if self.mode == "canonical" else step_times_momentum

    def goal(self, batch: Batch) -> Batch:
        """Return the samples as the attack takes them."""
        if self.mode == "canonical":
            return super().goal(batch)
        targets = known_targets(batch)
        return replace(batch, labels=targets, targets=targets)
