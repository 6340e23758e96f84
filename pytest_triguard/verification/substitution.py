"""Back-substitution: linear rows on a value, carried back through the graph to the inputs.

Every operator is replaced by its relaxation. Rows on a value are carried from operator to operator
until they are rows on the inputs, over whose region their least value is known exactly; what the
computation rounds, and where it counts what the module itself rounds, is subtracted on the way.

The relaxations rest on bounds of the operators' arguments. Those come from intervals and, where
asked for, are tightened by the same back-substitution: only where an operator says that it would
help, and a limited number of elements at a time.

References:
    Zhang et al. 2018, "Efficient Neural Network Robustness Certification with General Activation
    Functions", arXiv:1811.00866 (CROWN); Xu et al. 2020, "Automatic Perturbation Analysis for
    Scalable Certified Robustness and Beyond", arXiv:2002.12920, on general graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from pytest_triguard.verification import carried, rounding
from pytest_triguard.verification.budget import Clock
from pytest_triguard.verification.intervals import Interval, both
from pytest_triguard.verification.least import least_over
from pytest_triguard.verification.network import Call, Head, Network, intervals_in
from pytest_triguard.verification.operators import Rule, Unsupported
from pytest_triguard.verification.relaxations import Affine, Band, Relaxation, Scale
from pytest_triguard.verification.ties import Origin
from pytest_triguard.verification.tightening import Solve, Tightening
from pytest_triguard.verification.tunable import Tunable
from pytest_triguard.verification.windows import Windowed, row_count, row_size

INPUT = "input"
"""Key of the inputs in the user's space."""

_PRODUCTS = 2.0**40
"""More products than a row meets in any one operator."""

_INDEPENDENT, _EXACT, _LOOSE = range(3)
"""How good the interval of a value is: exact with elements that vary on their own, exact element
by element, or neither."""


@dataclass(frozen=True)
class _Link:
    """An operator between values.

    Attributes:
        relaxation: Its linear enclosure.
        error: Per unit of a coefficient on its result, what is rounded, or None.
        paid: The value whose own error is paid for here, or None.
    """

    relaxation: Relaxation
    error: Tensor | None
    paid: Hashable | None = None


@dataclass
class Tuning:
    """What may be chosen in a back-substitution, by key.

    Attributes:
        choices: `(N, S, *shape)` shares for tunable relaxations.
        multipliers: `(N, S, *shape)` rows that are added on values: of constraints that hold, each
            times a multiplier that is not positive where the constraint says "at least 0".
        seen: Rows on the results of operators and on the inputs, filled in where not None.
        begin: Makes the choices that are missing, from relaxation and rows; they are filled in.
    """

    choices: dict[Hashable, Tensor] = field(default_factory=dict)
    multipliers: dict[Hashable, Tensor] = field(default_factory=dict)
    seen: dict[Hashable, Tensor | Windowed] | None = None
    begin: Callable[[Tunable, Tensor | Windowed], Tensor] | None = None

    def choice(self, key: Hashable, step: Relaxation, rows: Tensor | Windowed) -> Tensor | None:
        """Return the choices for rows on the result of a relaxation, or None for its own."""
        if self.begin is not None and isinstance(step, Tunable) and key not in self.choices:
            self.choices[key] = self.begin(step, rows)
        return self.choices.get(key)


