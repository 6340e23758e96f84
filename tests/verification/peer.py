"""auto_LiRPA as an oracle and as a competitor: its bounds without this project's slack.

Its answers are those of a library that rounds nothing outward: compare with a tolerance.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_triguard.verification.auto_lirpa import STEPS, AutoLirpa, available

needs_peer = pytest.mark.skipif(
    not available(), reason="auto_LiRPA is not installed: see docs/how-to/use-auto-lirpa.md"
)


def peer(
    module: nn.Module,
    example: Tensor,
    method: str,
    *,
    iterations: int = STEPS,
    conv_mode: str = "auto",
    dtype: torch.dtype | None = None,
) -> AutoLirpa:
    """Return a converted module, for who asks more than once; its `rows` is one call of the peer.

    `peer(...).rows(lower, upper, rows, singly=False)` is the library at its fastest: the whole
    batch at once, where its results may depend on which samples share it. `conv_mode` is
    `"patches"`, `"matrix"`, or `"auto"` for patches where they are sound. `dtype` is that of the
    example, unless it is given.
    """
    return AutoLirpa(
        module,
        None,
        example,
        method,
        dtype=example.dtype if dtype is None else dtype,
        conv_mode=conv_mode,
        steps=iterations,
    )


def peer_bounds(
    module: nn.Module,
    lower: Tensor,
    upper: Tensor,
    method: str,
    rows: Tensor | None = None,
    *,
    iterations: int = STEPS,
    conv_mode: str = "auto",
    dtype: torch.dtype | None = None,
    singly: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the peer's lower and upper bounds of rows on the logits over boxes, `(n, S)` each.

    `rows` is `(n, S, K)`, or None for the logits themselves. The boxes are of what the module
    itself sees: there is no normalisation. Raises `Unsupported` for what the peer cannot do.
    """
    subject = peer(module, lower, method, iterations=iterations, conv_mode=conv_mode, dtype=dtype)
    if rows is None:
        classes = module(lower[:1]).shape[1]
        rows = torch.eye(classes, dtype=lower.dtype).to(lower.device).expand(len(lower), -1, -1)
    found = subject.rows(lower, upper, torch.cat([rows, -rows], dim=1), singly=singly)
    low, high = found.split(rows.shape[1], dim=1)
    return low, -high
