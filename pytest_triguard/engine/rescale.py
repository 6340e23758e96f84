"""The rescale rule of DeepLIFT: going backward by differences from a reference.

Every operator that is not affine gets a multiplier in place of its derivative, such that
multipliers times differences of the input sum to the difference of the output. The chain of all of
them then splits the change of the output among the inputs exactly. An operator without a rule is
refused by name, and so is one whose result hides what it depends on: see `affine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.engine import checkpoints
from pytest_triguard.engine.backward_rules import (
    BackwardRules,
    Function,
    carries_gradient,
    in_place,
    operator_name,
)
from pytest_triguard.engine.maxima import MAXIMA, Maximum
from pytest_triguard.errors import ModelError

_NAMES = """
    relu relu6 leaky_relu prelu elu selu celu gelu silu mish sigmoid logsigmoid tanh softplus
    softsign hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink threshold abs clamp
    clamp_min clamp_max clip exp expm1 log log1p sqrt rsqrt square reciprocal sin cos erf
"""
_ELEMENTWISE = frozenset(_NAMES.split())
_LARGEST = frozenset((*MAXIMA, "amin"))
_BILINEAR = frozenset(("mul", "multiply", "matmul", "bmm", "mm"))
_QUOTIENTS = frozenset(("div", "divide", "true_divide"))
_SOFTMAX = frozenset(("softmax", "log_softmax"))
_RULED = _ELEMENTWISE | _LARGEST | _BILINEAR | _QUOTIENTS | _SOFTMAX | {"pow"}
_PLACES = (("input",), ("other", "exponent", "mat2"))
"""Names of the first two arguments of operators that have rules."""
_READS = frozenset({"item", "tolist", "__bool__", "__float__", "__int__"})
_SHAPES_ONLY = ("_like", "new_")
"""Parts of the names of operators that take no more than a shape from a tensor."""

NODES = frozenset({"_Stand", "_Scaled", "_Largest"})
"""Names of the nodes that the rules leave in autograd's graph."""

Run = Callable[[Tensor], Tensor]


class NotByRows(Exception):
    """The network does not keep its samples in the first dimension."""


