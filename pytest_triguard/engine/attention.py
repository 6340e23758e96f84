"""What the attention layers of a network give weight to, seen while it runs as it is."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SIGNATURE = inspect.signature(functional.multi_head_attention_forward)


@dataclass(frozen=True)
class Attention:
    """The attention of one layer.

    Relevance of tokens is `(n, tokens)`; that of places in windows is a picture `(n, 1, h, w)`.

    Attributes:
        weights: `(n, heads, tokens, tokens)`, or `(n, windows, heads, tokens, tokens)` where tokens
            attend within windows; each row sums to one. One head, their mean, unless gradients are
            followed.
        followed: What gradients are taken by.
        by_weights: From the gradient by `followed` to the gradient by the weights.
        partition: The layer that cuts a picture into windows, or None.
    """

    weights: Tensor
    followed: Tensor
    by_weights: Callable[[Tensor], Tensor]
    partition: Any = None

    @property
    def picture(self) -> tuple[int, int] | None:
        """Height and width of what is cut into windows, or None."""
        if self.partition is None:
            return None
        height, width = self.partition.grid_size
        return height, width

    def here(self, relevance: Tensor) -> Tensor:
        """Return relevance at the layer's resolution: each place's is shared by those it covers."""
        size = self.picture
        if size is None or relevance.shape[2:] == size:
            return relevance
        share = relevance[0, 0].numel() / (size[0] * size[1])
        return functional.interpolate(relevance, size, mode="nearest") * share

    def passed_on(self, relevance: Tensor, weights: Tensor) -> Tensor:
        """Return the relevance that each token gets from those that attend to it.

        Args:
            relevance: Of the tokens that attend, at the layer's resolution.
            weights: Like those of the layer, without heads.

        Returns:
            Like the relevance.
        """
        layer = self.partition
        if layer is None:
            return (relevance.unsqueeze(1) @ weights).squeeze(1)
        windows = layer.partition_swap(layer.partition_op(relevance, layer.p))
        windows = (windows.mT @ weights).mT
        height, width = (size // layer.p for size in layer.grid_size)
        joined: Tensor = layer.departition_op(
            layer.departition_swap(windows), layer.p, height, width
        )
        return joined


class _Watch(TorchFunctionMode):
    """Notes attention as operators give it. While it is on, no fused kernel hides an operator."""

    def __init__(self, *, follow: bool) -> None:
        super().__init__()
        self.found: list[Attention] = []
        self.partition: Any = None
        self._follow = follow

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            return self._heads(_SIGNATURE.bind(*args, **kwargs).arguments)
        result = func(*args, **kwargs)
        if self.partition is not None and func is functional.softmax:
            result = self._cut(result)
            self._note(result.detach(), result, lambda gradient: gradient, self.partition)
        return result

    def _heads(self, call: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return what the function gives; the weights are asked for whoever wants them or not."""
        asked = {"need_weights": True, "average_attn_weights": False}
        given: tuple[Tensor, Any] = functional.multi_head_attention_forward(**call | asked)
        output, weights = self._cut(given[0]), given[1]

        def by_weights(gradient: Tensor) -> Tensor:
            # The output is (weights x values) x projection.
            means = _by_head(gradient @ call["out_proj_weight"], call["num_heads"])
            return means @ _by_head(_values(call), call["num_heads"]).mT

        self._note(weights.detach(), output, by_weights)
        if not call.get("need_weights", True):
            return output, None
        return output, weights.mean(-3) if call.get("average_attn_weights", True) else weights

    def _cut(self, output: Tensor) -> Tensor:
        """Begin the autograd graph here, where nothing before is followed."""
        fresh = self._follow and not output.requires_grad
        return output.detach().requires_grad_() if fresh else output

    def _note(
        self,
        weights: Tensor,
        followed: Tensor,
        by_weights: Callable[[Tensor], Tensor],
        partition: Any = None,
    ) -> None:
        if not self._follow and weights.ndim > 3:
            weights = weights.mean(-3, keepdim=True)
        self.found.append(Attention(weights, followed, by_weights, partition))


@contextmanager
def watch_attention(module: nn.Module, *, follow: bool) -> Iterator[list[Attention]]:
    """Note the attention of every layer that runs in the block, as the network is.

    Seen are `nn.MultiheadAttention`, whoever calls it and however, and the windows of torchvision's
    MaxViT. The weights are those the layers use.

    Args:
        module: The network.
        follow: Whether gradients by the weights will be taken. The autograd graph then begins at
            the first attention, unless it began before.

    Yields:
        A list to which each layer is added as it runs.
    """
    watch = _Watch(follow=follow)

    def enter(layer: nn.Module, _: Any) -> None:
        watch.partition = layer

    def leave(*_: Any) -> None:
        watch.partition = None

    with ExitStack() as hooks:
        for each in module.modules():
            if isinstance(each, _partitions()):
                hooks.callback(each.register_forward_pre_hook(enter).remove)
                hooks.callback(each.register_forward_hook(leave).remove)
        hooks.enter_context(watch)
        yield watch.found


def _partitions() -> tuple[type, ...]:
    """Return torchvision's layers with windows, of which a network can have some if it is there."""
    maxvit: Any = sys.modules.get("torchvision.models.maxvit")
    return () if maxvit is None else (maxvit.PartitionAttentionLayer,)


def _by_head(values: Tensor, heads: int) -> Tensor:
    """Return `(tokens, n, features)` as `(n, heads, tokens, features per head)`."""
    return values.view(*values.shape[:2], heads, -1).permute(1, 2, 0, 3)


@torch.no_grad()
def _values(call: dict[str, Any]) -> Tensor:
    """Return what the weights of a call average, `(tokens, n, features)`."""
    weight, bias = call.get("v_proj_weight"), call["in_proj_bias"]
    if weight is None:
        weight = call["in_proj_weight"].chunk(3)[2]
    bias = None if bias is None else bias.chunk(3)[2]
    return functional.linear(call["value"], weight, bias)
