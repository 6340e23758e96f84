"""What whoever looks on sees of a layer: the operators it calls, and what it goes back through."""

from __future__ import annotations

from torch.overrides import TorchFunctionMode


class Looking(TorchFunctionMode):
    """Notes the names of the operators that are called.

    Attributes:
        names: The names, in order.
    """

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def node_of(layer, inputs):
    """Return the name of the operator that autograd goes backward through."""
    return layer(inputs.requires_grad_()).grad_fn.name()
