"""Interval bounds of the input gradient of a logit, for piecewise-linear networks.

Bounds of every value over a box come first. Then a cotangent, the interval of the derivative of the
logit by a value, walks back through the same operators: an affine operator carries it by its
transpose, and a kinked one multiplies it by the interval of its own derivative. A ReLU that is
active over the whole box passes it on, a dead one stops it, and any other leaves everything from
nothing to all of it. In a maximum, an argument that is always the largest takes the cotangent, and
one that never is takes nothing.

At a kink, a framework picks a value of its own: torch takes 0 for ReLU at 0. A kink within the box
counts as undecided, with every value between its sides, so the bounds hold whatever is picked. They
hold in real arithmetic, for the exact function of the stored weights: rounding moves them outward.
A module that computes in float32 may find itself on the other side of a kink that is no farther
than its rounding.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import logit
from pytest_triguard.engine.probe import probe
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.validation import describe, whole
from pytest_triguard.verification import derivatives
from pytest_triguard.verification.faithful import refuse_unfaithful
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.network import Call, Network
from pytest_triguard.verification.operators import Unsupported
from pytest_triguard.verification.regions import check_box
from pytest_triguard.verification.relaxations import Scale

_CHECKED = 4
"""Samples at which the bounds are held against the framework's own gradient."""
_NEARBY: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Reach of the boxes around them: within it, the module's rounding may cross a kink."""
_TOLERANCE: dict[torch.dtype, float] = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far they may be off, relative to the largest; torch's slope of hardsigmoid is a sixth in
single precision, whatever the dtype."""


def gradient_bounds(
    classifier: Any, lower: Tensor, upper: Tensor, targets: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Bound the gradient of a logit with respect to the input, over boxes of inputs.

    Args:
        classifier: The `Classifier`; its exact module is bounded, normalisation included. It must
            be piecewise linear: affine operators, ReLU and its like, pooling, sums, shapes.
        lower: `(N, C, H, W)` lower ends, in the user's space; need not lie inside the bounds.
        upper: `(N, C, H, W)` upper ends.
        targets: Class whose logit is meant, one for all or `(N,)`.

    Returns:
        Lower and upper bounds `(N, C, H, W)` that hold in real arithmetic for every input of the
        box, at kinks for every choice between their sides; on the device of `lower`, in float64
        where the classifier's device knows it. Infinite where the bounds overflow.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the gradient cannot be bounded; names operator and module path.
    """
    if not isinstance(classifier, Classifier):
        raise InputTypeError(
            f"classifier must be a pytest_triguard.Classifier, but {describe(classifier)} came"
        )
    check_box(lower, upper)
    if classifier.dtype is not None and {lower.dtype, upper.dtype} != {classifier.dtype}:
        raise InputTypeError(
            f"lower and upper must be {classifier.dtype} like the classifier's parameters, but "
            f"{lower.dtype} and {upper.dtype} came"
        )
    with torch.inference_mode(False), classifier.prepared() as model:
        lower, upper = lower.detach(), upper.detach()
        probe(model, lower[:_CHECKED].to(model.device))
        classes = _classes(targets, len(lower), model)
        first = torch.cat([lower[:_CHECKED], upper[:_CHECKED]]).to(model.device)
        gradients = captured(model, first, classes[:_CHECKED].repeat(2))

        def bounded(part: slice) -> Tensor:
            low, high = (end[part].to(model.device).to(gradients.dtype) for end in (lower, upper))
            found = gradients.over(Interval(low, high), classes[part])
            return torch.stack([found.lower, found.upper]).to(lower.device)

        low, high = torch.cat(model.chunk.attempt(bounded, len(lower)), dim=1)
    return low, high


def captured(model: Model, points: Tensor, classes: Tensor) -> Gradients:
    """Capture a module, and hold logits and gradients of the graph against it at some points.

    Args:
        model: The network.
        points: `(n, C, H, W)` inputs on the model's device.
        classes: `(n,)` int64.

    Raises:
        ModelError: If the gradient cannot be bounded.
    """
    try:
        network = Network(model, points.dtype)
        refuse_unfaithful(network, model, points)
        gradients = Gradients(network)
        _refuse_unfaithful(gradients, model, points, classes)
    except Unsupported as refusal:
        raise ModelError(f"the gradient cannot be bounded: {refusal}") from None
    return gradients


