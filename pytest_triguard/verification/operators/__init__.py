"""The one table of operators that the verifier knows: module classes, functions, method names.

A new operator is a rule in its family's file and its lines here. A module counts only if its class
is exactly the one listed: a subclass may compute something else, so it is traced through instead.
A method's name stands for its in-place form too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_triguard.verification.operators import (
    activations,
    affine,
    arithmetic,
    arranging,
    composed,
    convolution,
    division,
    gates,
    max_pooling,
    normalisation,
    pooling,
    products,
    rectifiers,
    resampling,
    scaling,
    shape,
    slicing,
    smooth,
    transposed,
)
from pytest_triguard.verification.operators import softmax as exponentials
from pytest_triguard.verification.operators.rule import Rule, Unsupported, no_arguments, taken

__all__ = [
    "BATCH_NORM",
    "COMPOSED",
    "CONV2D",
    "IDENTITY",
    "LINEAR",
    "TABLE",
    "Rule",
    "Unsupported",
]

_ADD = Rule(
    interval=arithmetic.add,
    relaxation=arithmetic.add_relaxation,
    evaluation=arithmetic.add_evaluation,
    many=True,
)
_SUB = Rule(
    interval=arithmetic.sub,
    relaxation=arithmetic.sub_relaxation,
    evaluation=arithmetic.add_evaluation,
    many=True,
)
_MUL = Rule(
    interval=arithmetic.mul,
    relaxation=arithmetic.mul_relaxation,
    open=arithmetic.mul_open,
    evaluation=arithmetic.mul_evaluation,
    many=True,
)
_DIV = Rule(
    interval=division.div,
    relaxation=division.div_relaxation,
    open=division.div_open,
    evaluation=division.div_evaluation,
    many=True,
)
_NEG = Rule(
    interval=arithmetic.neg,
    relaxation=arithmetic.neg_relaxation,
    evaluation=shape.exact,
    mixing="none",
)
_CAT = Rule(
    interval=shape.cat,
    relaxation=shape.cat_relaxation,
    evaluation=shape.exact_parts,
    many=True,
    mixing="none",
)
IDENTITY = Rule(
    interval=shape.identity,
    relaxation=shape.identity_relaxation,
    evaluation=shape.exact,
    arguments=no_arguments,
    aliases=True,
    identity=True,
    mixing="none",
)
_DROPOUT = replace(IDENTITY, interval=shape.dropout, arguments=taken("p", "training"))
_FLATTEN = Rule(**shape.FLATTEN, arguments=taken("start_dim", "end_dim"))
_RESHAPE = Rule(**shape.RESHAPE)
_PERMUTE = Rule(**shape.PERMUTE)
_TRANSPOSE = Rule(**shape.TRANSPOSE)
_SQUEEZE = Rule(**shape.SQUEEZE)
_UNSQUEEZE = Rule(**shape.UNSQUEEZE)
LINEAR = Rule(
    interval=affine.linear,
    relaxation=affine.linear_relaxation,
    evaluation=affine.linear_evaluation,
    keeps=True,
    arguments=taken("weight", "bias"),
    mixing="sum",
)
CONV2D = Rule(
    interval=convolution.conv2d,
    relaxation=convolution.conv2d_relaxation,
    evaluation=convolution.conv2d_evaluation,
    keeps=True,
    arguments=convolution.conv2d_arguments,
    mixing="sum",
)
BATCH_NORM = Rule(
    interval=scaling.batch_norm,
    relaxation=scaling.batch_norm_relaxation,
    evaluation=scaling.batch_norm_evaluation,
    keeps=True,
    arguments=scaling.batch_norm_arguments,
    mixing="none",
)
_RELU = Rule(
    interval=rectifiers.relu,
    relaxation=rectifiers.relu_relaxation,
    open=rectifiers.relu_open,
    evaluation=shape.exact,
    arguments=no_arguments,
    mixing="none",
)
_LEAKY_RELU = Rule(
    interval=rectifiers.leaky_relu,
    relaxation=rectifiers.leaky_relu_relaxation,
    open=rectifiers.leaky_relu_open,
    evaluation=rectifiers.leaky_relu_evaluation,
    arguments=taken("negative_slope"),
    mixing="none",
)
_RELU6 = Rule(**activations.RELU6)
_HARDTANH = Rule(**activations.HARDTANH, arguments=taken("min_val", "max_val"))
_HARDSIGMOID = Rule(**activations.HARDSIGMOID, arguments=no_arguments)
_CLAMP = Rule(**activations.CLAMP)
_CLAMP_MIN = Rule(**activations.CLAMP_MIN)
_CLAMP_MAX = Rule(**activations.CLAMP_MAX)
_ABS = Rule(**activations.ABS)
_SIGMOID = Rule(**smooth.SIGMOID, arguments=no_arguments)
_LOG_SIGMOID = Rule(**smooth.LOG_SIGMOID, arguments=no_arguments)
_TANH = Rule(**smooth.TANH, arguments=no_arguments)
_ERF = Rule(**smooth.ERF)
_SOFTPLUS = Rule(**smooth.SOFTPLUS, arguments=taken("beta", "threshold"))
_ELU = Rule(**smooth.ELU, arguments=taken("alpha"))
_CELU = Rule(**smooth.CELU, arguments=taken("alpha"))
_SELU = Rule(**smooth.SELU, arguments=no_arguments)
_EXP = Rule(**smooth.EXP)
_SQRT = Rule(**smooth.SQRT)
_RECIPROCAL = Rule(**smooth.RECIPROCAL)
_SQUARE = Rule(**smooth.SQUARE)
_POW = Rule(**smooth.POW)
_HARDSWISH = Rule(**gates.HARDSWISH, arguments=no_arguments)
_SILU = Rule(**gates.SILU, arguments=no_arguments)
_GELU = Rule(**gates.GELU, arguments=taken("approximate"))
_MISH = Rule(**gates.MISH, arguments=no_arguments)
_MAX_POOL = Rule(
    interval=max_pooling.max_pool2d,
    relaxation=max_pooling.max_pool2d_relaxation,
    open=max_pooling.max_pool2d_open,
    composition=max_pooling.max_pool2d_composition,
    tied=max_pooling.max_pool2d_tied,
    evaluation=shape.exact,
    arguments=max_pooling.max_pool2d_arguments,
    mixing="sum",
)
_AVG_POOL = Rule(
    **pooling.AVG_POOL,
    arguments=taken(
        "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
)
_ADAPTIVE_AVG_POOL = Rule(**pooling.ADAPTIVE_AVG_POOL, arguments=taken("output_size"))
_MEAN = Rule(**pooling.MEAN)
_SUM = Rule(**pooling.SUM)
_CONV_TRANSPOSE2D = Rule(**transposed.CONV_TRANSPOSE2D, mixing="sum")
_LAYER_NORM = Rule(
    **normalisation.LAYER_NORM, arguments=taken("normalized_shape", "weight", "bias", "eps")
)
_GROUP_NORM = Rule(
    **normalisation.GROUP_NORM, arguments=taken("num_groups", "weight", "bias", "eps")
)
_INSTANCE_NORM = Rule(
    **normalisation.INSTANCE_NORM, arguments=normalisation.instance_norm_arguments
)
_SOFTMAX = Rule(
    interval=exponentials.softmax,
    relaxation=exponentials.softmax_relaxation,
    open=exponentials.softmax_open,
    evaluation=exponentials.softmax_evaluation,
    arguments=taken("dim"),
)
_LOG_SOFTMAX = Rule(
    interval=exponentials.log_softmax,
    relaxation=exponentials.log_softmax_relaxation,
    open=exponentials.softmax_open,
    evaluation=exponentials.log_softmax_evaluation,
    arguments=taken("dim"),
)
_MATMUL = Rule(
    interval=products.matmul,
    relaxation=products.matmul_relaxation,
    open=products.matmul_open,
    evaluation=products.matmul_evaluation,
    many=True,
)
_ATTENDED = Rule(
    interval=products.attended_interval,
    relaxation=products.attended_relaxation,
    open=products.matmul_open,
    evaluation=products.attended_evaluation,
    many=True,
)
_INTERPOLATE = Rule(
    interval=resampling.interpolate,
    relaxation=resampling.interpolate_relaxation,
    evaluation=resampling.interpolate_evaluation,
    arguments=resampling.upsample_arguments,
)
_GETITEM = Rule(**slicing.GETITEM)
_CHUNK = Rule(**slicing.CHUNK)
_SPLIT = Rule(**slicing.SPLIT)
_TENSOR_SPLIT = Rule(**slicing.TENSOR_SPLIT)
_UNBIND = Rule(**slicing.UNBIND)
_SELECT = Rule(**slicing.SELECT)
_NARROW = Rule(**slicing.NARROW)
_PAD = Rule(**arranging.PAD)
_EXPAND = Rule(**arranging.EXPAND)
_REPEAT = Rule(**arranging.REPEAT)
_MOVEDIM = Rule(**arranging.MOVEDIM)
_UNFLATTEN = Rule(**arranging.UNFLATTEN)
_ROLL = Rule(**arranging.ROLL)
_FLIP = Rule(**arranging.FLIP)
_PIXEL_SHUFFLE = Rule(**arranging.PIXEL_SHUFFLE, arguments=taken("upscale_factor"))
_PIXEL_UNSHUFFLE = Rule(**arranging.PIXEL_UNSHUFFLE, arguments=taken("downscale_factor"))
_CHANNEL_SHUFFLE = Rule(**arranging.CHANNEL_SHUFFLE, arguments=taken("groups"))
_STOCHASTIC_DEPTH = replace(IDENTITY, interval=shape.stochastic_depth)
_AMAX = Rule(
    interval=max_pooling.amax,
    relaxation=max_pooling.amax_relaxation,
    open=max_pooling.amax_open,
    evaluation=shape.exact,
    mixing="sum",
)

_MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: LINEAR,
    nn.Conv2d: CONV2D,
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.ReLU: _RELU,
    nn.ReLU6: _HARDTANH,  # with the limits that it holds, which need not be 0 and 6
    nn.LeakyReLU: _LEAKY_RELU,
    nn.Hardtanh: _HARDTANH,
    nn.Hardsigmoid: _HARDSIGMOID,
    nn.Hardswish: _HARDSWISH,
    nn.Sigmoid: _SIGMOID,
    nn.LogSigmoid: _LOG_SIGMOID,
    nn.Tanh: _TANH,
    nn.SiLU: _SILU,
    nn.GELU: _GELU,
    nn.Mish: _MISH,
    nn.Softplus: _SOFTPLUS,
    nn.ELU: _ELU,
    nn.CELU: _CELU,
    nn.SELU: _SELU,
    nn.MaxPool2d: _MAX_POOL,
    nn.AvgPool2d: _AVG_POOL,
    nn.AdaptiveAvgPool2d: _ADAPTIVE_AVG_POOL,
    nn.Flatten: _FLATTEN,
    nn.Identity: IDENTITY,
    nn.Dropout: _DROPOUT,
    nn.Dropout2d: _DROPOUT,
    nn.Dropout1d: _DROPOUT,
    nn.Dropout3d: _DROPOUT,
    nn.AlphaDropout: _DROPOUT,
    nn.FeatureAlphaDropout: _DROPOUT,
    nn.ConvTranspose2d: _CONV_TRANSPOSE2D,
    nn.LayerNorm: _LAYER_NORM,
    nn.GroupNorm: _GROUP_NORM,
    nn.InstanceNorm1d: _INSTANCE_NORM,
    nn.InstanceNorm2d: _INSTANCE_NORM,
    nn.Softmax: _SOFTMAX,
    nn.LogSoftmax: _LOG_SOFTMAX,
    nn.Upsample: _INTERPOLATE,
    nn.Unflatten: replace(_UNFLATTEN, arguments=arranging.unflatten_arguments),
    nn.PixelShuffle: _PIXEL_SHUFFLE,
    nn.PixelUnshuffle: _PIXEL_UNSHUFFLE,
    nn.ChannelShuffle: _CHANNEL_SHUFFLE,
    nn.ZeroPad2d: replace(_PAD, arguments=arranging.zero_pad_arguments),
}

_FUNCTIONS: dict[Any, Rule] = {
    functional.linear: LINEAR,
    functional.conv2d: CONV2D,
    functional.batch_norm: BATCH_NORM,
    functional.relu: _RELU,
    torch.relu: _RELU,
    functional.relu6: _RELU6,
    functional.leaky_relu: _LEAKY_RELU,
    functional.hardtanh: _HARDTANH,
    functional.hardsigmoid: _HARDSIGMOID,
    functional.hardswish: _HARDSWISH,
    torch.clamp: _CLAMP,
    torch.clip: _CLAMP,
    torch.clamp_min: _CLAMP_MIN,
    torch.clamp_max: _CLAMP_MAX,
    torch.abs: _ABS,
    torch.absolute: _ABS,
    operator.abs: _ABS,
    torch.sigmoid: _SIGMOID,
    torch.special.expit: _SIGMOID,
    functional.sigmoid: _SIGMOID,
    functional.logsigmoid: _LOG_SIGMOID,
    torch.tanh: _TANH,
    functional.tanh: _TANH,
    functional.silu: _SILU,
    functional.gelu: _GELU,
    functional.mish: _MISH,
    functional.softplus: _SOFTPLUS,
    functional.elu: _ELU,
    functional.celu: _CELU,
    torch.celu: _CELU,
    functional.selu: _SELU,
    torch.selu: _SELU,
    torch.erf: _ERF,
    torch.special.erf: _ERF,
    torch.exp: _EXP,
    torch.sqrt: _SQRT,
    torch.reciprocal: _RECIPROCAL,
    torch.square: _SQUARE,
    torch.pow: _POW,
    operator.pow: _POW,
    operator.ipow: _POW,
    functional.max_pool2d: _MAX_POOL,
    torch.max_pool2d: _MAX_POOL,
    functional.avg_pool2d: _AVG_POOL,
    functional.adaptive_avg_pool2d: _ADAPTIVE_AVG_POOL,
    torch.mean: _MEAN,
    torch.amax: _AMAX,
    torch.flatten: _FLATTEN,
    torch.reshape: _RESHAPE,
    torch.permute: _PERMUTE,
    torch.transpose: _TRANSPOSE,
    torch.squeeze: _SQUEEZE,
    torch.unsqueeze: _UNSQUEEZE,
    torch.cat: _CAT,
    torch.concat: _CAT,
    functional.dropout: _DROPOUT,
    functional.dropout1d: _DROPOUT,
    functional.dropout2d: _DROPOUT,
    functional.dropout3d: _DROPOUT,
    functional.alpha_dropout: _DROPOUT,
    functional.conv_transpose2d: _CONV_TRANSPOSE2D,
    functional.layer_norm: _LAYER_NORM,
    functional.group_norm: _GROUP_NORM,
    functional.instance_norm: _INSTANCE_NORM,
    functional.softmax: _SOFTMAX,
    torch.softmax: _SOFTMAX,
    functional.log_softmax: _LOG_SOFTMAX,
    torch.log_softmax: _LOG_SOFTMAX,
    torch.matmul: _MATMUL,
    torch.bmm: _MATMUL,
    operator.matmul: _MATMUL,
    products.attended: _ATTENDED,
    functional.interpolate: _INTERPOLATE,
    functional.pad: _PAD,
    functional.pixel_shuffle: _PIXEL_SHUFFLE,
    functional.pixel_unshuffle: _PIXEL_UNSHUFFLE,
    functional.channel_shuffle: _CHANNEL_SHUFFLE,
    torch.channel_shuffle: _CHANNEL_SHUFFLE,
    operator.getitem: _GETITEM,
    torch.chunk: _CHUNK,
    torch.split: _SPLIT,
    torch.tensor_split: _TENSOR_SPLIT,
    torch.unbind: _UNBIND,
    torch.select: _SELECT,
    torch.narrow: _NARROW,
    torch.movedim: _MOVEDIM,
    torch.swapaxes: _TRANSPOSE,
    torch.unflatten: _UNFLATTEN,
    torch.roll: _ROLL,
    torch.flip: _FLIP,
    torch.sum: _SUM,
    torch.add: _ADD,
    torch.sub: _SUB,
    torch.mul: _MUL,
    torch.div: _DIV,
    torch.neg: _NEG,
    operator.add: _ADD,
    operator.iadd: _ADD,
    operator.sub: _SUB,
    operator.isub: _SUB,
    operator.mul: _MUL,
    operator.imul: _MUL,
    operator.truediv: _DIV,
    operator.itruediv: _DIV,
    operator.neg: _NEG,
}

_METHODS: dict[str, Rule] = {
    "relu": _RELU,
    "clamp": _CLAMP,
    "clip": _CLAMP,
    "clamp_min": _CLAMP_MIN,
    "clamp_max": _CLAMP_MAX,
    "abs": _ABS,
    "absolute": _ABS,
    "sigmoid": _SIGMOID,
    "tanh": _TANH,
    "erf": _ERF,
    "exp": _EXP,
    "sqrt": _SQRT,
    "reciprocal": _RECIPROCAL,
    "square": _SQUARE,
    "pow": _POW,
    "mean": _MEAN,
    "amax": _AMAX,
    "flatten": _FLATTEN,
    "reshape": _RESHAPE,
    "view": _RESHAPE,
    "permute": _PERMUTE,
    "transpose": _TRANSPOSE,
    "squeeze": _SQUEEZE,
    "unsqueeze": _UNSQUEEZE,
    "softmax": _SOFTMAX,
    "log_softmax": _LOG_SOFTMAX,
    "matmul": _MATMUL,
    "bmm": _MATMUL,
    "sum": _SUM,
    "chunk": _CHUNK,
    "split": _SPLIT,
    "tensor_split": _TENSOR_SPLIT,
    "unbind": _UNBIND,
    "select": _SELECT,
    "narrow": _NARROW,
    "expand": _EXPAND,
    "repeat": _REPEAT,
    "movedim": _MOVEDIM,
    "swapaxes": _TRANSPOSE,
    "unflatten": _UNFLATTEN,
    "roll": _ROLL,
    "flip": _FLIP,
    "contiguous": IDENTITY,
    "clone": IDENTITY,
    "detach": IDENTITY,
    "add": _ADD,
    "sub": _SUB,
    "mul": _MUL,
    "div": _DIV,
    "neg": _NEG,
}

_ELSEWHERE: dict[str, Rule] = {
    "torchvision.ops.stochastic_depth.stochastic_depth": _STOCHASTIC_DEPTH,
}

TABLE: dict[Any, Rule] = {**_MODULES, **_FUNCTIONS, **_METHODS, **_ELSEWHERE}

COMPOSED: dict[Any, Callable[..., Any]] = {
    nn.MultiheadAttention: composed.multihead_attention,
    functional.scaled_dot_product_attention: composed.scaled_dot_product_attention,
    functional.normalize: composed.normalize,
    torch.stack: composed.stack,
    torch.baddbmm: composed.baddbmm,
    "expand_as": composed.expand_as,
    "baddbmm": composed.baddbmm,
}
