"""Whether a value depends on another one through affine operators and known rules alone."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

_NAMES = """
    AccumulateGrad Add Sub Rsub Neg Mul Div Mm Bmm Mv Addmm Baddbmm Linear Convolution View
    UnsafeView ReshapeAlias Transpose T Permute Expand Squeeze Unsqueeze Slice Select Index
    IndexSelect Gather Scatter Cat Stack Split SplitWithSizes Unbind Sum Mean AvgPool2D
    AdaptiveAvgPool2D MkldnnAdaptiveAvgPool2D NativeBatchNorm CudnnBatchNorm MiopenBatchNorm
    ConstantPadNd ReflectionPad2D ReplicationPad2D UpsampleNearest2D UpsampleBilinear2D
    UpsampleBicubic2D PixelShuffle PixelUnshuffle Roll Flip Clone ToCopy AsStrided Copy CopySlices
    Alias Repeat MaskedFill Where ChannelShuffle NativeChannelShuffle
"""
_AFFINE = frozenset(_NAMES.split())
"""Operators by the names of their nodes in autograd's graph."""

_PRODUCTS = frozenset(
    ["Mul", "Div", "Mm", "Bmm", "Mv", "Addmm", "Baddbmm", "Linear", "Convolution"]
)
"""Those that are affine in one factor, but not in two."""


def not_affine(value: Tensor, rules: frozenset[str]) -> str | None:
    """Return the name of an operator on the way to a value that is neither affine nor a rule.

    Args:
        value: The value, with its graph.
        rules: Names of the nodes of known rules.

    Returns:
        The name, as autograd knows it, or None if there is no such operator.
    """
    waiting: list[Any] = [value.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = re.sub(r"Backwards?\d*$", "", node.name().rpartition("::")[2])
        followed = [each for each, _ in node.next_functions]
        if name not in rules and (name not in _AFFINE or _is_product(name, node, followed)):
            return name
        waiting += followed
    return None


def _is_product(name: str, node: Any, followed: list[Any]) -> bool:
    """Return whether a node that can be affine is not, for what it is given."""
    if getattr(node, "_saved_training", False):  # a normalisation by the statistics of its input
        return True
    present = [each is not None for each in followed]
    divides = name == "Div" and len(present) > 1 and present[1]
    return name in _PRODUCTS and (sum(present) > 1 or divides)
