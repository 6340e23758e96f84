"""Rules of ReLU and leaky ReLU, which have one kink at zero: the operators that can be split."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.tunable import Tunable


def relu(input: Interval, inplace: bool = False) -> Interval:
    """Bounds of `functional.relu`, which rounds nothing."""
    del inplace
    return input.rectified()


def relu_relaxation(input: Interval, inplace: bool = False) -> Tunable:
    """Below the chord; above 0 or the identity, whichever leaves the smaller triangle.

    References:
        Zhang et al. 2018, "Efficient Neural Network Robustness Certification with General
        Activation Functions", arXiv:1811.00866, section 3.2.
    """
    return leaky_relu_relaxation(input, 0.0, inplace)


def relu_open(input: Interval, inplace: bool = False) -> list[tuple[Interval, Tensor]]:
    """Elements that may be on either side of zero."""
    del inplace
    return [(input, (input.lower < 0) & (input.upper > 0))]


def leaky_relu(input: Interval, negative_slope: float = 0.01, inplace: bool = False) -> Interval:
    """Bounds of `functional.leaky_relu`."""
    del inplace
    if not negative_slope >= 0:
        raise Unsupported(f"negative_slope={negative_slope}")
    lower = functional.leaky_relu(input.lower, negative_slope)
    upper = functional.leaky_relu(input.upper, negative_slope)
    return Interval(rounding.down(lower, 1), rounding.up(upper, 1))


def leaky_relu_relaxation(
    input: Interval, negative_slope: float = 0.01, inplace: bool = False
) -> Tunable:
    """Between a line through zero and the chord.

    The function is convex, so that the chord, with an offset that holds at both ends, is above it,
    and every line through zero with a slope from `negative_slope` to 1 below it.
    """
    del inplace
    if not 0 <= negative_slope <= 1:
        raise Unsupported(f"negative_slope={negative_slope}")
    least = negative_slope
    low, high = input.lower.clamp_max(0), input.upper.clamp_min(0)
    reach = (high - low).add_(rounding.tiny(input.dtype))
    chord = high.div_(reach)
    height = low.mul_(chord).mul_(least - 1)
    return Tunable(input, least, chord, height, reach)


def leaky_relu_open(
    input: Interval, negative_slope: float = 0.01, inplace: bool = False
) -> list[tuple[Interval, Tensor]]:
    """Elements that may be on either side of zero."""
    del negative_slope
    return relu_open(input, inplace)


def leaky_relu_evaluation(
    input: Interval, negative_slope: float = 0.01, inplace: bool = False, *, unit: float
) -> Tensor:
    """Rounding of the module's own product below zero."""
    del inplace
    size = input.magnitude
    return size * (4 * unit * negative_slope) + rounding.lost(size + negative_slope)
