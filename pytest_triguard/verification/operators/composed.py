"""Operators that are captured as the operators they are made of.

Each function computes what the operator of that name computes, in real arithmetic, from operators
that have rules. It is called with symbolic values while a module is captured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_triguard.verification.operators.products import attended
from pytest_triguard.verification.operators.rule import Unsupported


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compose `functional.scaled_dot_product_attention` of product, softmax and average.

    References:
        Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, section 3.2.1.
    """
    if attn_mask is not None or is_causal or enable_gqa or dropout_p:
        raise Unsupported("attention with a mask, with dropout, or with grouped queries")
    factor = query.size(-1) ** -0.5 if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    return _averaged(torch.softmax(scores, -1), value)


def multihead_attention(
    module: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Compose `nn.MultiheadAttention` of projections, attention in each head, and a projection.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
    """
    if key_padding_mask is not None or attn_mask is not None or is_causal:
        raise Unsupported("attention with a mask")
    if not module.batch_first:
        raise Unsupported("attention with batch_first=False")
    if module.bias_k is not None or module.add_zero_attn or (module.training and module.dropout):
        raise Unsupported("attention with added keys or active dropout")
    heads = [
        projected.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        for projected in _projections(module, (query, key, value))
    ]
    scores = torch.matmul(heads[0], heads[1].transpose(-2, -1)) * module.head_dim**-0.5
    weights = torch.softmax(scores, -1)
    merged = _averaged(weights, heads[2]).transpose(1, 2).flatten(2)
    result = functional.linear(merged, module.out_proj.weight, module.out_proj.bias)
    if not need_weights:
        return result, None
    return result, weights.mean(1) if average_attn_weights else weights


def stack(tensors: Any, dim: int = 0) -> Any:
    """Compose `torch.stack` of single layers side by side."""
    return torch.cat([each.unsqueeze(dim) for each in tensors], dim)


def expand_as(input: Any, other: Any) -> Any:
    """Compose `Tensor.expand_as` of `expand`."""
    return input.expand(other.shape)


def baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """Compose `torch.baddbmm` of product and sum."""
    return input * beta + torch.matmul(batch1, batch2) * alpha


def normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Any:
    """Compose `functional.normalize` of squares, root and quotient."""
    if p != 2 or not isinstance(dim, int) or out is not None:
        raise Unsupported(f"p={p}, dim={dim}")
    length = torch.square(input).sum(dim, keepdim=True).sqrt()
    return input / length.clamp(min=eps)


def _averaged(weights: Any, values: Any) -> Any:
    return weights.tracer.create_proxy("call_function", attended, (weights, values), {})


def _projections(module: nn.MultiheadAttention, values: tuple[Any, Any, Any]) -> list[Any]:
    """Return queries, keys and values of all heads."""
    size, bias = module.embed_dim, module.in_proj_bias
    parts = [slice(place * size, (place + 1) * size) for place in range(3)]
    if module._qkv_same_embed_dim:
        weights = [module.in_proj_weight[part] for part in parts]
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases = [None if bias is None else bias[part] for part in parts]
    return [
        functional.linear(value, weight, offset)
        for value, weight, offset in zip(values, weights, biases, strict=True)
    ]
