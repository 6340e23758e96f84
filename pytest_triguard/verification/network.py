"""Bounds of the logits: a walk through the captured graph.

The bounds are computed in float64 where the device knows it, else in the module's own dtype, and
every rule moves its result outward by a bound on its own rounding error: they hold for the exact
function of the weights as they are stored, in real arithmetic. The rounding bounds cover sums of
products in any order; on a device without float64 they do not cover convolutions that rearrange
products (Winograd, FFT) or drop digits (TF32).
What the module computes from its weights alone is taken as the module computes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pytest_triguard.engine.devices import is_host, supports_float64
from pytest_triguard.engine.model import Model
from pytest_triguard.verification import rounding
from pytest_triguard.verification.capture import Graph, capture
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import LINEAR, Rule, Unsupported, affine
from pytest_triguard.verification.operators.shape import exact
from pytest_triguard.verification.relaxations import Affine, Relaxation

FAITHFUL: dict[torch.dtype, float] = {torch.float32: 1e-3, torch.float64: 1e-8}
"""How far logits of the module and of the graph may differ, relative to the largest, and be the
same function: kernels for other batch sizes and dtypes do not agree to the last digit."""

_COARSER = 10
"""How much further apart they may be on an accelerator, which may multiply in TF32."""

_QUERIES: dict[str, Callable[..., Any]] = {
    "size": lambda value, dim=None: value.shape if dim is None else value.shape[dim],
    "dim": lambda value: len(value.shape),
}
_ATTRIBUTES: dict[str, Callable[[Interval], Any]] = {
    "shape": lambda value: value.shape,
    "ndim": lambda value: len(value.shape),
}


@dataclass(frozen=True)
class Head:
    """A last operator that is a product with weights, so that rows on the logits can go into it.

    Attributes:
        inputs: What goes into it, `(n, D)`.
        weight: `(K, D)`.
        bias: `(K,)` or None.
    """

    inputs: Interval
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Enclosure:
    """What the walk found.

    Attributes:
        logits: Bounds of the logits, `(n, K)`.
        head: The last operator, if rows can be merged with it.
    """

    logits: Interval
    head: Head | None


@dataclass(frozen=True)
class Call:
    """An operator about to be applied to values that depend on the input.

    Attributes:
        node: Its node.
        rule: Its rule.
        bound: Its arguments, by the names of the rule.
    """

    node: fx.Node
    rule: Rule
    bound: inspect.BoundArguments


class Network:
    """A captured module with the normalisation in front of it, ready to be bounded.

    Args:
        model: The network.
        dtype: Dtype of the inputs.
        rounded: Whether the bounds are to hold for the module that rounds, in its own dtype and any
            order of summation, rather than for real arithmetic.

    Attributes:
        model: The network itself.
        given: The dtype the module computes in.
        dtype: The dtype the bounds are computed in.
        unit: Unit roundoff of the module, if the bounds are to hold for the module that rounds.
        graph: The captured module.
        nodes: Operators in the order in which they run, placeholder first, output last.
        widest: Elements of the largest value of a sample, as far as the module has been walked.

    Raises:
        Unsupported: If the module cannot be captured, or computes in a dtype no slack is known for.
    """

    def __init__(self, model: Model, dtype: torch.dtype, *, rounded: bool = False) -> None:
        if dtype not in FAITHFUL:
            raise Unsupported(f"the module computes in {dtype}; known are float32 and float64")
        self.model = model
        self.given = dtype
        self.dtype = torch.float64 if supports_float64(model.device) else dtype
        self.unit = rounding.roundoff(dtype) if rounded else None
        self.widest = 1
        self.graph = capture(model.module)
        self.nodes = self.graph.nodes
        self._normalization = _normalization(model, dtype, self.dtype)
        self._head = _head(self.graph)

    @torch.no_grad()
    def enclose(self, inputs: Interval) -> Enclosure:
        """Bound the logits over a set of inputs in the user's space.

        Raises:
            Unsupported: If an operator has no rule, or is called in a way its rule does not know.
        """
        values: dict[fx.Node, Any] = {}
        head, widest = None, inputs.lower[0].numel()
        for node in self.nodes[:-1]:
            if node.op == "placeholder":
                values[node] = self.normalized(inputs)
            else:
                call = self.resolve(node, values)
                values[node] = self.interval(call) if isinstance(call, Call) else call
                if node is self._head and isinstance(call, Call):
                    head = self.head(call)
            if isinstance(values[node], Interval):
                widest = max(widest, values[node].lower[0].numel())
            for over in self.graph.last_use[node]:
                del values[over]
        self.widest = widest
        return Enclosure(self.output(values), head)

    def normalized(self, inputs: Interval) -> Interval:
        """Return what the module sees of inputs in the user's space."""
        if self._normalization is None:
            return inputs
        value = affine.scaled(inputs, *self._normalization)
        if self.unit is None:
            return value
        return value.widened(affine.scaled_evaluation(inputs, *self._normalization, unit=self.unit))

    def normalization(self, inputs: Interval) -> tuple[Relaxation, Tensor | None]:
        """Return the step from inputs to what the module sees, and what the module rounds in it."""
        if self._normalization is None:
            return Affine(inputs, lambda rows: rows), None
        step = affine.scaled_relaxation(inputs, *self._normalization)
        if self.unit is None:
            return step, None
        return step, affine.scaled_evaluation(inputs, *self._normalization, unit=self.unit)

    def resolve(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Return the call that a node makes, or its value if that does not depend on the input.

        Raises:
            Unsupported: If the operator has no rule, or is called in a way its rule does not know.
        """
        if node.op == "get_attr":
            return self.graph.attribute(node)
        args, kwargs = map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        if not _intervals((args, kwargs)):
            return self._constant(node, args, kwargs)
        if node.op == "call_method" and node.target in _QUERIES:
            return _QUERIES[str(node.target)](*args, **kwargs)
        if node.target is getattr:
            return self._attribute(node, args[0], args[1])  # type: ignore[arg-type]
        rule = self.graph.rule(node)
        if rule is None:
            raise Unsupported(f"{self.graph.describe(node)} has no rule")
        try:
            return Call(node, rule, self._bound(rule, node, args, kwargs))
        except Unsupported as error:
            raise self._uncovered(node, error) from None

    def interval(self, call: Call) -> Any:
        """Return bounds of a call's result: an interval, or a tuple of them.

        Raises:
            Unsupported: If the rule does not cover the call.
        """
        try:
            value = call.rule.interval(*call.bound.args, **call.bound.kwargs)
        except Unsupported as error:
            raise self._uncovered(call.node, error) from None
        moved = self.evaluation(call)
        return value if moved is None else value.widened(moved)

    def evaluation(self, call: Call) -> Tensor | None:
        """Return how far the module's own result can be from the exact one, or None for not.

        Raises:
            Unsupported: If that is not known.
        """
        if self.unit is None or call.rule.evaluation is exact:
            return None
        if call.rule.evaluation is None:
            where = self.graph.describe(call.node)
            raise Unsupported(f"{where} has no bound on the rounding of the module that runs")
        return call.rule.evaluation(*call.bound.args, **call.bound.kwargs, unit=self.unit)

    def relaxation(self, call: Call) -> Any:
        """Return a linear enclosure of a call's result, or a tuple of them.

        Raises:
            Unsupported: If there is none.
        """
        if call.rule.relaxation is None:
            raise Unsupported(f"{self.graph.describe(call.node)} has no linear relaxation")
        try:
            return call.rule.relaxation(*call.bound.args, **call.bound.kwargs)
        except Unsupported as error:
            raise self._uncovered(call.node, error) from None

    def is_head(self, node: fx.Node) -> bool:
        """Return whether a node is the last product, which rows on the logits can go into."""
        return node is self._head

    def head(self, call: Call) -> Head | None:
        """Return the factors of the last product; none where the module's rounding counts."""
        if self.unit is not None:
            return None
        bound = call.bound.arguments
        weight, bias = bound["weight"].to(self.dtype), bound.get("bias")
        return Head(bound["input"], weight, None if bias is None else bias.to(self.dtype))

    def output(self, values: dict[fx.Node, Any]) -> Interval:
        """Return the bounds of the logits among all values."""
        logits = map_arg(self.nodes[-1].args[0], values.__getitem__)
        if not isinstance(logits, Interval):
            raise Unsupported("the captured module returns something other than its logits")
        return logits

    def _uncovered(self, node: fx.Node, error: Unsupported) -> Unsupported:
        return Unsupported(f"{self.graph.describe(node)} is not covered: {error}")

    def _bound(
        self, rule: Rule, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> inspect.BoundArguments:
        """Bind the arguments of a call to those of its rule."""
        if node.op == "call_module" and rule.arguments is not None:
            kwargs = kwargs | rule.arguments(self.graph.attribute(node))
        try:
            bound = inspect.signature(rule.interval).bind(*args, **kwargs)
        except TypeError as error:
            raise Unsupported(str(error)) from None
        if not rule.many and not (isinstance(bound.args[0], Interval) and _intervals(bound) == 1):
            raise Unsupported("it has an argument that depends on the input where none is known")
        return bound

    def _attribute(self, node: fx.Node, value: Interval, name: str) -> Any:
        if name not in _ATTRIBUTES:
            raise Unsupported(f"{self.graph.describe(node)} has no rule for {name!r}")
        return _ATTRIBUTES[name](value)

    def _constant(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that does not depend on the input."""
        if args and isinstance(args[0], Tensor) and self.graph.overwrites(node):
            raise Unsupported(f"{self.graph.describe(node)} overwrites a constant")
        if node.op == "call_module":
            return self.graph.attribute(node)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def refuse_unfaithful(network: Network, model: Model, points: Tensor) -> None:
    """Refuse a graph that is not the module, judged at some points; they are not counted as passes.

    Catches what tracing froze: values that depend on a global, on a count of calls or on a shape.

    Args:
        network: The captured module.
        model: The module itself.
        points: `(n, C, H, W)` inputs on the model's device.

    Raises:
        Unsupported: If the bounds at a point are not the module's logits there.
    """
    counted = model.passes.copy()
    with torch.no_grad():
        logits = model.logits(points)
    model.passes = counted
    if logits.dtype != points.dtype:
        raise Unsupported(f"the module computes in {logits.dtype}, its inputs are {points.dtype}")
    exact = points.to(network.dtype)
    bounds = network.enclose(Interval(exact, exact)).logits
    if bounds.shape != logits.shape or bool(outside(bounds, logits).any()):
        raise Unsupported(
            f"the captured graph of {type(model.module).__name__} does not compute what the module "
            "computes; its forward depends on something other than its input"
        )


def outside(bounds: Interval, logits: Tensor) -> Tensor:
    """Return whether the module's logits leave bounds that must hold them, `(n,)` bool."""
    values = logits.to(bounds.dtype)
    share = FAITHFUL[logits.dtype] * (1 if is_host(logits.device) else _COARSER)
    room = share * values.abs().amax(1, keepdim=True).clamp_min(1)
    return ((values < bounds.lower - room) | (values > bounds.upper + room)).any(1)


def _intervals(value: Any) -> int:
    """Return how many values that depend on the input are in an argument list."""
    if isinstance(value, Interval):
        return 1
    if isinstance(value, inspect.BoundArguments):
        return _intervals(value.args) + _intervals(value.kwargs)
    if isinstance(value, dict):
        return sum(_intervals(each) for each in value.values())
    if isinstance(value, tuple | list):
        return sum(_intervals(each) for each in value)
    return 0


def _head(graph: Graph) -> fx.Node | None:
    """Return the last operator that computes something, if it is a product with weights."""
    node = graph.nodes[-1].args[0]
    while isinstance(node, fx.Node):
        rule = graph.rule(node)
        if rule is None or not rule.identity:
            break
        node = node.args[0] if node.args else None
    return node if isinstance(node, fx.Node) and graph.rule(node) is LINEAR else None


def _normalization(
    model: Model, dtype: torch.dtype, wanted: torch.dtype
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return factor, centre and shift as the module sees them: in its own dtype."""
    if model.normalization is None:
        return None
    mean, std = (
        torch.tensor(list(each), dtype=dtype).view(1, -1, 1, 1).to(model.device).to(wanted)
        for each in model.normalization
    )
    return std.reciprocal(), mean, torch.zeros_like(mean)
