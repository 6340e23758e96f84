"""Linear bounds by back-substitution, with intermediate bounds from intervals or from itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pytest_triguard.engine.devices import is_host
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.logits import least, slack_logits, tight_logits
from pytest_triguard.verification.methods import Effort, Margins
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.specification import Rows, joint
from pytest_triguard.verification.substitution import Substitution, plainly
from pytest_triguard.verification.tightening import Solve

_ROWS = 16
"""Rows of each sample that are held together at least."""

_TOGETHER = 2**14
"""Elements of the widest value that a processor tightens of all samples together. Every sample's
bounds are tightened in as many places as those of the sample with the most; where one sample's rows
fill the memory that is held, others beside it bring nothing else."""

HELD = 2**21
"""Elements of rows held at a time: memory is a few times that, whatever the network. Blocks of this
size are used again by the allocator of a host, where larger ones are mapped anew each time."""


@dataclass(frozen=True)
class CrownIBP:
    """Intervals forwards, then one back-substitution of what is to be proven.

    Costs two forward passes and about a backward pass for each row of the specification. The
    margin is the larger of that of the intervals and that of the rows.

    References:
        Zhang et al. 2020, "Towards Stable and Efficient Training of Verifiably Robust Neural
        Networks", arXiv:1906.06316.
    """

    name: ClassVar[str] = "crown_ibp"
    tighten: ClassVar[bool] = False
    ascends: ClassVar[bool] = False

    def samples(self, network: Network) -> int:
        """Return how many samples may be bounded at once."""
        return max(1, HELD // (_ROWS * network.widest))

    def logits(self, network: Network, region: Interval, effort: Effort) -> Interval:
        """Return bounds of the logits over a set of inputs, `(n, K)`."""
        with network.untracked(self.ascends):
            walk = self.walked(network, region.alike(), effort)
            found = tight_logits(walk, self.solve(effort))
            lower, upper = found.lower, found.upper
        return Interval(lower.clone(), upper.clone())

    def margins(self, network: Network, region: Interval, rows: Rows, effort: Effort) -> Margins:
        """Return a lower bound of the least row over a set of inputs, and bounds of the logits."""
        with network.untracked(self.ascends):
            walk = self.walked(network, region.alike(), effort)
            margin = joint(least(walk, rows, self.solve(effort)), rows.spare)
            logits = slack_logits(walk, margin)
            lower, upper = logits.lower, logits.upper
        found = Interval(lower.clone(), upper.clone())
        return Margins(margin.clone(), found, 2 * len(margin), walk.carried)

    def walked(self, network: Network, region: Interval, effort: Effort) -> Substitution:
        """Return the network with all bounds and relaxations over a set of inputs."""
        walk = Substitution(network, region, HELD, effort.clock)
        walk.forward(plainly if self.tighten else None)
        return walk

    def solve(self, effort: Effort) -> Solve:
        """Return how rows on the logits are bounded."""
        del effort
        return plainly


@dataclass(frozen=True)
class Crown(CrownIBP):
    """Back-substitution of what is to be proven, and of every bound that it rests on.

    References:
        Zhang et al. 2018, "Efficient Neural Network Robustness Certification with General
        Activation Functions", arXiv:1811.00866.
    """

    name: ClassVar[str] = "crown"
    tighten: ClassVar[bool] = True

    def samples(self, network: Network) -> int:
        """Return how many samples may be bounded at once."""
        most = super().samples(network)
        if not is_host(network.model.device):
            return most
        return min(most, max(1, _TOGETHER // network.widest))
