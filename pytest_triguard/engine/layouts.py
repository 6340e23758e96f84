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
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_triguard.engine.backward_rules import operator_name
from pytest_triguard.engine.compiled import compiled
from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import logit
from pytest_triguard.engine.probe import differs

_POOLED = 1 / 600
"""Numbers that max-pooling compares for each product, from which channels are better last."""

_ROWS = 2
"""Rows that both layouts are tried with: more than one, as a view of one row may do by chance."""

_MAX_POOLS = frozenset(("max_pool2d", "max_pool2d_with_indices"))
_PRODUCTS = frozenset(("conv2d", "linear"))
"""Products with weights, which are the second argument; those of other operators are few beside."""


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
    if not is_host(model.device) or rows.dtype != torch.float32 or compiled(model.module):
        return False
    counted = _Counted()
    with counted:
        _logits(model, rows)
    return counted.compared > _POOLED * counted.products


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


class _Counted(TorchFunctionMode):
    """Counts numbers that are compared in max-pooling, and products in sums."""

    def __init__(self) -> None:
        super().__init__()
        self.compared = 0
        self.products = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        name = operator_name(func)
        if name in _MAX_POOLS:
            outputs = result if isinstance(result, Tensor) else result[0]
            size = args[1] if len(args) > 1 else given["kernel_size"]
            kernel = (size, size) if isinstance(size, int) else (*size, *size)[:2]
            self.compared += outputs.numel() * math.prod(kernel)
        elif name in _PRODUCTS:
            weight = args[1] if len(args) > 1 else given["weight"]
            if isinstance(weight, Tensor):  # and not what a quantised layer packs
                self.products += result.numel() * weight[0].numel()
        return result
