"""The operators of four families as the tests see them: a new call is one row of its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from operator import getitem, truediv

import torch
from torch.nn import functional

from tests.verification.enclosures import Case

Tensor = torch.Tensor
SHAPE = ((4, 3, 5),)
MOVED = {
    "slice": Case(getitem, getitem, SHAPE, args=((slice(None), slice(1, None, 2)),)),
    "first": Case(getitem, getitem, SHAPE, args=((slice(None), 0),)),
    "last of each": Case(getitem, getitem, SHAPE, args=((..., -1),)),
    "new dimension": Case(getitem, getitem, SHAPE, args=((slice(None), None, ..., 2),)),
    "chunk": Case("chunk", Tensor.chunk, SHAPE, {"chunks": 3, "dim": 1}),
    "split": Case(torch.split, torch.split, SHAPE, {"split_size_or_sections": [2, 3], "dim": -1}),
    "split into equals": Case(
        torch.split, torch.split, SHAPE, {"split_size_or_sections": 2, "dim": 3}
    ),
    "tensor split": Case("tensor_split", Tensor.tensor_split, SHAPE, {"dim": 3}, args=(2,)),
    "unbind": Case("unbind", Tensor.unbind, SHAPE, {"dim": 2}),
    "select": Case("select", Tensor.select, SHAPE, {"dim": 3, "index": -2}),
    "narrow": Case("narrow", Tensor.narrow, SHAPE, {"dim": 3, "start": 1, "length": 2}),
    "movedim": Case("movedim", Tensor.movedim, SHAPE, {"source": 1, "destination": -1}),
    "unflatten": Case("unflatten", Tensor.unflatten, SHAPE, {"dim": 1, "sizes": (2, 2)}),
    "roll": Case("roll", Tensor.roll, SHAPE, {"shifts": (1, -2), "dims": (1, 3)}),
    "flip": Case("flip", Tensor.flip, SHAPE, args=((1, 3),)),
    "expand": Case("expand", Tensor.expand, ((1, 4, 3, 5),), args=(-1, 6, 4, 3, 5)),
    "repeat": Case("repeat", Tensor.repeat, SHAPE, args=(1, 2, 1, 3)),
    "shuffle": Case(
        functional.pixel_shuffle, functional.pixel_shuffle, SHAPE, {"upscale_factor": 2}
    ),
    "unshuffle": Case(
        functional.pixel_unshuffle,
        functional.pixel_unshuffle,
        ((3, 4, 6),),
        {"downscale_factor": 2},
    ),
    "channels": Case(functional.channel_shuffle, functional.channel_shuffle, SHAPE, {"groups": 2}),
    "zeros": Case(functional.pad, functional.pad, SHAPE, {"pad": (1, 2, 0, 3)}),
    "ones": Case(functional.pad, functional.pad, SHAPE, {"pad": (1, -2), "value": 1.5}),
    "reflected": Case(
        functional.pad, functional.pad, SHAPE, {"pad": (2, 1, 1, 2), "mode": "reflect"}
    ),
    "replicated": Case(
        functional.pad, functional.pad, SHAPE, {"pad": (2, 1, 3, 2), "mode": "replicate"}
    ),
    "nearest": Case(functional.interpolate, functional.interpolate, SHAPE, {"size": (7, 3)}),
    "nearest exact": Case(
        functional.interpolate,
        functional.interpolate,
        SHAPE,
        {"scale_factor": 1.7, "mode": "nearest-exact"},
    ),
}
MIXED = {
    "tenths": Case(functional.pad, functional.pad, SHAPE, {"pad": (1, -2), "value": 0.1}),
    "bilinear": Case(
        functional.interpolate,
        functional.interpolate,
        SHAPE,
        {"size": (7, 3), "mode": "bilinear", "align_corners": False},
    ),
    "bilinear at corners": Case(
        functional.interpolate,
        functional.interpolate,
        SHAPE,
        {"scale_factor": (2.5, 1.3), "mode": "bilinear", "align_corners": True},
    ),
    "area": Case(
        functional.interpolate, functional.interpolate, SHAPE, {"size": (2, 3), "mode": "area"}
    ),
    "sum": Case("sum", Tensor.sum, SHAPE, {"dim": (1, 3)}),
    "sum kept": Case(torch.sum, torch.sum, SHAPE, {"dim": -1, "keepdim": True}),
    "transposed convolution": Case(
        functional.conv_transpose2d,
        functional.conv_transpose2d,
        SHAPE,
        {
            "weight": torch.randn(4, 3, 3, 2, generator=torch.Generator().manual_seed(0)),
            "bias": torch.randn(6, generator=torch.Generator().manual_seed(1)),
            "stride": (2, 3),
            "padding": (1, 0),
            "output_padding": (1, 2),
            "groups": 2,
            "dilation": (2, 1),
        },
    ),
    "plain transposed convolution": Case(
        functional.conv_transpose2d,
        functional.conv_transpose2d,
        SHAPE,
        {"weight": torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(2))},
    ),
    "padding past the stride": Case(
        functional.conv_transpose2d,
        functional.conv_transpose2d,
        SHAPE,
        {
            "weight": torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(2)),
            "dilation": 3,
            "output_padding": 2,
        },
    ),
}

ATTENTION = {
    "softmax": Case(torch.softmax, torch.softmax, ((3, 5),), {"dim": -1}),
    "softmax over the middle": Case(torch.softmax, torch.softmax, ((4, 3),), {"dim": 1}),
    "softmax of one": Case(torch.softmax, torch.softmax, ((3, 1),), {"dim": 2}),
    "log-softmax": Case(torch.log_softmax, torch.log_softmax, ((3, 5),), {"dim": -1}),
    "log-softmax of large": Case(
        torch.log_softmax,
        torch.log_softmax,
        ((3, 5),),
        {"dim": -1},
        lambda place, low, high: (1e4 * low, 1e4 * high),
    ),
    "softmax of large": Case(
        torch.softmax,
        torch.softmax,
        ((3, 5),),
        {"dim": -1},
        lambda place, low, high: (100 * low, 100 * high),
    ),
    "product": Case(torch.matmul, torch.matmul, ((2, 3, 4), (2, 4, 5))),
    "product with a matrix": Case(torch.matmul, torch.matmul, ((3, 4), (4, 5)), constants=(1,)),
    "product with matrices": Case(
        torch.matmul, torch.matmul, ((2, 3, 4), (2, 4, 5)), constants=(1,)
    ),
    "product of a matrix": Case(torch.matmul, torch.matmul, ((5, 3), (3, 4)), constants=(0,)),
}


def away(sign):
    """Return ends of which those of the divisor are on one side of zero."""

    def draw(place, low, high):
        if place == 0:
            return low, high
        near, wide = 0.1 + low.abs(), high - low
        return (near, near + wide) if sign > 0 else (-near - wide, -near)

    return draw


DIVISION = {
    "positive": Case(truediv, truediv, ((3, 4), (3, 4)), draw=away(1)),
    "negative": Case(truediv, truediv, ((3, 4), (3, 4)), draw=away(-1)),
    "broadcast": Case("div", torch.div, ((3, 4), (3, 1)), draw=away(1)),
    "wider divisor": Case("div", torch.div, ((3, 1), (3, 4)), draw=away(-1)),
    "of a constant": Case(truediv, truediv, ((3, 4), (3, 4)), draw=away(1), constants=(0,)),
    "of a smaller constant": Case(truediv, truediv, ((4,), (3, 4)), draw=away(-1), constants=(0,)),
    "by a constant": Case(truediv, truediv, ((3, 4), (3, 4)), constants=(1,)),
}

GENERATOR = torch.Generator().manual_seed(5)
WEIGHT, BIAS = torch.randn(2, 6, generator=GENERATOR)
WIDE = torch.randn(3, 4, generator=GENERATOR)


def far(place, low, high):
    return low + 300, high + 300


NORMALISATION = {
    "layer": Case(
        functional.layer_norm,
        functional.layer_norm,
        ((5, 6),),
        {"normalized_shape": (6,), "weight": WEIGHT, "bias": BIAS, "eps": 1e-6},
    ),
    "layer over two": Case(
        functional.layer_norm,
        functional.layer_norm,
        ((2, 3, 4),),
        {"normalized_shape": (3, 4), "weight": WIDE, "eps": 0.1},
    ),
    "single": Case(
        functional.layer_norm, functional.layer_norm, ((5, 1),), {"normalized_shape": (1,)}
    ),
    "pair": Case(
        functional.layer_norm, functional.layer_norm, ((5, 2),), {"normalized_shape": (2,)}
    ),
    "group": Case(
        functional.group_norm,
        functional.group_norm,
        ((6, 2, 3),),
        {"num_groups": 3, "weight": WEIGHT, "bias": BIAS},
    ),
    "instance": Case(
        functional.instance_norm,
        functional.instance_norm,
        ((6, 3, 3),),
        {"weight": WEIGHT, "bias": BIAS, "eps": 1e-3},
    ),
}
FAR = {
    "layer far from zero": Case(
        functional.layer_norm, functional.layer_norm, ((5, 6),), {"normalized_shape": [6]}, far
    ),
}


@dataclass(frozen=True)
class Family:
    """Calls that the same promises are checked on.

    Attributes:
        cases: The calls by name.
        point: Width of the bounds of a point, as a share of its values.
        widest: Radius up to which the stated error of the module in float32 is checked.
    """

    cases: Mapping[str, Case]
    point: float
    widest: float = inf


FAMILIES = {
    "moved": Family(MOVED, 1e-12),
    "mixed": Family(MIXED, 1e-12),
    "attention": Family(ATTENTION, 1e-11, widest=3.0),
    "division": Family(DIVISION, 1e-13),
    "normalisation": Family(NORMALISATION, 1e-10),
    "far from zero": Family(FAR, 1e-8),
}
