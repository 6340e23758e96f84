"""The gradient of an objective with respect to what a layer gives."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.engine.estimators import Copies, MakeCopies, points_of, repeated
from pytest_triguard.engine.layers import Captured
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.errors import InputError
from pytest_triguard.validation import describe


def expected_feature_gradient(
    model: Model,
    features: Captured,
    inputs: Tensor,
    classes: Tensor,
    keys: Tensor,
    objective: Objective,
    *,
    copies: int,
    make: MakeCopies,
) -> Tensor:
    """Return the gradient of an objective by a layer's features, averaged over copies.

    A pass holds no more rows than the model's chunk.

    Args:
        model: The network.
        features: What captures the layer's output.
        inputs: `(n, C, H, W)` on the model's device.
        classes: `(n,)` int64, handed to the objective.
        keys: `(n,)` int64 keys of the samples, for random copies.
        objective: From logits and classes to one number per row.
        copies: Number of copies of each sample.
        make: Makes the points at which the network is evaluated.

    Returns:
        `(n, ...)`, shaped like the features.

    Raises:
        InputError: If the layer does not give one row per input.
    """
    rows = len(inputs)
    per_pass = max(1, model.chunk.rows // rows)
    block = Copies(inputs, keys, torch.zeros_like(keys))
    mean: Tensor | None = None
    for first in range(0, copies, per_pass):
        numbers = range(first, min(first + per_pass, copies))
        points = points_of(make(repeated(block, numbers)))
        goals = classes.repeat(len(numbers))

        def run(part: slice, points: Tensor = points, goals: Tensor = goals) -> Tensor:
            return feature_gradient(model, features, points[part], goals[part], objective)

        gradients = torch.cat(model.chunk.attempt(run, len(points)))
        for each in torch.split(gradients, rows):
            mean = each if mean is None else mean + each
    if mean is None:
        raise ValueError("copies must be at least 1")
    return mean / copies


def feature_gradient(
    model: Model, features: Captured, points: Tensor, classes: Tensor, objective: Objective
) -> Tensor:
    """Return the gradient of an objective by a layer's features at some points, `(n, ...)`.

    A sample whose objective does not depend on the features has the zero gradient.

    Raises:
        InputError: If the layer does not give one row per input.
    """
    with torch.inference_mode(False), torch.enable_grad():
        points = points.clone() if points.is_inference() else points.detach()
        logits = model.logits(points.requires_grad_())
        total, output = objective(logits, classes).sum(), features.output
        if output.shape[:1] != (len(points),):
            raise InputError(
                f"layer must give one row for each of {len(points)} inputs, but "
                f"{describe(output)} came"
            )
        gradient = None
        if total.requires_grad and output.requires_grad:
            (gradient,) = torch.autograd.grad(total, output, allow_unused=True)
            model.passes.backward += len(points)
    return torch.zeros_like(output) if gradient is None else gradient.detach()
