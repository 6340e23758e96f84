"""Interval rules of derivatives: what a cotangent becomes when it walks back through an operator.

A cotangent is an interval for the derivative of the output by a value. A rule takes the cotangent
of an operator's result and the operator's arguments, an `Interval` in place of each tensor that
depends on the input, and returns the cotangents of those tensors in their order.

Affine operators carry centre and radius back by the vector-Jacobian products of the operator and
of the one with the magnitudes of its weights. Kinked operators have a file of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from pytest_triguard.verification import kinks, rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import TABLE, Rule, Unsupported

Derivative = Callable[..., list[Interval]]
_Map = Callable[[Tensor], Tensor]

_FACTOR_ROUNDINGS = 16
"""Roundings of a factor that is computed from statistics or by a division, at most."""


def carried_back(
    cotangent: Interval,
    node: fx.Node,
    rule: Rule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Interval]:
    """Carry the cotangent of an operator's result back to its arguments.

    Args:
        cotangent: Of the result.
        node: The operator's node.
        rule: Its rule.
        args: Arguments of the rule's interval.
        kwargs: Its other arguments.

    Returns:
        The cotangent of each argument that depends on the input, in the order of the names.

    Raises:
        Unsupported: If the operator has no derivative's rule.
    """
    return _derivative(node, rule)(cotangent, *args, **kwargs)


def _derivative(node: fx.Node, rule: Rule) -> Derivative:
    if node.op == "call_method" and str(node.target).rstrip("_") == "detach":
        return _detached
    if rule in _MOVED:
        return _moved(rule)
    found = _DERIVATIVES.get(rule)
    if found is None:
        raise Unsupported("it has no derivative rule, as every piecewise-linear operator needs")
    return found


# --- affine operators -----------------------------------------------------------------------------


def _transposed(
    cotangent: Interval, input: Interval, apply: _Map, magnitudes: _Map, terms: int
) -> Interval:
    """Carry a cotangent back through an affine operator.

    Args:
        cotangent: Of the result.
        input: The argument.
        apply: The operator without its offset.
        magnitudes: The operator with the magnitudes of its weights.
        terms: Number of products in a sum of the transpose, at most.
    """
    gamma, floor = rounding.gamma(terms, cotangent.dtype), rounding.tiny(cotangent.dtype)
    centre, radius = cotangent.centre_and_radius()
    value = _vector_jacobian(apply, input, centre)
    reach = radius.mul_(1 + 4 * gamma).add_(centre.abs(), alpha=2 * gamma)
    spread = _vector_jacobian(magnitudes, input, reach).add_((terms + 1) * floor)
    spread.add_(value.abs(), alpha=4 * rounding.roundoff(value.dtype))
    return Interval(value - spread, value + spread)


def _vector_jacobian(apply: _Map, input: Interval, cotangent: Tensor) -> Tensor:
    with torch.enable_grad():
        point = torch.zeros_like(input.lower).requires_grad_()
        (product,) = torch.autograd.grad(apply(point), point, cotangent)
    return product


def _averaged(cotangent: Interval, input: Interval, average: _Map, terms: int) -> list[Interval]:
    return [_transposed(cotangent, input, average, average, terms)]


def _linear(
    cotangent: Interval, input: Interval, weight: Tensor, bias: Tensor | None = None
) -> list[Interval]:
    del bias
    exact = weight.to(cotangent.dtype)

    def apply(values: Tensor) -> Tensor:
        return functional.linear(values, exact)

    def magnitudes(values: Tensor) -> Tensor:
        return functional.linear(values, exact.abs())

    return [_transposed(cotangent, input, apply, magnitudes, len(weight))]


def _conv2d(
    cotangent: Interval,
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> list[Interval]:
    del bias
    exact = weight.to(cotangent.dtype)

    def apply(values: Tensor) -> Tensor:
        return functional.conv2d(values, exact, None, stride, padding, dilation, groups)

    def magnitudes(values: Tensor) -> Tensor:
        return functional.conv2d(values, exact.abs(), None, stride, padding, dilation, groups)

    terms = weight.numel() // (weight.shape[1] * groups)
    return [_transposed(cotangent, input, apply, magnitudes, terms)]


def _batch_norm(
    cotangent: Interval,
    input: Interval,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> list[Interval]:
    del running_mean, bias, training, momentum
    factor = (running_var.to(cotangent.dtype) + eps).sqrt().reciprocal()
    if weight is not None:
        factor = factor * weight.to(cotangent.dtype)
    return [scaled(cotangent, input, factor.view(1, -1, *[1] * (len(input.shape) - 2)))]


def scaled(cotangent: Interval, input: Interval, factor: Tensor) -> Interval:
    """Carry a cotangent back through a product with constants, broadcast in either direction."""
    terms = _stretch(cotangent, input) + _FACTOR_ROUNDINGS
    magnitudes = factor.abs()
    return _transposed(
        cotangent, input, lambda values: values * factor, lambda values: values * magnitudes, terms
    )


def _stretch(result: Interval, input: Interval) -> int:
    """Return how many elements of the result come from one of the argument."""
    return max(1, result.lower.numel() // max(1, input.lower.numel()))


def _avg_pool2d(
    cotangent: Interval, input: Interval, kernel_size: Any, *args: Any, **kwargs: Any
) -> list[Interval]:
    def average(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, kernel_size, *args, **kwargs)

    return _averaged(cotangent, input, average, cotangent.shape[-2:].numel())


def _adaptive_avg_pool2d(cotangent: Interval, input: Interval, output_size: Any) -> list[Interval]:
    def average(values: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(values, output_size)

    return _averaged(cotangent, input, average, cotangent.shape[-2:].numel())


def _mean(
    cotangent: Interval, input: Interval, dim: Any = None, keepdim: bool = False
) -> list[Interval]:
    return _averaged(cotangent, input, lambda values: values.mean(dim, keepdim), 1)


# --- sums, and products with constants ------------------------------------------------------------


def added(one: Interval, two: Interval) -> Interval:
    """Return the cotangent of a value that goes two ways."""
    return Interval(rounding.down(one.lower + two.lower, 1), rounding.up(one.upper + two.upper, 1))


def _add(cotangent: Interval, input: Any, other: Any, *, alpha: float = 1) -> list[Interval]:
    _plain(alpha)
    return [_shrunk(cotangent, each) for each in (input, other) if isinstance(each, Interval)]


def _sub(cotangent: Interval, input: Any, other: Any, *, alpha: float = 1) -> list[Interval]:
    _plain(alpha)
    parts = []
    if isinstance(input, Interval):
        parts.append(_shrunk(cotangent, input))
    if isinstance(other, Interval):
        parts.append(_shrunk(_negative(cotangent), other))
    return parts


def _neg(cotangent: Interval, input: Interval) -> list[Interval]:
    del input
    return [_negative(cotangent)]


def _mul(cotangent: Interval, input: Any, other: Any) -> list[Interval]:
    if isinstance(input, Interval) and isinstance(other, Interval):
        raise Unsupported("a product of two values that depend on the input has no constant slope")
    value, constant = (input, other) if isinstance(input, Interval) else (other, input)
    return [scaled(cotangent, value, _constant(constant, cotangent))]


def _div(cotangent: Interval, input: Interval, other: Any) -> list[Interval]:
    if isinstance(other, Interval):
        raise Unsupported("a quotient by a value that depends on the input has no constant slope")
    return [scaled(cotangent, input, _constant(other, cotangent).reciprocal())]


def _plain(alpha: Any) -> None:
    if alpha != 1:
        raise Unsupported(f"alpha={alpha}")


def _constant(value: Any, like: Interval) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like.dtype)
    return like.lower.new_full((), float(value))


def _negative(cotangent: Interval) -> Interval:
    return Interval(-cotangent.upper, -cotangent.lower)


def _shrunk(cotangent: Interval, input: Interval) -> Interval:
    """Return a cotangent summed over what the argument was stretched over."""
    if cotangent.shape == input.shape:
        return cotangent
    return scaled(cotangent, input, cotangent.lower.new_ones(cotangent.shape))


# --- operators that move elements -----------------------------------------------------------------


def _same(cotangent: Interval, input: Interval, *args: Any, **kwargs: Any) -> list[Interval]:
    del input, args, kwargs
    return [cotangent]


def _detached(cotangent: Interval, input: Interval) -> list[Interval]:
    """Return zero: frameworks pass nothing back here, although the value depends on the input."""
    del cotangent
    nothing = torch.zeros_like(input.lower)
    return [Interval(nothing, nothing)]


def _moved(rule: Rule) -> Derivative:
    """Return the derivative of an operator that moves every element to one place."""

    def back(cotangent: Interval, input: Interval, *args: Any, **kwargs: Any) -> list[Interval]:
        def apply(values: Tensor) -> Tensor:
            return rule.interval(Interval(values, values), *args, **kwargs).lower

        return [cotangent.rearranged(lambda each: _vector_jacobian(apply, input, each))]

    return back


def _cat(cotangent: Interval, tensors: Sequence[Any], dim: int = 0) -> list[Interval]:
    sizes = [each.shape[dim] for each in tensors]
    lower, upper = (torch.split(each, sizes, dim) for each in (cotangent.lower, cotangent.upper))
    return [
        Interval(lower[place], upper[place])
        for place, each in enumerate(tensors)
        if isinstance(each, Interval)
    ]


_MOVED = frozenset(
    TABLE[key]
    for key in (
        torch.flatten,
        torch.reshape,
        torch.permute,
        torch.transpose,
        torch.squeeze,
        torch.unsqueeze,
    )
)
_DERIVATIVES: dict[Rule, Derivative] = {
    TABLE[key]: rule
    for key, rule in (
        (functional.linear, _linear),
        (functional.conv2d, _conv2d),
        (functional.batch_norm, _batch_norm),
        (functional.avg_pool2d, _avg_pool2d),
        (functional.adaptive_avg_pool2d, _adaptive_avg_pool2d),
        (torch.mean, _mean),
        (operator.add, _add),
        (operator.sub, _sub),
        (operator.neg, _neg),
        (operator.mul, _mul),
        (operator.truediv, _div),
        (torch.cat, _cat),
        (nn.Identity, _same),
        (functional.dropout, _same),
        (functional.relu, kinks.relu),
        (functional.leaky_relu, kinks.leaky_relu),
        (functional.relu6, kinks.relu6),
        (functional.hardtanh, kinks.hardtanh),
        (functional.hardsigmoid, kinks.hardsigmoid),
        (torch.clamp, kinks.clamp),
        (torch.clamp_min, kinks.clamp_min),
        (torch.clamp_max, kinks.clamp_max),
        (torch.abs, kinks.absolute),
        (functional.max_pool2d, kinks.max_pool2d),
        (torch.amax, kinks.amax),
    )
}
