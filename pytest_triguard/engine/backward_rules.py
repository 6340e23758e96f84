"""Other rules for going backward through a network than the derivative.

A rule stands in for an operator while a block runs, whether a module, a function or a method of a
tensor calls it, so nothing is hooked to operators and nothing is left behind. What an operator
returns is not changed, only what goes backward through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]


def operator_name(function: Function) -> str:
    """Return the name of an operator, the same for its forms in place."""
    name: str = getattr(function, "__name__", type(function).__name__)
    return name if name.startswith("__") else name.strip("_")


def in_place(function: Function, args: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether an activation function overwrites its input."""
    name: str = getattr(function, "__name__", "")
    named = name.endswith("_") and not name.endswith("__")
    return named or bool(kwargs.get("inplace")) or any(each is True for each in args)


class BackwardRules(TorchFunctionMode):
    """Calls `apply` for every operator that is given a tensor with a gradient."""

    def __torch_function__(
        self, func: Function, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Hand on what carries no gradient."""
        kwargs = kwargs or {}
        if any(carries_gradient(each) for each in (*args, *kwargs.values())):
            return self.apply(func, args, kwargs)
        return func(*args, **kwargs)

    def apply(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what an operator gives, the rule attached."""
        raise NotImplementedError


def carries_gradient(value: Any) -> bool:
    """Return whether a value is a tensor whose gradient is followed."""
    return isinstance(value, Tensor) and value.requires_grad


class GuidedReLU(BackwardRules):
    """Lets only positive gradients through a ReLU.

    Attributes:
        guides: Whether it does; else gradients go back as they are.

    References:
        Springenberg et al. 2015, "Striving for Simplicity: the All Convolutional Net",
        arXiv:1412.6806, section 3.4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guides = True

    def apply(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what an operator gives, the gradient clipped behind a ReLU."""
        result = func(*args, **kwargs)
        if operator_name(func) == "relu":
            result.register_hook(self._clipped)
        return result

    def _clipped(self, gradient: Tensor) -> Tensor:
        return gradient.clamp_min(0) if self.guides else gradient
