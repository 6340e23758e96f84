"""Splits of a branch and bound: of ReLUs, and of boxes with few inputs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import boxes, leaves
from pytest_triguard.verification.alpha_crown import RATE, ascend
from pytest_triguard.verification.domains import Bounded, Domains
from pytest_triguard.verification.intervals import Ball, Interval, lengths, per_sample
from pytest_triguard.verification.methods import Effort
from pytest_triguard.verification.proof_tree import started
from pytest_triguard.verification.relaxations import first_largest, peak
from pytest_triguard.verification.specification import joint
from pytest_triguard.verification.substitution import INPUT, Substitution, Tuning, plainly
from pytest_triguard.verification.windows import NOISE, Windowed, whole

_RATE = 0.1
"""Step of the optimiser for the multipliers, relative to the size of a row."""


class Splits:
    """Domains as decisions about ReLUs, and as halves of boxes.

    The state of a domain: `places` and `signs`, `(D, depth)`, what is decided, and the side, 0 for
    none; `multipliers`, `(D, depth)`, of ReLUs; `next`, `(D,)`, the place to split next, or -1. A
    place is that of a ReLU input among all of them, or beyond them that of an input of the network.

    Boxes are halved where few inputs vary and more ReLUs are open, and where other operators are
    relaxed too. In a part of such a box everything is bounded anew. As soon as no
    more ReLUs are open in it than inputs vary, these are split: few of their kinks meet in one
    point, so that halving comes to that, and splits of ReLUs come to an end.

    Args:
        walk: The network over whole regions.
        spec: `(N, S, K)` rows on the logits.
        choices: `(N, S, *shape)` choices that the slopes start from, by operator.
        threshold: `(N,)` what a bound has to exceed.
        effort: What may be spent.
        spare: Number of rows that need not be above zero.
    """

    def __init__(
        self,
        walk: Substitution,
        spec: Tensor,
        choices: dict[Hashable, Tensor],
        threshold: Tensor,
        effort: Effort,
        *,
        spare: int = 0,
    ) -> None:
        self.walk = walk
        self.spec = spec
        self.choices = choices
        self.threshold = threshold
        self.effort = effort
        self.spare = spare
        self.carried = 0
        self.offsets: dict[Hashable, slice] = {}
        self.total = 0
        for _, source in walk.tunable(walk.output).values():
            if source not in self.offsets:
                size = walk.bounds[source].lower[0].numel()
                self.offsets[source] = slice(self.total, self.total + size)
                self.total += size
        self.halved = self._few()

    def _few(self) -> Tensor:
        """Return which samples are boxes that are halved, `(N,)` bool."""
        region = self.walk.region
        varying = boxes.varying(region)
        if region.ball is not None:
            return torch.zeros_like(varying, dtype=torch.bool)
        if not self.walk.piecewise:
            return (varying > 0) & (varying <= boxes.MOST)
        return (varying > 0) & (varying <= boxes.FEW) & (self._open(self.walk, {})[1] > varying)

    def root(self, bounds: Tensor) -> Domains:
        """Return the whole regions with every row that is not proven by its bound, `(N, S)`."""
        owner, row = (~(bounds > self.threshold[:, None])).nonzero(as_tuple=True)
        none = owner.new_zeros(len(owner), 0)
        state = {"places": none, "signs": none, "multipliers": none.to(bounds.dtype)}
        return Domains(owner, row, bounds[owner, row], state | {"next": torch.full_like(owner, -1)})

    def split(self, domains: Domains) -> Domains:
        """Return both sides of the next ReLU, or input, of each domain."""
        state, sides = domains.state, []
        for side in (1, -1):
            grown = {
                "places": torch.cat([state["places"], state["next"][:, None]], 1),
                "signs": functional.pad(state["signs"], (0, 1), value=side),
                "multipliers": functional.pad(state["multipliers"], (0, 1)),
                "next": state["next"],
            }
            sides.append(replace(domains, state=grown))
        # Parts of one domain side by side: their order does not tell what was split beside it.
        order = torch.arange(2 * len(domains), device=domains.owner.device)
        return sides[0].joined(sides[1]).pick(order.view(2, len(domains)).T.flatten())

    def bound(self, domains: Domains) -> Bounded:
        """Bound domains: intervals with the decisions, then ascent on slopes and multipliers."""
        halved = self.halved[domains.owner]
        if bool(halved.all()) or not bool(halved.any()):
            return self._bound(domains, halved=bool(halved.any()))
        both = [
            (each, where.nonzero().flatten()) for each, where in ((True, halved), (False, ~halved))
        ]
        parts = [self._bound(domains.pick(where), halved=each) for each, where in both]
        order = torch.cat([where for _, where in both]).argsort()
        return parts[0].joined(parts[1]).pick(order)

    def _bound(self, domains: Domains, *, halved: bool) -> Bounded:
        walk = self._walk(domains, halved=halved)
        empty = _empty(walk)
        found, multipliers, seen = self._ascended(walk, domains)
        points = minimiser(walk.region, seen[INPUT].squeeze(1))
        next_, open_ = self._open(walk, seen)
        if halved:
            next_ = self._halved_next(walk, next_, open_, seen[INPUT].squeeze(1))
        threshold = self.threshold[domains.owner]
        for place in ((next_ < 0) & (found <= threshold) & ~empty).nonzero().flatten().tolist():
            one = slice(place, place + 1)
            solved = self._solved(domains.pick(one), found[one], points[one], halved=halved)
            found[one], points[one] = solved
        self.carried += walk.carried
        value = torch.where(empty, torch.inf, torch.fmax(found, domains.bound))
        margins = self._margins(domains.owner, points)
        if halved:  # what is within the slack of a tie stays so in however small a box
            tied = (margins <= threshold) & (value > -threshold)
            next_ = torch.where(tied, -1, next_)
        after = replace(
            domains,
            bound=value,
            state=domains.state | {"multipliers": multipliers, "next": next_},
        )
        if self.effort.keep:
            after = started(domains, after)
        return Bounded(after, next_ < 0, points, margins)

    def _walk(self, domains: Domains, *, halved: bool) -> Substitution:
        """Return the network over the domains: the bounds of whole regions, and the decisions."""
        root, owner, state = self.walk, domains.owner, domains.state
        region = picked(root.region, owner)
        if halved:
            beyond = state["places"] - self.total
            sides = torch.where(beyond >= 0, state["signs"], 0)
            region = boxes.halved(region, beyond.clamp_min(0), sides)
        known = {
            key: Interval(value.lower[owner], value.upper[owner])
            for key, value in root.bounds.items()
        }
        for source, side in self._spread(state["places"], state["signs"]).items():
            value = known[source]
            side = side.view(value.shape)
            known[source] = Interval(
                torch.where(side > 0, value.lower.clamp_min(0), value.lower),
                torch.where(side < 0, value.upper.clamp_max(0), value.upper),
            )
        walk = Substitution(
            root.network, region, root.held, self.effort.clock, known=known, composed=True
        )
        walk.forward(plainly if halved else None)
        return walk

    def _spread(self, places: Tensor, values: Tensor) -> dict[Hashable, Tensor]:
        """Return values `(D, depth)` at their places, `(D, elements)` by ReLU input."""
        flat = values.new_zeros(len(values), self.total + 1)  # the last is of no ReLU
        flat = flat.scatter_add(1, places.clamp_max(self.total), values)
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

    def _open(self, walk: Substitution, seen: dict[Hashable, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the ReLU whose relaxation costs the bound most, or -1, and how many are open."""
        score = walk.region.lower.new_full((len(walk.region.lower), self.total + 1), -1.0)
        for key, (tunable, source) in walk.tunable(walk.output).items():
            value = walk.bounds[source]
            height = value.upper * value.lower / (value.lower - value.upper)
            # Even one that costs nothing now is better split than left.
            costs = seen[key].squeeze(1).abs() * height if key in seen else 0 * height
            part = torch.where(tunable.free, costs.nan_to_num(0.0), -1.0).flatten(1)
            score[:, self.offsets[source]] = torch.maximum(score[:, self.offsets[source]], part)
        free = score >= 0
        return torch.where(free.any(1), first_largest(score), -1), free.sum(1)

    def _halved_next(self, walk: Substitution, relu: Tensor, open_: Tensor, rows: Tensor) -> Tensor:
        """Return what to split next in boxes: the input that matters most, or a ReLU, `(D,)`."""
        place, relaxed = boxes.steepest(walk.region, rows), not walk.piecewise
        many = open_ > boxes.varying(walk.region)
        halve = (place >= 0) & (many | ((open_ == 0) & relaxed))
        return torch.where(halve, place + self.total, relu)

    def _margins(self, owner: Tensor, points: Tensor) -> Tensor:
        """Return the margin at points, by the network in the dtype of the bounds, `(D,)`."""
        logits = self.walk.network.enclose(Interval(points, points)).logits
        values = (self.spec[owner] @ logits.upper.unsqueeze(2)).squeeze(2)
        meant = (self.spec[owner] != 0).any(2)
        return joint(torch.where(meant, values, torch.inf), self.spare)

    def _solved(
        self, domain: Domains, bound: Tensor, point: Tensor, *, halved: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the bound `(1,)` and the least point of a domain in which all is decided."""
        walk = self._walk(domain, halved=halved)
        rows = self.spec[domain.owner, domain.row].unsqueeze(1)
        objective = linear_form(walk, walk.output, rows)
        state = domain.state
        forms: list[leaves.Form | None] = []
        for place, sign in zip(
            state["places"][0].tolist(), state["signs"][0].tolist(), strict=True
        ):
            if sign and place < self.total:
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


def linear_form(walk: Substitution, key: Hashable, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return one row on a value of one sample: coefficients `(D,)` on the inputs, a constant."""
    on_inputs, constants = walk.substitute(key, rows)
    constant = sum(constants, rows.new_zeros(1, 1)).view(())
    if on_inputs is None:
        return walk.region.lower.new_zeros(walk.region.lower.numel()), constant
    return whole(on_inputs).flatten(), constant


def minimiser(region: Interval, rows: Tensor) -> Tensor:
    """Return the points of regions where rows `(D, C, H, W)` are least; of a ball, nearly."""
    noise = per_sample(peak(rows, 1) * NOISE[rows.dtype], rows)
    upper = torch.where(rows < -noise, region.upper, region.middle)
    points = torch.where(rows > noise, region.lower, upper)
    if region.ball is None:
        return points
    ball, slopes = region.ball, rows * region.ball.scale
    if ball.norm == "l2":
        direction = slopes / lengths(slopes, "l2").clamp_min(1e-300).view(-1, 1, 1, 1)
    else:
        flat = slopes.flatten(1)
        place = first_largest(flat.abs()).unsqueeze(1)
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
