"""What the verifier knows about one operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pytest_triguard.verification.intervals import Interval


class Unsupported(Exception):
    """An operator, or a way of calling it, that has no sound bound here; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The rule of one operator, however it is called: as module, function or method.

    Attributes:
        interval: Sound bounds of the result. Takes the arguments of the function of that name,
            an `Interval` in place of each tensor that depends on the input; raises `Unsupported`.
        arguments: For a module: the other arguments, read from it; raises `Unsupported`.
        aliases: Whether the result may share memory with the first argument.
        identity: Whether the result is the first argument.
        many: Whether another argument than the first may depend on the input.
    """

    interval: Callable[..., Interval]
    arguments: Callable[[Any], dict[str, Any]] | None = None
    aliases: bool = False
    identity: bool = False
    many: bool = False


def no_arguments(module: nn.Module) -> dict[str, Any]:
    """Return nothing: the module has no arguments that matter."""
    del module
    return {}


def taken(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Return a reader of the module's attributes of those names."""
    return lambda module: {name: getattr(module, name) for name in names}