class Substitution:
    """A walk through a captured module that keeps bounds and relaxations.

    Args:
        network: The captured module.
        region: The set of inputs, in the user's space.
        held: Elements of rows that may be held at a time.
        clock: Looked at before every step; `BudgetSpent` is raised when it is over.
        known: Bounds of values that hold anyway, by key.
        composed: Whether operators are replaced by what they are composed of, where a rule says so.

    Attributes:
        logits: Bounds of the logits, `(N, K)`.
        head: The last operator, if rows can be merged with it.
        bounds: Bounds of every value by key, in the order of the graph.
        composable: Whether there are operators that are compositions of others.
        carried: Rows carried back so far, those of all samples together.
        row_sizes: The most elements that a row on a value had on its way, by key.
    """

    def __init__(
        self,
        network: Network,
        region: Interval,
        held: int,
        clock: Clock,
        *,
        known: dict[Hashable, Interval] | None = None,
        composed: bool = False,
    ) -> None:
        self.network = network
        self.region = region
        self.held = held
        self.clock = clock
        self.composed = composed
        self.composable = False
        self.head: Head | None = None
        self.bounds: dict[Hashable, Interval] = {}
        self.carried = 0
        self.row_sizes: dict[Hashable, int] = {}
        self._known = known or {}
        self._links: dict[Hashable, _Link] = {}
        self._quality: dict[Hashable, int] = {INPUT: _INDEPENDENT}
        self._tightened: dict[Hashable, Tensor] = {}
        self._keys: dict[int, Hashable] = {}
        self._alive: list[Interval] = []
        self._rectifiers: dict[Hashable, Call] = {}
        self._sizes = [region.lower.new_ones(len(region.lower))]

    def forward(self, solve: Solve | None = None) -> None:
        """Bound every value and relax every operator.

        Args:
            solve: How bounds are tightened where that helps, or None for intervals alone.

        Raises:
            Unsupported: If an operator has no rule or no relaxation.
        """
        values: dict[fx.Node, Any] = {}
        self.register(INPUT, self.region)
        for node in self.network.nodes[:-1]:
            if node.op == "placeholder":
                values[node] = self._start(node)
                continue
            call = self.network.resolve(node, values)
            values[node] = self._apply(call, node, solve) if isinstance(call, Call) else call
            if self.network.is_head(node) and isinstance(call, Call):
                self.head = self.network.head(self._current(call))
        self.output = self._keys[id(self.network.output(values))]

    @property
    def logits(self) -> Interval:
        """Bounds of the logits, `(N, K)`."""
        return self.bounds[self.output]

    @property
    def widest(self) -> int:
        """Elements of the largest value of a sample."""
        return max(bounds.shape[1:].numel() for bounds in self.bounds.values())

    def key_of(self, value: Interval) -> Hashable:
        """Return the key of a value."""
        return self._keys[id(value)]

    def is_loose(self, key: Hashable) -> bool:
        """Return whether the interval of a value may be wider than the value's range."""
        return self._quality[key] == _LOOSE

    @property
    def piecewise(self) -> bool:
        """Whether all operators are affine once the side of every ReLU is known."""
        return all(getattr(each.relaxation, "piecewise", False) for each in self._links.values())

    def slides(self, key: Hashable) -> bool:
        """Return whether rows on a value, if of images, can be carried back in windows."""
        link = self._links.get(key)
        if link is None or not isinstance(link.relaxation, Affine):
            return False
        return link.relaxation.sliding is not None

    def rectified(self, key: Hashable) -> Hashable | None:
        """Return the key of the value that a value is the ReLU of, or None for no ReLU."""
        call = self._rectifiers.get(key)
        return None if call is None else self._keys[id(call.args[0])]

    def renew(self, key: Hashable) -> None:
        """Bound and relax a ReLU again, whose argument is known to be tighter."""
        self._relax(self._current(self._rectifiers[key]), key)

    def tunable(self, key: Hashable) -> dict[Hashable, tuple[Tunable, Hashable]]:
        """Return the relaxations with choices that a value rests on, and their inputs' keys."""
        found: dict[Hashable, tuple[Tunable, Hashable]] = {}
        for each, link in self._links.items():
            if isinstance(link.relaxation, Tunable):
                source = self._keys[id(link.relaxation.input)]
                found[each] = link.relaxation, source
            if each == key:
                break
        return found

    # --- forward --------------------------------------------------------------------------------

    def _start(self, node: fx.Node) -> Interval:
        """Enter the module: the normalisation is the first operator."""
        step, rounded = self.network.normalization(self.region)
        value = self.network.normalized(self.region)
        if value is not self.region:
            self._quality[node] = _INDEPENDENT
            self._links[node] = _Link(step, carried.added(step.error, rounded))
            self.register(node, value)
        return value

    def _apply(self, call: Call, key: Hashable, solve: Solve | None) -> Any:
        """Bound and relax a call's result."""
        call = self._current(call)
        if call.rule.composition is not None:
            self.composable = True
            if self.composed:
                return self._tied(call, key, self._compose(call, key, solve))
        if solve is not None and call.rule.open is not None:
            Tightening(self, self._tightened).arguments(call, solve)
            call = self._current(call)
        value = self._relax(call, key)
        return value if isinstance(value, tuple) else self._tied(call, key, value)

    def _relax(self, call: Call, key: Hashable) -> Any:
        """Bound and relax the result of a call with the tightest bounds of its arguments."""
        value = self.network.interval(call)
        several = isinstance(value, tuple)
        values = value if several else (value,)
        if all(id(each) in self._keys for each in values):
            return value
        if any(len(each.shape) < 2 for each in values):
            raise Unsupported(
                f"{self.network.graph.describe(call.node)} gives one number for each sample, which "
                "linear bounds are not carried through; with keepdim=True, say, they are"
            )
        steps = self.network.relaxation(call)
        rounded = self.network.evaluation(call)
        quality = self._quality_of(call, values[0])
        for place, (each, step) in enumerate(
            zip(values, steps if several else (steps,), strict=True)
        ):
            name: Hashable = (key, place) if several else key
            self._links[name] = self._link(step, rounded, each)
            self._quality[name] = quality
            self.register(name, each)
            if isinstance(step, Tunable) and step.rectifies:
                self._rectifiers[name] = call
        return value

    def _tied(self, call: Call, key: Hashable, value: Interval) -> Interval:
        """Return a call's result, in terms of fewer of its elements where they depend on others.

        Only of exact results, and where what a convolution is taken of varies on its own.
        """
        if call.rule.tied is None or self.network.unit is not None:
            return value
        origin = self._origin(call.args[0], key)
        if origin is None:
            return value
        step = call.rule.tied(origin, value, *call.args, **call.kwargs)
        if step is None:
            return value
        name, tied = (key, "tied"), Interval(value.lower, value.upper, value.ball)
        self._links[name] = _Link(step, step.error)
        self._quality[name] = self._quality[self._keys[id(value)]]
        self.register(name, tied)
        return tied

    def _origin(self, value: Interval, key: Hashable) -> Origin | None:
        """Return the convolution behind a value that maxima are taken of, or None for none."""
        link, rectified = self._links.get(self._keys[id(value)]), False
        if link is not None and isinstance(link.relaxation, Tunable):
            rectified = link.relaxation.rectifies
            value = link.relaxation.input if rectified else value
            link = self._links.get(self._keys[id(value)])
        if link is None or not isinstance(link.relaxation, Affine):
            return None
        source = self._keys[id(link.relaxation.input)]
        if link.relaxation.kernel is None or self._quality[source] != _INDEPENDENT:
            return None
        images, values = (self.bounds[each] for each in (source, self._keys[id(value)]))
        parts = [
            each.relaxation.free
            for name, each in self._links.items()
            if isinstance(name, tuple) and name[0] == key and isinstance(each.relaxation, Tunable)
        ]
        undecided = torch.stack(parts).any(0) if parts else None
        return Origin(link.relaxation.kernel, images, values, rectified, self.held, undecided)

    def _link(self, step: Relaxation, rounded: Tensor | None, value: Interval) -> _Link:
        """Return a link that pays for its error in offsets, and for its argument's, if it can.

        An error on the argument is one on the result, times the slope there.
        """
        if isinstance(step, Tunable):
            key = self._keys[id(step.input)]
            before = self._links.get(key)
            step = step.absorbing(None if before is None else before.error, rounded)
            return _Link(step, None, key)
        error = carried.added(step.error, rounded)
        if isinstance(step, Scale):
            source, slope = step.input, step.factor.abs()
        elif isinstance(step, Band) and len(step.inputs) == 1:
            source, slope = step.inputs[0], step.steepest
        else:
            return _Link(step, error)
        key = self._keys[id(source)]
        before = self._links.get(key)
        if source.shape != value.shape:
            return _Link(step, error)
        if before is not None and before.error is not None:
            error = carried.added(
                error, slope * before.error * (1 + 8 * rounding.roundoff(value.dtype))
            )
        if error is None or isinstance(step, Scale):
            return _Link(step, error, key)
        return _Link(step.absorbing(error.expand(value.shape)), None, key)

    def _compose(self, call: Call, key: Hashable, solve: Solve | None) -> Any:
        """Bound a call's result as the composition of simpler operators that it equals."""
        count = 0

        def step(rule: Rule, *args: Any) -> Interval:
            nonlocal count
            count += 1
            part = Call(call.node, rule, args, {})
            value: Interval = self._apply(part, (key, count), solve)
            return value

        if call.rule.composition is None:
            raise TypeError("only what is composed can be taken apart")
        result: Interval = call.rule.composition(step, *call.args, **call.kwargs)
        self.register(self._keys[id(result)], both(result, self.network.interval(call)))
        return result

    def _current(self, call: Call) -> Call:
        """Return a call with the tightest bounds of its arguments."""
        return Call(
            call.node,
            call.rule,
            tuple(map(self._newest, call.args)),
            {name: self._newest(value) for name, value in call.kwargs.items()},
        )

    def _newest(self, value: Any) -> Any:
        """Return an argument with the tightest bounds that are known of it."""
        if isinstance(value, Interval):
            return self.bounds[self._keys[id(value)]]
        if isinstance(value, tuple | list):
            return type(value)(map(self._newest, value))
        return value

    def _quality_of(self, call: Call, value: Interval) -> int:
        arguments = list(intervals_in(call.args, call.kwargs))
        if len(arguments) != 1 or call.rule.mixing == "other":
            return _LOOSE
        before = self._quality[self._keys[id(arguments[0])]]
        if call.rule.mixing == "none":
            # A ball makes elements depend on each other once an operator has lost it.
            lost = before == _INDEPENDENT and self.region.ball is not None and value.ball is None
            return _EXACT if lost else before
        return _EXACT if before == _INDEPENDENT else _LOOSE

    def register(self, key: Hashable, value: Interval) -> None:
        """Take bounds of a value, perhaps tighter ones than before."""
        known = self._known.get(key)
        kept = value if known is None else both(value, known)
        self._alive += [value, kept]
        self._keys[id(value)] = self._keys[id(kept)] = key
        self.bounds[key] = kept
        if kept.shape.numel():
            kept.settle()
            self._sizes.append(kept.largest.detach())

    # --- backward -------------------------------------------------------------------------------

    def lowest(
        self, key: Hashable, rows: Tensor | Windowed, tuning: Tuning | None = None
    ) -> Tensor:
        """Return a lower bound of rows `(N, S, *shape)` on a value, `(N, S)`.

        It holds for the inputs in the region that meet the constraints behind the multipliers.
        """
        on_inputs, constants = self.substitute(key, rows, tuning)
        if on_inputs is not None:
            constants.append(least_over(self.region, on_inputs))
        return carried.summed(constants) - self.underflow(len(constants))

    def substitute(
        self, key: Hashable, rows: Tensor | Windowed, tuning: Tuning | None = None
    ) -> tuple[Tensor | Windowed | None, list[Tensor]]:
        """Carry rows `(N, S, *shape)` on a value back to the inputs.

        Returns:
            Rows on the inputs, `(N, S, C, H, W)`, or None if the value does not depend on them, and
            the parts of the constant, `(N, S)` each, with what is rounded subtracted.
        """
        self.clock.check()
        self.carried += row_count(rows)
        plan = tuning or Tuning()
        pending: dict[Hashable, Tensor | Windowed] = {key: rows}
        merges: dict[Hashable, int] = {}
        constants: list[Tensor] = []
        reached, held, owed = False, 1, {key, *plan.multipliers}
        owned: set[Hashable] = set()  # what is pending there is read by nothing else
        for each in [*reversed(self._links), INPUT]:
            reached = reached or each == key
            if reached and each in plan.multipliers:
                more = plan.multipliers[each]
                carried.merge(pending, merges, constants, each, more, self.bounds[each])
            if each not in pending:
                continue
            link = self._links.get(each)
            rounded = None if link is None else link.error
            error = self._error(each, rounded if each in owed else None, merges.pop(each, 0))
            if error is not None:
                constants.append(-carried.absolute_dot(pending[each], error))
            if link is None:
                break
            here = pending.pop(each)
            if plan.seen is not None:
                plan.seen[each] = here
            step = link.relaxation
            free = each in owned and each not in plan.multipliers and plan.seen is None
            parts, constant = carried.back(step, here, plan.choice(each, step, here), owned=free)
            constants += [] if constant is None else [constant]
            own = len(parts) == 1 and (free or carried.fresh(step))
            for value, part in parts:
                source = self._keys[id(value)]
                if own and source not in pending:
                    owned.add(source)
                carried.merge(pending, merges, constants, source, part, self.bounds[source])
                if link.paid != source:
                    owed.add(source)
                held = max(held, row_size(part))
        self.row_sizes[key] = max(held, self.row_sizes.get(key, 1))
        on_inputs = pending.get(INPUT)
        if plan.seen is not None and on_inputs is not None:
            plan.seen[INPUT] = on_inputs
        return on_inputs, constants

    def underflow(self, steps: int) -> Tensor:
        """Return more than all products together can lose by underflow, `(N, 1)`."""
        self._sizes = [largest] = [torch.stack(self._sizes).amax(0)]
        return (largest * (steps * _PRODUCTS * rounding.tiny(largest.dtype)))[:, None]

    def _error(self, key: Hashable, error: Tensor | None, merged: int) -> Tensor | None:
        """Return what is rounded per unit of a coefficient on a value, merging rows included."""
        if not merged:
            return error
        unit = rounding.roundoff(self.region.dtype)
        return carried.added(error, self.bounds[key].magnitude.detach() * (4 * merged * unit))


def plainly(walk: Substitution, key: Hashable, rows: Tensor | Windowed) -> Tensor:
    """Bound rows by the relaxations as they are."""
    return walk.lowest(key, rows)
