"""What the verifier knows about one operator."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.relaxations import Relaxation
from pytest_triguard.verification.ties import Tied

Mixing = Literal["none", "sum", "other"]


class Unsupported(Exception):
    """An operator, or a way of calling it, that has no sound bound here; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The rule of one operator, however it is called: as module, function or method.

    Every callable takes the arguments of the function of that name, an `Interval` in place of each
    tensor that depends on the input, and raises `Unsupported`.

    Attributes:
        interval: Sound bounds of the result.
        relaxation: A linear enclosure of the result, or None where none is known.
        open: Which elements of which arguments would make the relaxation tighter if their bounds
            were, as pairs of an argument and a bool mask of its shape; None for none.
        composition: From a function that applies a rule to arguments, and the operator's arguments,
            to the result: the same function of them as a composition of operators that can be
            split; None where it is its own.
        tied: From the convolution behind its first argument, bounds of the result, and the
            operator's arguments, to how elements of the result depend on each other, or to None;
            None where nothing is known of that.
        evaluation: From the same arguments and `unit=`, the unit roundoff of the module's dtype:
            how far from the exact result the module's own result can be, for any summation order,
            `(N or 1, *shape)`; None where nothing is known.
        arguments: For a module: the other arguments, read from it; raises `Unsupported`.
        keeps: Whether `interval` and `relaxation` take `keep=`, which keeps what they compute from
            constants alone.
        aliases: Whether the result may share memory with the first argument.
        identity: Whether the result is the first argument.
        many: Whether another argument than the first may depend on the input.
        mixing: `"none"` for an operator whose result's elements depend on one element each (its
            interval is exact), `"sum"` for one whose interval is exact where the elements of its
            argument vary independently, `"other"` for anything else.
    """

    interval: Callable[..., Interval]
    relaxation: Callable[..., Relaxation] | None = None
    open: Callable[..., list[tuple[Interval, Tensor]]] | None = None
    composition: Callable[..., Interval] | None = None
    tied: Callable[..., Tied | None] | None = None
    evaluation: Callable[..., Tensor] | None = None
    arguments: Callable[[Any], dict[str, Any]] | None = None
    keeps: bool = False
    aliases: bool = False
    identity: bool = False
    many: bool = False
    mixing: Mixing = "other"


class Keep(Protocol):
    """Keeps what a function returns, and returns it again when it is asked again."""

    def __call__(self, make: Callable[[], Kept], about: Hashable = None) -> Any:
        """Return what `make` returns now, or returned before for the same that it is about."""


class Kept(Protocol):
    """What can be kept.

    Attributes:
        size: Bytes that it takes.
    """

    @property
    def size(self) -> int:
        """Bytes that it takes."""


def no_arguments(module: nn.Module) -> dict[str, Any]:
    """Return nothing: the module has no arguments that matter."""
    del module
    return {}


def taken(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Return a reader of the module's attributes of those names."""
    return lambda module: {name: getattr(module, name) for name in names}


@contextmanager
def outlasting() -> Iterator[None]:
    """Compute what may be kept beyond a walk, in another mode than the walk's.

    Others may take derivatives with it, which they cannot with what inference mode made.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield
