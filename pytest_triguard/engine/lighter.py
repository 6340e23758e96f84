"""Layers that compute the same in less time while a classifier is held on a host.

Only layers of torch's own types change, and only for as long as the classifier is held. Going
forward they give what they gave, to the bit. Where anything else looks on they are what they were:
other rules for going backward, hooks on what is saved for it, derivatives that go forward, a
compiler, a layer that learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

from torch import nn

from pytest_triguard.engine import batch_norm, max_pool
from pytest_triguard.engine.compiled import compiled

_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.BatchNorm1d: batch_norm.forward,
    nn.BatchNorm2d: batch_norm.forward,
    nn.BatchNorm3d: batch_norm.forward,
    nn.MaxPool2d: max_pool.forward,
}
"""What layers do in the place of their own `forward`, by type."""


def lighten(module: nn.Module) -> list[nn.Module]:
    """Let the layers of a network on a host take less time.

    Args:
        module: The network; one that was compiled is left as it is.

    Returns:
        The layers that changed, for `restore`.
    """
    if compiled(module):
        return []
    # One with a forward of its own is another layer, or is held by somebody else already.
    layers = [
        each for each in module.modules() if type(each) in _FORWARDS and "forward" not in vars(each)
    ]
    for each in layers:
        each.forward = MethodType(_FORWARDS[type(each)], each)
    return layers


def lightened(layer: nn.Module) -> bool:
    """Return whether a layer is one of those that `lighten` changed."""
    return type(layer) in _FORWARDS and _is_own(layer, _FORWARDS[type(layer)])


def has_own_forward(layer: nn.Module) -> bool:
    """Return whether a module has a forward that is not its class's, nor that of `lighten`."""
    # What was pickled while it was held comes back with its class's own among its attributes.
    known = lightened(layer) or _is_own(layer, type(layer).forward)
    return "forward" in vars(layer) and not known


def restore(layers: Iterable[nn.Module]) -> None:
    """Put layers back as they were before `lighten`."""
    for each in layers:
        vars(each).pop("forward", None)


def _is_own(layer: nn.Module, function: Any) -> bool:
    """Return whether a layer has a function, bound to itself, as its forward."""
    found = vars(layer).get("forward")
    bound_to_it = getattr(found, "__self__", None) is layer
    return bound_to_it and getattr(found, "__func__", None) is function
