"""The modules that random networks are grown from, beside those of torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Apply(nn.Module):
    """Applies a function of one value."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name = name
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)

    def extra_repr(self) -> str:
        return self.name


class Combined(nn.Module):
    """Joins a value with what a branch makes of it."""

    def __init__(self, name: str, branch: nn.Module, join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.name = name
        self.branch = branch
        self.join = join

    def forward(self, inputs: Tensor) -> Tensor:
        return self.join(inputs, self.branch(inputs))

    def extra_repr(self) -> str:
        return self.name


class Constant(nn.Module):
    """Works on a value and a tensor of weights, broadcast from the last dimensions."""

    def __init__(self, name: str, shape: tuple[int, ...], join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.randn(shape).sign() * (torch.rand(shape) + 0.3))
        self.join = join

    def forward(self, inputs: Tensor) -> Tensor:
        return self.join(inputs, self.weight)

    def extra_repr(self) -> str:
        return self.name


class Attention(nn.Module):
    """Attention over rows `(N, T, E)`, by the module or by the function."""

    def __init__(self, width: int, heads: int, *, by_module: bool) -> None:
        super().__init__()
        self.by_module = by_module
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.key = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.by_module:
            return self.attention(inputs, inputs, inputs, need_weights=False)[0]
        return functional.scaled_dot_product_attention(inputs, self.key(inputs), inputs)
