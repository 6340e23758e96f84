"""Branch and bound: splits of ReLUs and of boxes, until all is decided."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.errors import InputError
from pytest_triguard.verification.alpha_crown import Ascent, graphs, walked
from pytest_triguard.verification.domains import Search
from pytest_triguard.verification.ibp import interval_margin
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.judging import slack_of
from pytest_triguard.verification.logits import matrix, slack_logits, tight_logits
from pytest_triguard.verification.methods import Effort, Margins
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.proof_tree import ProofTree
from pytest_triguard.verification.specification import Rows, joint
from pytest_triguard.verification.splits import Splits
from pytest_triguard.verification.substitution import Substitution, plainly


@dataclass(frozen=True)
class BranchAndBound:
    """Splits what a bound leaves open, and bounds the parts, until every part is decided.

    A ReLU that may be on either side of zero is split into both; the constraint of a side goes
    into the bound with a multiplier of its own, optimised with the slopes. Where all ReLUs are
    decided and a bound still is not, the part is a linear program, whose dual solution gives the
    multipliers. Complete for networks of affine, ReLU and max-pooling operators, up to rounding
    and the budget; max-pooling is taken apart into ReLUs. Any other network is split as far as it
    has ReLUs.

    Boxes in which few inputs vary are halved, too: at most 16 where other operators than ReLUs are
    relaxed, at most 8 where there are only ReLUs, and while more of these are open than inputs
    vary. That is complete in the limit for every network whose relaxations become exact as its box
    shrinks. Balls in L2 and L1 are not halved.

    Where the label is to be among the top k, the k - 1 rows with the least bounds are given up, and
    all others are to be proven; that is sound, but not complete.

    References:
        Wang et al. 2021, "Beta-CROWN: Efficient Bound Propagation with Per-neuron Split
        Constraints for Complete and Incomplete Neural Network Robustness Verification",
        arXiv:2103.06624; Bunel et al. 2020, "Branch and Bound for Piecewise Linear Neural Network
        Verification", arXiv:1909.06588, on the score.
    """

    name: ClassVar[str] = "branch_and_bound"

    def samples(self, network: Network) -> int:
        """Return how many samples may be worked on at once."""
        return graphs(network)

    def logits(self, network: Network, region: Interval, effort: Effort) -> Interval:
        """Return bounds of the logits over a set of inputs, `(n, K)`: those of the root."""
        return tight_logits(walked(network, region, effort))

    @torch.no_grad()
    def margins(self, network: Network, region: Interval, rows: Rows, effort: Effort) -> Margins:
        """Return a lower bound of the least row over a set of inputs, and bounds of the logits."""
        start = time.perf_counter()
        bounds, logits, splits = _rooted(network, region, rows, effort)
        share = (time.perf_counter() - start) / len(bounds)
        wanted = _without_least(bounds, rows.spare)
        search = Search(
            wanted,
            splits.threshold,
            region.shape[1:],
            self.samples(network),
            effort.budget.domains,
            effort.clock,
            seconds=effort.seconds and [each - share for each in effort.seconds],
            keep=effort.keep,
        )
        search.run(splits.root(wanted), splits.split, splits.bound)
        return Margins(
            search.margin,
            logits,
            2 * (len(bounds) + search.bounded),
            splits.walk.carried + splits.carried,
            search.points,
            search.proven,
            [share + each for each in search.spent],
            search.cut,
        )

    @torch.no_grad()
    def rechecked(
        self,
        network: Network,
        region: Interval,
        rows: Rows,
        effort: Effort,
        trees: Sequence[ProofTree],
    ) -> Margins:
        """Bound the leaves of proof trees, once each, in place of a search; of one sample.

        Raises:
            InputError: If a tree names a row or a ReLU that there is not.
        """
        bounds, logits, splits = _rooted(network, region, rows, effort)
        width, count = self.samples(network), 0
        for tree in trees:
            largest, inputs = max(tree.splits), region.lower[0].numel()
            if not 0 <= tree.row < bounds.shape[1] or largest >= splits.total + inputs:
                raise InputError("a proof tree must name rows, ReLUs and inputs of the network")
            splits.halved |= largest >= splits.total
            leaves = tree.domains(bounds.dtype, bounds.device)
            found = [
                splits.bound(leaves.pick(slice(begin, begin + width))).domains.bound.amin()
                for begin in range(0, len(leaves), width)
            ]
            bounds[0, tree.row] = torch.fmax(bounds[0, tree.row], torch.stack(found).amin())
            count += len(leaves)
        carried = splits.walk.carried + splits.carried
        return Margins(joint(bounds, rows.spare), logits, 2 * (1 + count), carried)


def _rooted(
    network: Network, region: Interval, rows: Rows, effort: Effort
) -> tuple[Tensor, Interval, Splits]:
    """Return bounds of the rows over whole regions, `(N, S)`, those of the logits, and splits."""
    walk = _taken_apart(walked(network, region, effort), effort)
    spec = matrix(walk, rows)
    bounds, choices = Ascent(effort.budget.steps).best(walk, walk.output, spec)
    if not rows.spare:  # then a bound of the least row is one of every row
        plain = interval_margin(walk.logits, walk.head, rows)
        bounds = torch.maximum(bounds, plain[:, None])
    bounds = torch.where((spec != 0).any(2), bounds, torch.inf)
    logits = slack_logits(walk, joint(bounds, rows.spare))
    threshold = slack_of(network, logits, rows)
    return bounds, logits, Splits(walk, spec, choices, threshold, effort, spare=rows.spare)


def _without_least(bounds: Tensor, spare: int) -> Tensor:
    """Return bounds `(N, S)`, infinite for the `spare` rows of each sample that are least."""
    if not spare:
        return bounds
    order = torch.where(bounds.isnan(), -torch.inf, bounds).argsort(dim=1, stable=True)
    return bounds.scatter(1, order[:, :spare], torch.inf)


def _taken_apart(walk: Substitution, effort: Effort) -> Substitution:
    """Return the network with max-pooling taken apart, its bounds at least as tight."""
    if not walk.composable:
        return walk
    apart = Substitution(
        walk.network, walk.region, walk.held, effort.clock, known=walk.bounds, composed=True
    )
    apart.forward(plainly)
    apart.carried += walk.carried
    return apart