class Rescale(BackwardRules):
    """Rules that know the differences from a reference.

    The network runs on the reference first, in the block of `reading`, and then on the samples, in
    the block of the rules themselves; both must call the same operators.

    Args:
        method: Name of the method, for messages.
    """

    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method
        self._reading = self._shared = False
        self._read: list[tuple[str, Tensor, int]] = []
        self._next = 0
        self.before_rule: Callable[[str], None] | None = None

    @contextmanager
    def reading(self, *, shared: bool = False) -> Iterator[None]:
        """Keep what the operators are given by the reference.

        Args:
            shared: Whether one row stands for the references of all samples. Where the network
                does not keep them in the first dimension, its samples will raise `NotByRows`.

        Raises:
            ModelError: If the network computes a part of itself again on the way back, where the
                rules would not hold.
        """
        self._read, self._next, self._reading, self._shared = [], 0, True, shared
        try:
            with checkpoints.refused(self._method), self:
                yield
        finally:
            self._reading = False

    def apply(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what an operator gives, its multipliers attached."""
        name = operator_name(func)
        if name in _RULED:
            args, kwargs = _by_place(args, kwargs)
        if kwargs.get("rounding_mode") is not None:
            raise ModelError(f"{self._method} has no rule for the operator {name} where it rounds")
        rule = self._rule(name, args)
        if rule is not None:
            if self.before_rule is not None:
                self.before_rule(name)
            return rule(func, args, kwargs)
        result = func(*args, **kwargs)
        hidden = isinstance(result, Tensor) and not result.requires_grad
        if name in _READS or (hidden and not any(part in name for part in _SHAPES_ONLY)):
            raise ModelError(
                f"{self._method} needs to follow every value through the network, but the operator "
                f"{name} hides what its result depends on"
            )
        return result

    def _rule(self, name: str, args: Any) -> Callable[[Function, Any, dict[str, Any]], Any] | None:
        if name in _ELEMENTWISE or (name == "pow" and not isinstance(args[1], Tensor)):
            return self._elementwise
        if name in _LARGEST:
            return self._largest
        if name in _SOFTMAX:
            return self._softmax
        both = len(args) > 1 and all(map(carries_gradient, args[:2]))
        if name in _BILINEAR and both:
            return self._bilinear
        if name in _QUOTIENTS and carries_gradient(args[1]):
            return self._quotient
        return None

    def _beside(self, name: str, values: Tensor) -> Tensor:
        """Return what the reference gave an operator, or keep it while the reference is read."""
        if self._reading:
            own = values.detach()
            self._read.append((name, own, own._version))
            return own
        known = self._next < len(self._read)
        other, reference, version = self._read[self._next] if known else ("", values, 0)
        self._next += 1
        one_row = self._shared and reference.shape == (1, *values.shape[1:])
        alike = one_row or reference.shape == values.shape
        if self._shared and other == name and not alike:
            raise NotByRows
        if other != name or not alike:
            raise ModelError(
                f"{self._method} needs the same operators for sample and baseline, but the "
                f"operator {name} met {other or 'none'}; the network decides by its values"
            )
        if reference._version != version:
            raise ModelError(
                f"{self._method} needs the input of the operator {name}, but the network "
                "overwrites it in place"
            )
        return reference

    def _elementwise(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Tensor:
        values, rest = args[0], args[1:]
        overwrites = in_place(func, rest, kwargs)

        def run(inputs: Tensor) -> Tensor:
            given: Tensor = func(inputs.clone() if overwrites else inputs, *rest, **kwargs)
            return given

        own = values.detach().clone() if overwrites else values.detach()
        name = operator_name(func)
        reference = self._beside(name, own)
        if self._reading:
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        if name == "relu":
            found, factor = run(own), _rectified(own, reference)
        else:
            slope, found = _slope(run, own)
            factor = _ratio(found - run(reference), own, reference, slope)
        result: Tensor = _Scaled.apply(values, factor, (found,))
        return _kept(values, result, overwrites)

    def _bilinear(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Tensor:
        first, second = args
        name = operator_name(func)
        references = [self._beside(name, each) for each in (first, second)]
        if self._reading:
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        means = [(each.detach() + other) / 2 for each, other in zip(args, references, strict=False)]
        plain: Callable[[Tensor, Tensor], Tensor] = getattr(torch, name)
        result = plain(first.detach(), second.detach())
        parts = plain(first, means[1]) + plain(means[0], second)
        result = _stand(parts, result)
        return _kept(first, result, in_place(func, (), kwargs))

    def _quotient(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Tensor:
        first, second = args[:2]
        inverse = self._elementwise(torch.reciprocal, (second,), {})
        both = carries_gradient(first)
        result = self._bilinear(torch.mul, (first, inverse), {}) if both else inverse * first
        return _kept(first, result, in_place(func, (), kwargs))

    def _largest(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        values, rest, name = args[0], args[1:], operator_name(func)
        reference = self._beside(name, values)
        if self._reading:
            return func(*args, **kwargs)
        if name == "amin":
            return -_Largest.apply(-values, -reference, MAXIMA["amax"](*rest, **kwargs))
        return _Largest.apply(values, reference, MAXIMA[name](*rest, **kwargs))

    def _softmax(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Take a softmax for what it is made of: exponentials, their sum, and a product."""
        values, name = args[0], operator_name(func)
        dim = kwargs["dim"] if "dim" in kwargs else args[1]
        if dim is None:  # what torch takes then, with a warning
            dim = 0 if values.ndim in (0, 1, 3) else 1
        own, reference = values.detach(), self._beside(name, values)
        shift = torch.maximum(own.amax(dim, keepdim=True), reference.amax(dim, keepdim=True))
        powers, others = (own - shift).exp(), (reference - shift).exp()
        total, base = powers.sum(dim, keepdim=True), others.sum(dim, keepdim=True)
        factor = _ratio(powers - others, own, reference, powers)
        if name == "log_softmax":
            slope = _ratio((total / base).log(), total, base, 1 / total)
            parts = values - slope * (values * factor).sum(dim, keepdim=True)
        else:
            slope = _ratio(1 / total - 1 / base, total, base, -1 / total**2)
            parts = values * factor * ((1 / total + 1 / base) / 2)
            parts = parts + (powers + others) / 2 * slope * (values * factor).sum(dim, keepdim=True)
        result: Tensor = func(own, *args[1:], **kwargs)
        return _stand(parts, result)


def _by_place(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of an operator with the first two in their places, not by name."""
    placed, named = list(args), dict(kwargs)
    for place, names in enumerate(_PLACES):
        found = [name for name in names if name in named]
        if len(placed) == place and found:
            placed.append(named.pop(found[0]))
    return tuple(placed), named


def _kept(values: Tensor, result: Tensor, overwrites: bool) -> Tensor:
    """Return a result, in the place of the values if their operator overwrites them."""
    return values.copy_(result) if overwrites else result


def _slope(run: Run, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return derivative and result of an elementwise function."""
    with torch.enable_grad():
        leaf = values.detach().requires_grad_()
        result = run(leaf)
        (slope,) = torch.autograd.grad(result.sum(), leaf)
    return slope, result.detach()


def _ratio(change: Tensor, values: Tensor, reference: Tensor, slope: Tensor | float) -> Tensor:
    """Return change by difference, and the slope where the difference is lost in rounding.

    The change is overwritten.
    """
    # In place as far as it goes: fresh memory would cost more than the arithmetic.
    difference = values - reference
    ratio = change.div_(difference)
    least = values.abs().mul_(torch.finfo(values.dtype).eps ** 0.75)
    return torch.where(difference.abs_() > least, ratio, slope)


def _rectified(values: Tensor, reference: Tensor) -> Tensor:
    """Return what of a difference a ReLU lets through, as a share of it; of none, its slope."""
    difference = (values - reference).abs_().clamp_min_(torch.finfo(values.dtype).tiny)
    return torch.maximum(values, reference).div_(difference).clamp_(0, 1)


class _Stand(torch.autograd.Function):
    """A value that goes backward as another one does."""

    @staticmethod
    def forward(ctx: Any, stand: Tensor, value: tuple[Tensor]) -> Tensor:
        return value[0]  # in a tuple, so that it is no input, whose view could not be overwritten

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Scaled(torch.autograd.Function):
    """A value that goes backward by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor, result: tuple[Tensor]) -> Tensor:
        ctx.save_for_backward(factor)
        return result[0]  # as in _Stand

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None, None


def _stand(stand: Tensor, value: Tensor) -> Tensor:
    """Return a value that goes backward as `stand` does."""
    result: Tensor = _Stand.apply(stand, (value,))
    return result


class _Largest(torch.autograd.Function):
    """A maximum whose change is given to the places that hold it.

    Where the sample has the larger maximum, the change belongs to the place of that maximum; else
    to the place of the reference's.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, reference: Tensor, maximum: Maximum) -> Tensor:
        own = values.detach()
        (found, places), (base, others) = maximum.of(own), maximum.of(reference)
        others = others.expand_as(places)
        top = torch.maximum(found, base)
        gained = _ratio(top - base, found, maximum.at(reference.expand_as(own), places), 1.0)
        lost = _ratio(found - top, maximum.at(own, others), base, 0.0)
        ctx.maximum = maximum
        ctx.save_for_backward(own, gained, places, lost, others)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        own, gained, places, lost, others = ctx.saved_tensors
        ends = ((gained, places), (lost, others))
        first, second = (ctx.maximum.spread(gradients[0] * each, own, at) for each, at in ends)
        return first.add_(second), None, None
