"""The one table of operators that the verifier knows: module classes, functions, method names.

A new operator is a rule in its family's file and its lines here. A module counts only if its class
is exactly the one listed: a subclass may compute something else, so it is traced through instead.
A method's name stands for its in-place form too.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_triguard.verification.operators import (
    activations,
    affine,
    arithmetic,
    pooling,
    shape,
)
from pytest_triguard.verification.operators.rule import Rule, Unsupported, no_arguments, taken

__all__ = ["LINEAR", "TABLE", "Rule", "Unsupported"]

_ADD = Rule(interval=arithmetic.add, many=True)
_SUB = Rule(interval=arithmetic.sub, many=True)
_MUL = Rule(interval=arithmetic.mul, many=True)
_DIV = Rule(interval=arithmetic.div, many=True)
_NEG = Rule(interval=arithmetic.neg)
_CAT = Rule(interval=shape.cat, many=True)
_IDENTITY = Rule(interval=shape.identity, arguments=no_arguments, aliases=True, identity=True)
_DROPOUT = Rule(
    interval=shape.dropout, arguments=taken("p", "training"), aliases=True, identity=True
)
_FLATTEN = Rule(interval=shape.flatten, arguments=taken("start_dim", "end_dim"), aliases=True)
_RESHAPE = Rule(interval=shape.reshape, aliases=True)
_PERMUTE = Rule(interval=shape.permute, aliases=True)
_TRANSPOSE = Rule(interval=shape.transpose, aliases=True)
_SQUEEZE = Rule(interval=shape.squeeze, aliases=True)
_UNSQUEEZE = Rule(interval=shape.unsqueeze, aliases=True)
LINEAR = Rule(interval=affine.linear, arguments=taken("weight", "bias"))
_CONV2D = Rule(interval=affine.conv2d, arguments=affine.conv2d_arguments)
_BATCH_NORM = Rule(interval=affine.batch_norm, arguments=affine.batch_norm_arguments)
_RELU = Rule(interval=activations.relu, arguments=no_arguments)
_LEAKY_RELU = Rule(interval=activations.leaky_relu, arguments=taken("negative_slope"))
_RELU6 = Rule(interval=activations.relu6, arguments=no_arguments)
_HARDTANH = Rule(interval=activations.hardtanh, arguments=taken("min_val", "max_val"))
_CLAMP = Rule(interval=activations.clamp)
_SIGMOID = Rule(interval=activations.sigmoid, arguments=no_arguments)
_TANH = Rule(interval=activations.tanh, arguments=no_arguments)
_MAX_POOL = Rule(interval=pooling.max_pool2d, arguments=pooling.max_pool2d_arguments)
_AVG_POOL = Rule(
    interval=pooling.avg_pool2d,
    arguments=taken(
        "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
)
_ADAPTIVE_AVG_POOL = Rule(interval=pooling.adaptive_avg_pool2d, arguments=taken("output_size"))
_MEAN = Rule(interval=pooling.mean)
_AMAX = Rule(interval=pooling.amax)

_MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: LINEAR,
    nn.Conv2d: _CONV2D,
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.ReLU: _RELU,
    nn.ReLU6: _RELU6,
    nn.LeakyReLU: _LEAKY_RELU,
    nn.Hardtanh: _HARDTANH,
    nn.Sigmoid: _SIGMOID,
    nn.Tanh: _TANH,
    nn.MaxPool2d: _MAX_POOL,
    nn.AvgPool2d: _AVG_POOL,
    nn.AdaptiveAvgPool2d: _ADAPTIVE_AVG_POOL,
    nn.Flatten: _FLATTEN,
    nn.Identity: _IDENTITY,
    nn.Dropout: _DROPOUT,
    nn.Dropout2d: _DROPOUT,
    nn.AlphaDropout: _DROPOUT,
}

_FUNCTIONS: dict[Any, Rule] = {
    functional.linear: LINEAR,
    functional.conv2d: _CONV2D,
    functional.batch_norm: _BATCH_NORM,
    functional.relu: _RELU,
    torch.relu: _RELU,
    functional.relu6: _RELU6,
    functional.leaky_relu: _LEAKY_RELU,
    functional.hardtanh: _HARDTANH,
    torch.clamp: _CLAMP,
    torch.sigmoid: _SIGMOID,
    functional.sigmoid: _SIGMOID,
    torch.tanh: _TANH,
    functional.tanh: _TANH,
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
    functional.dropout2d: _DROPOUT,
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
    "sigmoid": _SIGMOID,
    "tanh": _TANH,
    "mean": _MEAN,
    "amax": _AMAX,
    "flatten": _FLATTEN,
    "reshape": _RESHAPE,
    "view": _RESHAPE,
    "permute": _PERMUTE,
    "transpose": _TRANSPOSE,
    "squeeze": _SQUEEZE,
    "unsqueeze": _UNSQUEEZE,
    "contiguous": _IDENTITY,
    "clone": _IDENTITY,
    "detach": _IDENTITY,
    "add": _ADD,
    "sub": _SUB,
    "mul": _MUL,
    "div": _DIV,
    "neg": _NEG,
}

TABLE: dict[Any, Rule] = {**_MODULES, **_FUNCTIONS, **_METHODS}
