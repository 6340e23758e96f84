"""Bounds of the logits: a walk through the captured graph.

The bounds are computed in float64 where the device knows it, or in the module's own dtype. Every
rule moves its result outward by a bound on its own rounding error: they hold for the exact function
of the weights as they are stored, in real arithmetic. The rounding bounds cover sums of products in
any order; they do not cover convolutions that rearrange products (Winograd, FFT) or drop digits
(TF32), which a device without float64 may use.
What the module computes from its weights alone is taken as the module computes it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pytest_triguard.engine.devices import is_host, supports_float64
from pytest_triguard.engine.model import Model
from pytest_triguard.verification import rounding
from pytest_triguard.verification.capture import Graph, capture
from pytest_triguard.verification.float32 import refuse_other_dtype
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import (
    BATCH_NORM,
    CONV2D,
    IDENTITY,
    LINEAR,
    Rule,
    Unsupported,
    scaling,
)
from pytest_triguard.verification.operators.affine import product_share
from pytest_triguard.verification.operators.rule import Kept, outlasting
from pytest_triguard.verification.operators.shape import exact
from pytest_triguard.verification.relaxations import Affine, Relaxation

FAITHFUL: dict[torch.dtype, float] = {torch.float32: 1e-3, torch.float64: 1e-8}
"""How far logits of the module and of the graph may differ, relative to the largest, and be the
same function: kernels for other batch sizes and dtypes do not agree to the last digit."""

_REACH = 2.0**96
"""Magnitudes of float32 numbers that an operator of one argument can add up without overflow."""

_KEPT = 2**30
"""Bytes of converted weights that are kept from one walk to the next."""

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
        args: Arguments of the rule, the first of them a value.
        kwargs: Its other arguments.
    """

    node: fx.Node
    rule: Rule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


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
        InputError: If it is to be bounded as it rounds, and does not compute in float32.
    """

    def __init__(self, model: Model, dtype: torch.dtype, *, rounded: bool = False) -> None:
        if rounded:
            refuse_other_dtype(dtype)
        if dtype not in FAITHFUL:
            raise Unsupported(f"the module computes in {dtype}; known are float32 and float64")
        self.model = model
        self.given = dtype
        self.dtype = torch.float64 if supports_float64(model.device) else dtype
        self.unit = rounding.roundoff(dtype) if rounded else None
        self.widest = 1
        with model.outside:
            self.graph = capture(model.module)
        self.nodes = self.graph.nodes
        self._normalization = _normalization(model, dtype, self.dtype)
        self._head = _head(self.graph)
        self._norms = {} if rounded else _norms(self.graph)
        self._steps: dict[fx.Node, tuple[Rule, dict[str, Any]]] = {}
        self._known: dict[fx.Node, tuple[Rule, dict[str, Any]]] = {}
        self._kept: dict[tuple[fx.Node, str, Hashable], Any] = {}
        self._signatures: dict[Callable[..., Any], inspect.Signature] = {}
        self._left = _KEPT

    @cached_property
    def own(self) -> Network:
        """The same network, bounded in the dtype that the module computes in.

        In float32 the bounds hold where its products are IEEE float32.
        """
        if self.dtype == self.given:
            return self
        own = copy(self)
        own.__dict__.pop("share", None)
        own.dtype = self.given
        own._normalization = _normalization(self.model, self.given, self.given)
        own._kept, own._left = {}, _KEPT
        return own

    def untracked(self, ascends: bool = False) -> AbstractContextManager[None]:
        """Return the mode in which bounds are computed that no derivatives are taken of.

        What is computed in it has to be cloned outside, and must not be kept with what was there
        before: see `Interval.alike`.

        Args:
            ascends: Whether derivatives are taken of some.
        """
        # A host knows inference mode for all of its tensors; elsewhere they may be of any kind.
        own = is_host(self.model.device) and not ascends
        return torch.inference_mode() if own else torch.no_grad()

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
            elif node in self._steps:
                values[node] = self._repeated(node, values)
            else:
                call = self.resolve(node, values)
                if isinstance(call, Call):
                    self._steps[node] = self._step(node, call.rule)
                    call = self._repeated(node, values)
                values[node] = call
            if node is self._head:
                head = self._head_of(node, values)
            if isinstance(values[node], Interval):
                widest = max(widest, values[node].shape[1:].numel())
            for over in self.graph.last_use[node]:
                del values[over]
        self.widest = widest
        return Enclosure(self.output(values), head)

    def normalized(self, inputs: Interval) -> Interval:
        """Return what the module sees of inputs in the user's space."""
        if self._normalization is None:
            return inputs
        value = scaling.scaled(inputs, *self._normalization)
        if self.unit is None:
            return value
        moved = scaling.scaled_evaluation(inputs, *self._normalization, unit=self.unit)
        return _in_range(value.widened(moved))

    def normalization(self, inputs: Interval) -> tuple[Relaxation, Tensor | None]:
        """Return the step from inputs to what the module sees, and what the module rounds in it."""
        if self._normalization is None:
            return Affine(inputs, lambda rows: rows), None
        step = scaling.scaled_relaxation(inputs, *self._normalization)
        if self.unit is None:
            return step, None
        return step, scaling.scaled_evaluation(inputs, *self._normalization, unit=self.unit)

    def resolve(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Return the call that a node makes, or its value if that does not depend on the input.

        Raises:
            Unsupported: If the operator has no rule, or is called in a way its rule does not know.
        """
        if node.op == "get_attr":
            return self.graph.attribute(node)
        args, kwargs = map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        if known := self._known.get(node):
            return Call(node, known[0], args, kwargs | known[1])
        varying = len(list(intervals_in(args, kwargs)))
        if not varying:
            return self._constant(node, args, kwargs)
        if node.op == "call_method" and node.target in _QUERIES:
            return _QUERIES[str(node.target)](*args, **kwargs)
        if node.target is getattr:
            return self._attribute(node, args[0], args[1])  # type: ignore[arg-type]
        rule = self.graph.rule(node)
        if rule is None:
            raise Unsupported(f"{self.graph.describe(node)} has no rule")
        try:
            given = self._read(rule, node)
            bound = self._bound(rule, args, kwargs | given, varying)
        except Unsupported as error:
            raise self._uncovered(node, error) from None
        if varying == len(list(intervals_in(args))):  # else names tell the order of the values
            self._known[node] = rule, given
        return Call(node, rule, bound.args, bound.kwargs)

    def signature(self, rule: Rule) -> inspect.Signature:
        """Return the signature of a rule, which takes longer to find than to keep."""
        known = self._signatures.get(rule.interval)
        return known or self._signatures.setdefault(rule.interval, inspect.signature(rule.interval))

    def interval(self, call: Call) -> Any:
        """Return bounds of a call's result: an interval, or a tuple of them.

        Raises:
            Unsupported: If the rule does not cover the call.
        """
        return self._interval(call.node, call.rule, call.args, call.kwargs)

    def _interval(
        self, node: fx.Node, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = "both" if "norm" in kwargs else "interval"
        keep = {"keep": partial(self._keep, node, name)} if rule.keeps else {}
        try:
            value = rule.interval(*args, **kwargs, **keep)
        except Unsupported as error:
            raise self._uncovered(node, error) from None
        if self.unit is None:
            return value
        moved = self._evaluation(node, rule, args, kwargs)
        return value if moved is None else _in_range(value.widened(moved))

    def _step(self, node: fx.Node, rule: Rule) -> tuple[Rule, dict[str, Any]]:
        """Return what a node that makes a call does in every walk: its rule and more arguments.

        A batch normalisation of a convolution that nothing else reads is bounded as one product
        with it, at the convolution; then there is nothing left to do for it.
        """
        given = self._read(rule, node)
        if node in self._norms:
            return rule, given | {"norm": self._read(BATCH_NORM, self._norms[node])}
        return (IDENTITY, {}) if node in self._norms.values() else (rule, given)

    def _repeated(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Return bounds of the result of a call that was resolved before."""
        rule, given = self._steps[node]
        args, kwargs = map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        return self._interval(node, rule, args, kwargs | given)

    def evaluation(self, call: Call) -> Tensor | None:
        """Return how far the module's own result can be from the exact one, or None for not.

        Raises:
            Unsupported: If that is not known.
        """
        return self._evaluation(call.node, call.rule, call.args, call.kwargs)

    def _evaluation(
        self, node: fx.Node, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        if self.unit is None or rule.evaluation is exact:
            return None
        if rule.evaluation is None:
            where = self.graph.describe(node)
            raise Unsupported(f"{where} has no bound on the rounding of the module that runs")
        return rule.evaluation(*args, **kwargs, unit=self.unit)

    def relaxation(self, call: Call) -> Any:
        """Return a linear enclosure of a result, or a tuple of them; raise Unsupported for none."""
        rule = call.rule
        if rule.relaxation is None:
            raise Unsupported(f"{self.graph.describe(call.node)} has no linear relaxation")
        keep = {"keep": partial(self._keep, call.node, "relaxation")} if rule.keeps else {}
        try:
            return rule.relaxation(*call.args, **call.kwargs, **keep)
        except Unsupported as error:
            raise self._uncovered(call.node, error) from None

    def open(self, call: Call) -> list[tuple[Interval, Tensor]]:
        """Return which elements of which arguments a relaxation wants tighter; as `Rule.open`.

        Raises:
            Unsupported: If the rule does not cover the call.
        """
        if call.rule.open is None:
            return []
        try:
            return call.rule.open(*call.args, **call.kwargs)
        except Unsupported as error:
            raise self._uncovered(call.node, error) from None

    @cached_property
    def share(self) -> float:
        """About what share of all magnitudes the rounding of the bounds adds, in one walk."""
        sums = [product_share(self._terms(node), self.dtype) for node in self.nodes]
        return math.fsum(each for each in sums if each < math.inf)

    def _terms(self, node: fx.Node) -> int:
        """Return how many products a node's operator adds up, if its weights tell."""
        weight = self._read(rule, node).get("weight") if (rule := self.graph.rule(node)) else None
        return weight[0].numel() if isinstance(weight, Tensor) else 1

    def is_head(self, node: fx.Node) -> bool:
        """Return whether a node is the last product, which rows on the logits can go into."""
        return node is self._head

    def head(self, call: Call) -> Head | None:
        """Return the factors of the last product; none where the module's rounding counts."""
        if self.unit is not None:
            return None
        given = dict(zip(self.signature(call.rule).parameters, call.args, strict=False))
        given |= call.kwargs
        weight, bias = given["weight"].to(self.dtype), given.get("bias")
        return Head(given["input"], weight, None if bias is None else bias.to(self.dtype))

    def _head_of(self, node: fx.Node, values: dict[fx.Node, Any]) -> Head | None:
        call = self.resolve(node, values)
        return self.head(call) if isinstance(call, Call) else None

    def output(self, values: dict[fx.Node, Any]) -> Interval:
        """Return the bounds of the logits among all values."""
        logits = map_arg(self.nodes[-1].args[0], values.__getitem__)
        if not isinstance(logits, Interval):
            raise Unsupported("the captured module returns something other than its logits")
        return logits

    def _keep(
        self, node: fx.Node, name: str, make: Callable[[], Kept], about: Hashable = None
    ) -> Any:
        """Return what was made for a node before, or make it; keep it as long as there is room."""
        key = node, name, about
        if key in self._kept:
            return self._kept[key]
        with outlasting():
            made = make()
        if made.size <= self._left:
            self._kept[key] = made
            self._left -= made.size
        return made

    def _uncovered(self, node: fx.Node, error: Unsupported) -> Unsupported:
        return Unsupported(f"{self.graph.describe(node)} is not covered: {error}")

    def _bound(
        self, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], varying: int
    ) -> inspect.BoundArguments:
        """Bind the arguments of a call, some of which depend on the input, to those of its rule."""
        try:
            bound = self.signature(rule).bind(*args, **kwargs)
        except TypeError as error:
            raise Unsupported(str(error)) from None
        if not rule.many and (varying > 1 or not isinstance(bound.args[0], Interval)):
            raise Unsupported("it has an argument that depends on the input where none is known")
        return bound

    def _read(self, rule: Rule, node: fx.Node) -> dict[str, Any]:
        """Return the arguments that a node's module holds."""
        if node.op != "call_module" or rule.arguments is None:
            return {}
        with outlasting():  # a parametrised weight is computed where it is read
            return rule.arguments(self.graph.attribute(node))

    def _attribute(self, node: fx.Node, value: Interval, name: str) -> Any:
        if name not in _ATTRIBUTES:
            raise Unsupported(f"{self.graph.describe(node)} has no rule for {name!r}")
        return _ATTRIBUTES[name](value)

    def _constant(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that does not depend on the input."""
        if args and isinstance(args[0], Tensor) and self.graph.overwrites(node):
            raise Unsupported(f"{self.graph.describe(node)} overwrites a constant")
        with outlasting():
            if node.op == "call_module":
                return self.graph.attribute(node)(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]


def intervals_in(*values: Any) -> Iterator[Interval]:
    """Hand out the values that depend on the input among arguments, however nested."""
    for value in values:
        if isinstance(value, Interval):
            yield value
        elif isinstance(value, dict):
            yield from intervals_in(*value.values())
        elif isinstance(value, tuple | list):
            yield from intervals_in(*value)


def _head(graph: Graph) -> fx.Node | None:
    """Return the last operator that computes something, if it is a product with weights."""
    node = graph.nodes[-1].args[0]
    while isinstance(node, fx.Node):
        rule = graph.rule(node)
        if rule is None or not rule.identity:
            break
        node = node.args[0] if node.args else None
    return node if isinstance(node, fx.Node) and graph.rule(node) is LINEAR else None


def _in_range(value: Interval) -> Interval:
    """Return bounds that are NaN where the module's own float32 may overflow, now or next."""
    known = value.magnitude < _REACH
    return Interval(
        torch.where(known, value.lower, torch.nan),
        torch.where(known, value.upper, torch.nan),
        value.ball,
    )


def _norms(graph: Graph) -> dict[fx.Node, fx.Node]:
    """Return the convolutions whose result only a batch normalisation reads, and that."""
    found = {}
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        if node.op != "call_module" or graph.rule(node) is not BATCH_NORM or node.kwargs:
            continue
        if not isinstance(first, fx.Node) or first.op != "call_module" or len(first.users) > 1:
            continue
        norm = graph.attribute(node)
        fixed = not norm.training and norm.running_mean is not None and norm.running_var is not None
        if graph.rule(first) is CONV2D and not first.kwargs and fixed:
            found[first] = node
    return found


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
