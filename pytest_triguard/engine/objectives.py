"""Scalars per sample that gradients are taken of.

Each objective maps logits `(N, K)` and classes `(N,)` int64 to `(N,)` in the logits' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pytest_triguard.validation import one_of

Objective = Callable[[Tensor, Tensor], Tensor]


def logit(logits: Tensor, classes: Tensor) -> Tensor:
    """Logit of the class."""
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def probability(logits: Tensor, classes: Tensor) -> Tensor:
    """Softmax probability of the class."""
    return logit(logits.softmax(1), classes)


def log_probability(logits: Tensor, classes: Tensor) -> Tensor:
    """Logarithm of the softmax probability of the class."""
    return logit(logits.log_softmax(1), classes)


def contrast(logits: Tensor, classes: Tensor) -> Tensor:
    """Logit of the class minus the other logits, weighted by their softmax among themselves."""
    weights = _without(logits, classes).softmax(1)
    return logit(logits, classes) - (weights * logits).sum(1)


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, `-log p`, per sample and never averaged over the batch."""
    return functional.cross_entropy(logits, classes, reduction="none")


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Logit of the class minus the largest other logit; positive where it is the prediction."""
    return logit(logits, classes) - _without(logits, classes).amax(1)


def dlr(logits: Tensor, classes: Tensor) -> Tensor:
    """Difference-of-logits ratio (Croce and Hein 2020, eq. 6), positive where misclassified."""
    largest = logits.topk(3, dim=1).values
    return -margin(logits, classes) / _positive(largest[:, 0] - largest[:, 2])


def targeted_dlr(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference-of-logits ratio (Croce and Hein 2020, eq. 7)."""
    largest = logits.topk(4, dim=1).values
    spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return (logit(logits, targets) - logit(logits, classes)) / _positive(spread)


def _positive(values: Tensor) -> Tensor:
    # Of equal logits the ratio is steep, but not so steep that the way back through a network
    # leaves the range of its numbers.
    return values.clamp_min(math.sqrt(torch.finfo(values.dtype).tiny))


def _without(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes.unsqueeze(1), -torch.inf)


EXPLAINED: dict[str, Objective] = {
    "logit": logit,
    "probability": probability,
    "log_probability": log_probability,
    "contrast": contrast,
}
"""Outputs an attribution can explain, by the name of the `output` hyperparameter."""


def explained(output: str) -> Objective:
    """Return the objective behind an attribution's `output` hyperparameter.

    Raises:
        InputError: If the name is unknown.
    """
    return EXPLAINED[one_of("output", output, EXPLAINED)]
