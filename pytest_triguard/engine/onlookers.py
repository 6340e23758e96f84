"""Tells whether anything looks on while a layer runs, and would see that it is not itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.overrides import has_torch_function_unary


def watched(input: Tensor) -> bool:
    """Return whether a compiler, a tracer or other rules for operators see what a layer does."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or has_torch_function_unary(input)  # somebody has rules of their own, or looks on
    )


def backward_watched() -> bool:
    """Return whether derivatives go forward, or hooks take what is saved for the way back."""
    # Any part of the layer may have a tangent.
    return forward_ad._current_level >= 0 or _saved_elsewhere()


def _saved_elsewhere() -> bool:
    """Return whether hooks take what is saved.

    Those of a checkpoint want the same saved when a layer is computed again, which may be after it
    was restored, or where other rules no longer hold.
    """
    try:
        with disable_saved_tensors_hooks("used by others"):
            return False
    except RuntimeError:
        return True
