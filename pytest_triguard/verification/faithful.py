"""Whether a captured graph is the module: bounds at a point hold what the module gives there."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.model import Model
from pytest_triguard.verification.float32 import refuse_other_arithmetic
from pytest_triguard.verification.followed import operators
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.network import FAITHFUL, Network
from pytest_triguard.verification.operators import Unsupported

_COARSER = 10
"""How much further apart they may be on an accelerator, which may multiply in TF32."""


def refuse_unfaithful(network: Network, model: Model, points: Tensor) -> None:
    """Refuse a graph that is not the module, judged at some points; they are not counted as passes.

    Catches what tracing froze: values that depend on a global, on a count of calls or on a shape.
    Catches ways that only tracing takes: there, the module applies other operators.

    Args:
        network: The captured module.
        model: The module itself.
        points: `(n, C, H, W)` inputs on the model's device.

    Raises:
        Unsupported: If the bounds at a point are not the module's logits there, or other operators
            lead to them.
        InputError: If the bounds are to hold for a module that rounds otherwise than they assume.
    """
    if network.unit is not None:
        refuse_other_arithmetic(model, points)
    with model.passes.uncounted(), torch.no_grad():
        logits = model.logits(points)
    if logits.dtype != points.dtype:
        raise Unsupported(f"the module computes in {logits.dtype}, its inputs are {points.dtype}")
    exact = points.to(network.dtype)
    bounds = network.enclose(Interval(exact, exact)).logits
    if bounds.shape != logits.shape or bool(outside(network, bounds, logits).any()):
        raise Unsupported(
            f"the captured graph of {type(model.module).__name__} does not compute what the module "
            "computes; its forward depends on something other than its input, or it rounds by "
            "more than its logits are held to"
        )
    if not (network.graph.composed or _same_operators(network, model, points[:1])):
        raise Unsupported(
            f"the captured graph of {type(model.module).__name__} applies other operators than the "
            "module; its forward may ask what kind of object a value is"
        )


def _same_operators(network: Network, model: Model, row: Tensor) -> bool:
    """Return whether the graph applies the same operators to a sample as the module."""
    seen = model.normalized(row)
    with model.outside:
        own = operators(model.module, seen)
        return operators(network.graph.run, seen) == own


def outside(network: Network, bounds: Interval, logits: Tensor) -> Tensor:
    """Return whether the module's logits leave bounds that must hold them, `(n,)` bool.

    There is no room for what the module rounds where that is in the bounds.
    """
    values = logits.to(bounds.dtype)
    if network.unit is not None:
        return ((values < bounds.lower) | (values > bounds.upper)).any(1)
    share = FAITHFUL[logits.dtype] * (1 if is_host(logits.device) else _COARSER)
    room = share * values.abs().amax(1, keepdim=True).clamp_min(1)
    return ((values < bounds.lower - room) | (values > bounds.upper + room)).any(1)
