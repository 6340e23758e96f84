"""In which order the numbers of the inputs lie in memory while the network works on them.

On a host, torch's max-pooling goes window by window where the channels of an image lie one after
the other, and takes many windows at a time where channels come last. A network that spends much on
it is a quarter to a third faster with channels last, forward and backward, and what it computes is
the same but for rounding. Other networks gain less or lose, and are given what came.
The choice follows from the network's own operators, not from timing: it is the same in every run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import logit
from pytest_triguard.engine.probe import differs

_POOLED = 1 / 600
"""Numbers that max-pooling compares for each product, from which channels are better last."""

_ROWS = 2
"""Rows that both layouts are tried with: more than one, as a view of one row may do by chance."""

_MAX_POOLS = (torch.ops.aten.max_pool2d_with_indices, torch.ops.aten.max_pool2d)
_PRODUCTS = {torch.ops.aten.mm: 1, torch.ops.aten.addmm: 2, torch.ops.aten.bmm: 1}
"""Products of matrices, and which argument is the second matrix."""


def arrange(model: Model, inputs: Tensor) -> None:
    """Let the network work with channels last where that is faster and gives the same.

    Args:
        model: The network.
        inputs: `(n, C, H, W)` samples on the model's device.
    """
    kinds = tuple(type(each) for each in model.module.modules())
    key = tuple(inputs.shape[1:]), inputs.dtype, kinds
    if key not in model.layouts:
        rows = inputs[:1].repeat(_ROWS, 1, 1, 1)
        model.layouts[key] = _pools_much(model, rows) and _agrees(model, rows)
    model.channels_last = model.layouts[key]


def _pools_much(model: Model, rows: Tensor) -> bool:
    """Return whether a network spends much on max-pooling; not of one that was compiled."""
    if not is_host(model.device) or rows.dtype != torch.float32 or _compiled(model.module):
        return False
    counted = _Counted()
    with counted:
        _logits(model, rows)
    return counted.compared > _POOLED * counted.products


def _compiled(module: nn.Module) -> bool:
    """Return whether a compiler has had a hand in a module, whose code is for one layout."""
    return any(
        isinstance(each, torch.jit.ScriptModule)
        or each._compiled_call_impl is not None
        or hasattr(each, "_orig_mod")
        for each in module.modules()
    )


def _agrees(model: Model, rows: Tensor) -> bool:
    """Return whether a network runs with channels last, forward and backward, to the same logits.

    A view of numbers that lie in another order than it expects raises an error.
    """
    expected = _logits(model, rows)
    classes = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    model.channels_last = True
    try:
        with model.passes.uncounted():
            _, logits = input_gradient(model, rows, classes, logit)
    except Exception:  # whatever a custom layer raises, it works as it always did
        return False
    finally:
        model.channels_last = False
    return not differs(expected, logits, computed_in=rows.dtype)


@torch.no_grad()
def _logits(model: Model, rows: Tensor) -> Tensor:
    with model.passes.uncounted():
        return model.logits(rows)


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts numbers that are compared in max-pooling, and products in sums."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.compared = 0
        self.products = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if kind in _MAX_POOLS:
            outputs = result if isinstance(result, Tensor) else result[0]
            kernel = args[1] if len(args[1]) > 1 else 2 * list(args[1])
            self.compared += outputs.numel() * math.prod(kernel)
        elif kind is torch.ops.aten.convolution:
            self.products += result.numel() * args[1][0].numel()
        elif kind in _PRODUCTS:
            self.products += result.numel() * args[_PRODUCTS[kind]].shape[-2]
        return result
