"""Branch and bound: splits of ReLUs, until all is decided."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.errors import InputError
from pytest_triguard.verification import leaves
from pytest_triguard.verification.alpha_crown import RATE, Ascent, ascend, graphs, walked
from pytest_triguard.verification.crown import matrix, slack_logits
from pytest_triguard.verification.domains import Bounded, Domains, Search
from pytest_triguard.verification.ibp import interval_margin
from pytest_triguard.verification.intervals import Ball, Interval, lengths
from pytest_triguard.verification.judging import slack_of
from pytest_triguard.verification.methods import Effort, Margins
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.proof_tree import ProofTree, started
from pytest_triguard.verification.specification import Rows
from pytest_triguard.verification.substitution import INPUT, Substitution, Tuning, plainly
from pytest_triguard.verification.windows import Windowed, whole

_RATE = 0.1
"""Step of the optimiser for the multipliers, relative to the size of a row."""


@dataclass(frozen=True)
class BranchAndBound:
    """Splits what a bound leaves open, and bounds the parts, until every part is decided.

    A ReLU that may be on either side of zero is split into both; the constraint of a side goes
    into the bound with a multiplier of its own, optimised with the slopes. Where all ReLUs are
    decided and a bound still is not, the part is a linear program, whose dual solution gives the
    multipliers. Complete for networks of affine, ReLU and max-pooling operators, up to rounding
    and the budget; max-pooling is taken apart into ReLUs. Any other network is split as far as it
    has ReLUs.

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
        return walked(network, region, effort).tight_logits()

    @torch.no_grad()
    def margins(self, network: Network, region: Interval, rows: Rows, effort: Effort) -> Margins:
        """Return a lower bound of the least row over a set of inputs, and bounds of the logits."""
        bounds, logits, splits = _rooted(network, region, rows, effort)
        search = Search(
            bounds,
            splits.threshold,
            region.shape[1:],
            self.samples(network),
            effort.budget.domains,
            effort.clock,
            keep=effort.keep,
        )
        search.run(splits.root(bounds), splits.split, splits.bound)
        return Margins(
            search.margin,
            logits,
            2 * (len(bounds) + search.bounded),
            splits.walk.carried + splits.carried,
            search.points,
            search.proven,
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
            largest = max(tree.splits)
            if not 0 <= tree.row < bounds.shape[1] or largest >= splits.total:
                raise InputError("a proof tree must name rows and ReLUs of the network")
            leaves = tree.domains(bounds.dtype, bounds.device)
            found = [
                splits.bound(leaves.pick(slice(begin, begin + width))).domains.bound.amin()
                for begin in range(0, len(leaves), width)
            ]
            bounds[0, tree.row] = torch.fmax(bounds[0, tree.row], torch.stack(found).amin())
            count += len(leaves)
        carried = splits.walk.carried + splits.carried
        return Margins(bounds.amin(1), logits, 2 * (1 + count), carried)


class ReluSplits:
    """Domains as decisions about ReLUs.

    The state of a domain: `places` and `signs`, `(D, depth)`, the ReLU inputs that are decided, by
    their place among all, and their side, 0 for none; `multipliers`, `(D, depth)`; `next`, `(D,)`,
    the place to split next, or -1.

    Args:
        walk: The network over whole regions.
        spec: `(N, S, K)` rows on the logits.
        choices: `(N, S, *shape)` choices that the slopes start from, by operator.
        threshold: `(N,)` what a bound has to exceed.
        effort: What may be spent.
    """

    def __init__(
        self,
        walk: Substitution,
        spec: Tensor,
        choices: dict[Hashable, Tensor],
        threshold: Tensor,
        effort: Effort,
    ) -> None:
        self.walk = walk
        self.spec = spec
        self.choices = choices
        self.threshold = threshold
        self.effort = effort
        self.carried = 0
        self.offsets: dict[Hashable, slice] = {}
        self.total = 0
        for _, source in walk.tunable(walk.output).values():
            if source not in self.offsets:
                size = walk.bounds[source].lower[0].numel()
                self.offsets[source] = slice(self.total, self.total + size)
                self.total += size

    def root(self, bounds: Tensor) -> Domains:
        """Return the whole regions with every row that is not proven by its bound, `(N, S)`."""
        owner, row = (~(bounds > self.threshold[:, None])).nonzero(as_tuple=True)
        none = owner.new_zeros(len(owner), 0)
        state = {"places": none, "signs": none, "multipliers": none.to(bounds.dtype)}
        return Domains(owner, row, bounds[owner, row], state | {"next": torch.full_like(owner, -1)})

    def split(self, domains: Domains) -> Domains:
        """Return both sides of the next ReLU of each domain."""
        state, sides = domains.state, []
        for side in (1, -1):
            grown = {
                "places": torch.cat([state["places"], state["next"][:, None]], 1),
                "signs": functional.pad(state["signs"], (0, 1), value=side),
                "multipliers": functional.pad(state["multipliers"], (0, 1)),
                "next": state["next"],
            }
            sides.append(replace(domains, state=grown))
        return sides[0].joined(sides[1])

    def bound(self, domains: Domains) -> Bounded:
        """Bound domains: intervals with the decisions, then ascent on slopes and multipliers."""
        walk = self._walk(domains)
        empty = _empty(walk)
        found, multipliers, seen = self._ascended(walk, domains)
        points = minimiser(walk.region, seen[INPUT].squeeze(1))
        next_ = self._next(walk, seen)
        threshold = self.threshold[domains.owner]
        for place in ((next_ < 0) & (found <= threshold) & ~empty).nonzero().flatten().tolist():
            one = slice(place, place + 1)
            found[one], points[one] = self._solved(domains.pick(one), found[one], points[one])
        self.carried += walk.carried
        value = torch.where(empty, torch.inf, torch.fmax(found, domains.bound))
        state = domains.state | {"multipliers": multipliers, "next": next_}
        after = replace(domains, bound=value, state=state)
        if self.effort.keep:
            after = started(domains, after)
        return Bounded(after, next_ < 0, points, self._margins(domains.owner, points))

    def _walk(self, domains: Domains) -> Substitution:
        """Return the network over the domains: the bounds of whole regions, and the decisions."""
        root, owner, state = self.walk, domains.owner, domains.state
        known = {
            key: Interval(value.lower[owner], value.upper[owner])
            for key, value in root.bounds.items()
        }
        sides = self._spread(state["places"], state["signs"])
        for source, side in sides.items():
            value = known[source]
            side = side.view(value.shape)
            known[source] = Interval(
                torch.where(side > 0, value.lower.clamp_min(0), value.lower),
                torch.where(side < 0, value.upper.clamp_max(0), value.upper),
            )
        walk = Substitution(
            root.network,
            picked(root.region, owner),
            root.held,
            self.effort.clock,
            known=known,
            composed=True,
        )
        walk.forward()
        return walk

    def _spread(self, places: Tensor, values: Tensor) -> dict[Hashable, Tensor]:
        """Return values `(D, depth)` at their places, `(D, elements)` by ReLU input."""
        flat = values.new_zeros(len(values), self.total).scatter_add(1, places, values)
        return {source: flat[:, part] for source, part in self.offsets.items()}

    def _multiplied(
        self, walk: Substitution, domains: Domains, multipliers: Tensor
    ) -> dict[Hashable, Tensor]:
        """Return the constraints `sign * value >= 0`, each times minus its multiplier, as rows."""
        state = domains.state
        rows = self._spread(state["places"], -multipliers * state["signs"])
        return {
            source: each.view(walk.bounds[source].shape).unsqueeze(1)
            for source, each in rows.items()
        }

    def _ascended(
        self, walk: Substitution, domains: Domains
    ) -> tuple[Tensor, Tensor, dict[Hashable, Tensor]]:
        """Return bounds `(D,)`, the multipliers behind them, and the rows of the last look."""
        owner, row = domains.owner, domains.row
        rows = self.spec[owner, row].unsqueeze(1)
        choices = {
            key: values[owner, row].unsqueeze(1).clone().requires_grad_()
            for key, values in self.choices.items()
        }
        multipliers = domains.state["multipliers"].clone().requires_grad_()
        groups = [{"params": list(choices.values()), "lr": RATE}] if choices else []
        groups += [{"params": [multipliers], "lr": _RATE, "range": (0.0, torch.inf)}]
        optimiser = torch.optim.Adam(groups, maximize=True)
        best = torch.full_like(domains.bound, -torch.inf)
        kept = multipliers.detach().clone()
        threshold, steps = self.threshold[owner], self.effort.budget.steps
        seen: dict[Hashable, Tensor | Windowed] = {}
        for step in range(steps + 1):
            with torch.enable_grad():
                extra = self._multiplied(walk, domains, multipliers)
                found = walk.lowest(walk.output, rows, Tuning(choices, extra, seen)).squeeze(1)
            # What is proven stands still, so that no domain depends on those beside it.
            better = (found.detach() > best) & ~(best > threshold)
            best = torch.where(better, found.detach(), best)
            kept = torch.where(better[:, None], multipliers.detach(), kept)
            if step == steps or not found.requires_grad or bool((best > threshold).all()):
                break
            ascend(optimiser, found)
        return best, kept, {key: whole(each).detach() for key, each in seen.items()}

    def _next(self, walk: Substitution, seen: dict[Hashable, Tensor]) -> Tensor:
        """Return the ReLU whose relaxation costs the bound most, `(D,)`, or -1 for none."""
        score = walk.region.lower.new_full((len(walk.region.lower), self.total), -1.0)
        for key, (tunable, source) in walk.tunable(walk.output).items():
            value = walk.bounds[source]
            height = value.upper * value.lower / (value.lower - value.upper)
            # Even one that costs nothing now is better split than left.
            costs = seen[key].squeeze(1).abs() * height if key in seen else 0 * height
            part = torch.where(tunable.free, costs.nan_to_num(0.0), -1.0).flatten(1)
            score[:, self.offsets[source]] = torch.maximum(score[:, self.offsets[source]], part)
        if not self.total:
            return torch.full((len(score),), -1, device=score.device)
        most, place = score.max(1)
        return torch.where(most >= 0, place, -1)

    def _margins(self, owner: Tensor, points: Tensor) -> Tensor:
        """Return the least row at points, by the network in the dtype of the bounds, `(D,)`."""
        logits = self.walk.network.enclose(Interval(points, points)).logits
        values = (self.spec[owner] @ logits.upper.unsqueeze(2)).squeeze(2)
        meant = (self.spec[owner] != 0).any(2)
        return torch.where(meant, values, torch.inf).amin(1)

    def _solved(self, domain: Domains, bound: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bound `(1,)` and the least point of a domain in which all is decided."""
        walk = self._walk(domain)
        rows = self.spec[domain.owner, domain.row].unsqueeze(1)
        objective = linear_form(walk, walk.output, rows)
        state = domain.state
        forms: list[leaves.Form | None] = []
        for place, sign in zip(
            state["places"][0].tolist(), state["signs"][0].tolist(), strict=True
        ):
            if sign:
                forms.append((sign, *self._form(walk, place)))
            else:
                forms.append(None)
        solution = leaves.solve(walk.region, objective, forms, float(self.threshold[domain.owner]))
        if solution is None:
            return bound, point
        weights, where = solution
        extra = self._multiplied(walk, domain, weights.to(rows)[None])
        found = walk.lowest(walk.output, rows, Tuning(multipliers=extra)).squeeze(1)
        return torch.fmax(found, bound), point if where is None else where.view_as(point)

    def _form(self, walk: Substitution, place: int) -> tuple[Tensor, Tensor]:
        """Return a ReLU input as a linear form on the inputs, in a domain where all is decided."""
        source = next(key for key, part in self.offsets.items() if part.start <= place < part.stop)
        value = walk.bounds[source]
        rows = torch.zeros_like(value.lower).flatten(1)
        rows[0, place - self.offsets[source].start] = 1
        return linear_form(walk, source, rows.view(value.shape).unsqueeze(1))


def _rooted(
    network: Network, region: Interval, rows: Rows, effort: Effort
) -> tuple[Tensor, Interval, ReluSplits]:
    """Return bounds of the rows over whole regions, `(N, S)`, those of the logits, and splits."""
    walk = _taken_apart(walked(network, region, effort), effort)
    spec = matrix(rows, walk.logits)
    bounds, choices = Ascent(effort.budget.steps).best(walk, walk.output, spec)
    plain = interval_margin(walk.logits, walk.head, rows)
    meant = (spec != 0).any(2)
    bounds = torch.where(meant, torch.maximum(bounds, plain[:, None]), torch.inf)
    logits = slack_logits(walk, bounds.amin(1))
    threshold = slack_of(network, logits, rows)
    return bounds, logits, ReluSplits(walk, spec, choices, threshold, effort)


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


def linear_form(walk: Substitution, key: Hashable, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return one row on a value of one sample: coefficients `(D,)` on the inputs, a constant."""
    on_inputs, constants = walk.substitute(key, rows)
    constant = sum(constants, rows.new_zeros(1, 1)).view(())
    if on_inputs is None:
        return walk.region.lower.new_zeros(walk.region.lower.numel()), constant
    return whole(on_inputs).flatten(), constant


def minimiser(region: Interval, rows: Tensor) -> Tensor:
    """Return the points of regions where rows `(D, C, H, W)` are least; of a ball, nearly."""
    points = torch.where(rows > 0, region.lower, torch.where(rows < 0, region.upper, region.middle))
    if region.ball is None:
        return points
    ball, slopes = region.ball, rows * region.ball.scale
    if ball.norm == "l2":
        direction = slopes / lengths(slopes, "l2").clamp_min(1e-300).view(-1, 1, 1, 1)
    else:
        flat = slopes.flatten(1)
        place = flat.abs().argmax(1, keepdim=True)
        direction = torch.zeros_like(flat).scatter(1, place, flat.gather(1, place).sign())
        direction = direction.view_as(slopes)
    reach = 0.9999 * ball.radius.view(-1, 1, 1, 1)
    points = ball.centre - reach * ball.scale * direction
    return torch.minimum(torch.maximum(points, region.lower), region.upper)


def picked(region: Interval, index: Tensor) -> Interval:
    """Return the regions of some samples."""
    ball = region.ball
    if ball is not None:
        scale = ball.scale if len(ball.scale) == 1 else ball.scale[index]
        ball = Ball(ball.centre[index], scale, ball.radius[index], ball.norm)
    return Interval(region.lower[index], region.upper[index], ball)


def _empty(walk: Substitution) -> Tensor:
    """Return whether bounds cross, `(D,)` bool: nothing in the region meets the decisions."""
    crossed = [(value.lower > value.upper).flatten(1).any(1) for value in walk.bounds.values()]
    return torch.stack(crossed).any(0)