@dataclass(frozen=True)
class Gradients:
    """A captured module whose input gradients can be bounded."""

    network: Network

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the bounds are computed in."""
        return self.network.dtype

    @torch.no_grad()
    def over(self, region: Interval, classes: Tensor) -> Interval:
        """Bound the gradient of a logit over a set of inputs in the user's space.

        Args:
            region: `(n, C, H, W)` in the dtype of the bounds.
            classes: `(n,)` int64, on the same device.

        Returns:
            `(n, C, H, W)`, infinite where the bounds overflow.

        Raises:
            Unsupported: If an operator has no rule.
        """
        values, calls = _enclosed(self.network, region)
        logits = self.network.output(values)
        ones = torch.zeros_like(logits.lower).scatter_(1, classes.unsqueeze(1), 1.0)
        found = self._walked_back(values, calls, Interval(ones, ones))
        step, _ = self.network.normalization(region)
        if found is None:
            found = Interval(torch.zeros_like(region.lower), torch.zeros_like(region.lower))
        elif isinstance(step, Scale):
            found = derivatives.scaled(found, region, step.factor)
        return Interval(
            torch.where(torch.isfinite(found.lower), found.lower, -torch.inf),
            torch.where(torch.isfinite(found.upper), found.upper, torch.inf),
        )

    def _walked_back(
        self, values: dict[fx.Node, Any], calls: dict[fx.Node, Call], seed: Interval
    ) -> Interval | None:
        """Carry a cotangent of the output back to the input.

        Args:
            values: Bounds of every value, constants as they are.
            calls: Operators that were applied to what depends on the input.
            seed: Cotangent of the output.

        Returns:
            The cotangent of what goes into the module, or None if nothing leads there.
        """
        nodes = self.network.nodes
        waiting: dict[Any, Interval] = {nodes[-1].args[0]: seed}
        for node in reversed(nodes[1:-1]):
            cotangent = waiting.pop(node, None)
            if cotangent is None:
                continue
            call = calls[node]
            try:
                parts = derivatives.carried_back(cotangent, node, call.rule, call.args, call.kwargs)
            except Unsupported as error:
                where = self.network.graph.describe(node)
                raise Unsupported(f"{where} is not covered: {error}") from None
            for source, part in zip(_sources(call, values), parts, strict=True):
                known = waiting.get(source)
                waiting[source] = part if known is None else derivatives.added(known, part)
        return waiting.get(nodes[0])


def _enclosed(network: Network, inputs: Interval) -> tuple[dict[fx.Node, Any], dict[fx.Node, Call]]:
    """Return bounds of every value in the graph, and the operators on what depends on the input."""
    values: dict[fx.Node, Any] = {}
    calls: dict[fx.Node, Call] = {}
    for node in network.nodes[:-1]:
        if node.op == "placeholder":
            values[node] = network.normalized(inputs)
            continue
        values[node] = network.resolve(node, values)
        if isinstance(values[node], Call):
            calls[node] = values[node]
            values[node] = network.interval(calls[node])
    return values, calls


def _sources(call: Call, values: dict[fx.Node, Any]) -> list[fx.Node]:
    """Return the nodes that an operator's arguments come from, in the order of its rule's."""
    node, found = call.node, []
    named = inspect.signature(call.rule.interval).bind_partial(*node.args, **node.kwargs)

    def keep(source: fx.Node) -> fx.Node:
        if isinstance(values[source], Interval):
            found.append(source)
        return source

    map_arg((named.args, named.kwargs), keep)
    return found


def _refuse_unfaithful(gradients: Gradients, model: Model, points: Tensor, classes: Tensor) -> None:
    """Refuse a module whose own gradient is not that of its function, judged at some points.

    Catches what a graph does not show: parts without gradients, and hooks that change them.
    """
    with model.passes.uncounted():
        found, _ = input_gradient(model, points, classes, logit)
    exact = points.to(gradients.dtype)
    reach = (exact.abs() + 1) * _NEARBY[points.dtype]
    bounds = gradients.over(Interval(exact - reach, exact + reach), classes)
    own = found.to(gradients.dtype)
    room = _TOLERANCE[points.dtype] * own.abs().amax((1, 2, 3), keepdim=True)
    if bool(((own < bounds.lower - room) | (own > bounds.upper + room)).any()):
        raise Unsupported(
            f"the gradient of {type(model.module).__name__} is not that of the function it "
            "computes; a part without gradients or a backward hook is the usual reason"
        )


def _classes(targets: Any, count: int, model: Model) -> Tensor:
    """Return the class of each sample, `(count,)` int64 on the model's device."""
    if not isinstance(targets, Tensor):
        targets = torch.full((count,), whole("targets", targets))
    elif targets.dtype.is_floating_point or targets.dtype == torch.bool:
        raise InputTypeError(f"targets must hold whole numbers, but {describe(targets)} came")
    if targets.shape != (count,):
        raise InputError(
            f"targets must be one class or a tensor of shape ({count},), but "
            f"{describe(targets)} came"
        )
    low, high = int(targets.min()), int(targets.max())
    if model.num_classes is None or low < 0 or high >= model.num_classes:
        wrong = low if low < 0 else high
        raise InputError(
            f"targets must be classes from 0 to {(model.num_classes or 1) - 1}, but {wrong} came"
        )
    classes: Tensor = targets.detach().to(model.device, torch.int64)
    return classes
