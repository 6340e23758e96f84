"""Whether a compiler has had a hand in a module."""

from __future__ import annotations

import torch
from torch import nn


def compiled(module: nn.Module) -> bool:
    """Return whether a module or a part of it was compiled, for one layout and for fixed layers."""
    return any(
        isinstance(each, torch.jit.ScriptModule)
        or each._compiled_call_impl is not None
        or hasattr(each, "_orig_mod")
        for each in module.modules()
    )
