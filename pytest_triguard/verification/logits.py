"""What a walk says of the logits: how small rows on them can be, and how far they reach.

Rows on the logits are merged with the weights of the last product, where there is one: differences
of two logits are differences of two rows of weights, and the walk back begins behind the product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.engine.devices import is_host
from pytest_triguard.verification import rounding
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.least import least_over
from pytest_triguard.verification.network import Head
from pytest_triguard.verification.specification import Matrix, Rows
from pytest_triguard.verification.substitution import Substitution, plainly
from pytest_triguard.verification.tightening import Solve

_CACHED = 2**19
"""Elements of rows that a processor carries back together: more is not faster, and takes memory."""
_DECIDES = 1e-3
"""Share of the largest logit above which no slack decides."""


def least(walk: Substitution, rows: Rows, solve: Solve | None = None) -> Tensor:
    """Return lower bounds of the rows that count, `(n, S)`: the larger of two.

    Those of the walk back, and those of the intervals of what goes into the last product.

    Args:
        walk: The network with all bounds and relaxations over a set of inputs.
        rows: The rows.
        solve: How they are carried back, or None for the relaxations as they are.
    """
    head = walk.head or Head(walk.logits, _one(walk.logits), None)
    held = min(walk.held, _CACHED) if is_host(head.weight.device) else walk.held
    step = max(1, held // (head.inputs.shape[0] * walk.widest))
    count = -(-rows.height // step)
    width = -(-rows.height // count)
    starts = range(0, rows.height, width)
    parts = [slice(start, start + width) for start in starts]
    sizes, run = _sizes(head), solve or plainly
    return torch.cat([_least(walk, head, rows, each, sizes, run) for each in parts], dim=1)


def _sizes(head: Head) -> Tensor:
    """Return what the magnitudes of a logit's terms add up to, `|W| |z| + |b|`, `(n, K)`."""
    bias = None if head.bias is None else head.bias.abs()
    sizes = functional.linear(head.inputs.magnitude, head.weight.abs(), bias)
    return sizes.add_(head.weight.shape[1] * rounding.tiny(sizes.dtype))  # they may underflow


def _least(
    walk: Substitution, head: Head, rows: Rows, part: slice, sizes: Tensor, solve: Solve
) -> Tensor:
    """Bound some rows.

    What merging them with weights and bias rounds is at most gamma times `|c| (|W| |z| + |b|)`.
    """
    classes = len(head.weight)
    merged = rows.matrix(head.weight, part).expand(head.inputs.shape[0], -1, -1)
    plain = least_over(head.inputs, merged)
    found = solve(walk, walk.key_of(head.inputs), merged)
    bound = torch.where(found > plain, found, plain)  # an interval holds where others are NaN
    if head.bias is not None:
        bound = bound + rows.matrix(head.bias.unsqueeze(1), part).squeeze(2)
    error = rows.matrix_sizes(sizes, part).mul_(2 * rounding.gamma(classes + 4, bound.dtype))
    return bound - error.add_(bound.abs(), alpha=8 * rounding.roundoff(bound.dtype)).add_(
        walk.underflow(2)
    )


def tight_logits(walk: Substitution, solve: Solve | None = None) -> Interval:
    """Return bounds of the logits by back-substitution where they are tighter, `(n, K)`.

    Args:
        walk: The network with all bounds and relaxations over a set of inputs.
        solve: How rows are carried back, or None for the relaxations as they are.
    """
    known, one = walk.logits, _one(walk.logits)
    lower, upper = least(walk, Matrix(one, 1.0), solve), -least(walk, Matrix(-one, 1.0), solve)
    # What is not finite says nothing, and the intervals hold whatever it is.
    return Interval(
        torch.where(lower > known.lower, lower, known.lower),
        torch.where(upper < known.upper, upper, known.upper),
    )


def slack_logits(walk: Substitution, margin: Tensor) -> Interval:
    """Return bounds of the logits that a slack can be taken from.

    Those of the intervals are wide; they are tightened where the slack decides.
    """
    positive = margin > 0
    if not bool(positive.any()):
        return walk.logits
    decides = positive & (margin < _DECIDES * walk.logits.magnitude.amax(1))
    if not bool(decides.any()):
        return walk.logits
    tight, known, those = tight_logits(walk), walk.logits, decides[:, None]
    return Interval(
        torch.where(those, tight.lower, known.lower), torch.where(those, tight.upper, known.upper)
    )


def matrix(walk: Substitution, rows: Rows) -> Tensor:
    """Return what is to be proven as rows on the logits, `(n, S, K)`."""
    logits = walk.logits
    return rows.matrix(_one(logits), slice(None)).expand(logits.shape[0], -1, -1)


def _one(logits: Interval) -> Tensor:
    """Return the identity on the logits, `(K, K)`."""
    return torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.lower.device)
