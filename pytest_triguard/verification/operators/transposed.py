"""Rules of the transposed convolution: a product with weights, as a convolution is."""

from __future__ import annotations

from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators.affine import Product, bounded, evaluated, relaxed
from pytest_triguard.verification.operators.rule import Unsupported
from pytest_triguard.verification.relaxations import Affine


def _conv_transpose2d(
    input: Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Tensor, Product]:
    """Return the bias, zero where there is none, and the product."""
    if len(input.shape) != 4:
        raise Unsupported(f"a value of {len(input.shape)} dimensions")
    rows, columns = input.shape[2:]

    def apply(values: Tensor, weights: Tensor, offset: Tensor | None) -> Tensor:
        return functional.conv_transpose2d(
            values, weights, offset, stride, padding, output_padding, groups, dilation
        )

    def transpose(flat: Tensor, weights: Tensor) -> Tensor:
        found = functional.conv2d(flat, weights, None, stride, padding, dilation, groups)
        # An output padding as large as the stride leaves room for windows past the end.
        return found[:, :, :rows, :columns]

    def largest(magnitudes: Tensor, scale: Tensor) -> Tensor:
        by_channel = scale.amax((0, 2, 3)).view(groups, -1, 1)
        by_group = magnitudes.amax((2, 3)).view(groups, -1, magnitudes.shape[1])
        return (by_group * by_channel).amax(1).view(-1, 1, 1)

    def norms(magnitudes: Tensor) -> Tensor:
        by_group = magnitudes.view(groups, -1, *magnitudes.shape[1:])
        return by_group.sum((1, 3, 4)).flatten()

    fan_in = weight.shape[0] // groups * weight[0, 0].numel()
    offset = weight.new_zeros(weight.shape[1] * groups) if bias is None else bias

    def elements() -> int:
        return apply(input.lower[:1], weight.to(input.dtype), None).numel()

    fan_out, outputs = weight[0].numel(), len(offset)
    product = Product(
        apply, transpose, fan_in, fan_out, outputs, elements, largest, (-1, 1, 1), norms=norms
    )
    return offset, product


@wraps(_conv_transpose2d)
def conv_transpose2d(input: Interval, weight: Tensor, *args: Any, **kwargs: Any) -> Interval:
    """Bounds of `functional.conv_transpose2d`."""
    return bounded(input, weight, *_conv_transpose2d(input, weight, *args, **kwargs))


def conv_transpose2d_relaxation(
    input: Interval, weight: Tensor, *args: Any, **kwargs: Any
) -> Affine:
    """The transposed convolution itself."""
    return relaxed(input, weight, *_conv_transpose2d(input, weight, *args, **kwargs))


def conv_transpose2d_evaluation(
    input: Interval, weight: Tensor, *args: Any, unit: float, **kwargs: Any
) -> Tensor:
    """Rounding of the module's own product."""
    return evaluated(input, weight, *_conv_transpose2d(input, weight, *args, **kwargs), unit)


def conv_transpose2d_arguments(module: nn.ConvTranspose2d) -> dict[str, Any]:
    """Return the arguments of a transposed convolution module."""
    names = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    return {name: getattr(module, name) for name in names}


CONV_TRANSPOSE2D: dict[str, Any] = {
    "interval": conv_transpose2d,
    "relaxation": conv_transpose2d_relaxation,
    "evaluation": conv_transpose2d_evaluation,
    "arguments": conv_transpose2d_arguments,
}
