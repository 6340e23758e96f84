"""What a module and the random number generators look like, to see that nothing was left behind."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return everything about a module that a check could leave changed; compare with `==`."""
    tensors = {
        **{f"parameter {name}": each for name, each in module.named_parameters()},
        **{f"buffer {name}": each for name, each in module.named_buffers()},
    }
    return {
        "tensors": {name: _tensor(each) for name, each in tensors.items()},
        "training": {name: each.training for name, each in module.named_modules()},
        "hooks": {
            name: [list(getattr(each, kind)) for kind in _HOOKS]
            for name, each in module.named_modules()
        },
        "attributes": {name: sorted(vars(each)) for name, each in module.named_modules()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "identity": id(tensor),
        "place": (tensor.device, tensor.data_ptr()),
        "dtype": tensor.dtype,
        "values": tensor.detach().cpu().tolist(),
        "requires_grad": tensor.requires_grad,
        "grad": None if tensor.grad is None else (id(tensor.grad), tensor.grad.cpu().tolist()),
    }
