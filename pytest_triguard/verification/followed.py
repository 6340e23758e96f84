"""Which operators are applied to an input, and to what depends on it.

A module whose `forward` asks what kind of object a value is may go another way while it is traced,
where a value is no tensor: the graph is then not the module, even if both give the same where they
are compared. That shows in the operators that they apply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@torch.no_grad()
def operators(run: Callable[[Tensor], object], inputs: Tensor) -> list[str]:
    """Return the names of the operators that a run applies to its inputs, in their order.

    Those of values that do not depend on the inputs are left out: tracing computes them once.

    Args:
        run: What is looked at.
        inputs: What it is given.
    """
    source = inputs.clone()
    followed = _Followed(source)
    with followed:
        run(source)
    return followed.names


class _Followed(TorchDispatchMode):
    """Follows a tensor through all operators.

    Args:
        source: The tensor.

    Attributes:
        names: Names of the operators that were given what depends on it.
    """

    def __init__(self, source: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self._known = {id(source): source}  # alive, so that no other tensor gets its number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        depends = any(id(each) in self._known for each in tree_leaves((args, given)))
        result = func(*args, **given)
        if depends:
            self.names.append(str(func))
            for each in tree_leaves(result):
                if isinstance(each, Tensor):
                    self._known[id(each)] = each
        return result
