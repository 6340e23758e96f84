"""The gradient of an objective with respect to the input, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from pytest_triguard.engine.chunking import out_of_memory
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective
from pytest_triguard.errors import NotDifferentiable, TriGuardError, first_line


def input_gradient(
    model: Model,
    points: Tensor,
    classes: Tensor,
    objective: Objective,
    *,
    through: Callable[[Tensor], Tensor] | None = None,
    rules: AbstractContextManager[object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of an objective at some points, and the logits there.

    The objective is summed over the batch, never averaged, so that each sample's gradient is its
    own. Parameters are frozen: no weight gradient is computed that nobody reads.

    Args:
        model: The network.
        points: `(N, C, H, W)` in the user's space, on the model's device.
        classes: `(N,)` int64.
        objective: From logits and classes to `(N,)`.
        through: A differentiable map from the points to what the network sees, or None; the
            gradient is taken through it.
        rules: Backward rules that hold for network and objective, or None.

    Returns:
        The gradient `(N, C, H, W)` and the logits `(N, K)`, both detached. A sample whose
        objective does not depend on the input has the zero gradient.

    Raises:
        NotDifferentiable: If autograd refuses to go through the network.
    """
    (gradient,), logits = input_gradients(
        model, points, (classes,), objective, through=through, rules=rules
    )
    return gradient, logits


def input_gradients(
    model: Model,
    points: Tensor,
    classes: Sequence[Tensor],
    objective: Objective,
    *,
    through: Callable[[Tensor], Tensor] | None = None,
    rules: AbstractContextManager[object] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of an objective for several classes, from one forward pass.

    Args:
        model: As for `input_gradient`.
        points: Likewise.
        classes: Classes of each gradient, each `(N,)` int64.
        objective: As for `input_gradient`.
        through: Likewise.
        rules: Likewise.

    Returns:
        The gradients, each `(N, C, H, W)`, and the logits `(N, K)`, all detached.

    Raises:
        NotDifferentiable: If autograd refuses to go through the network.
    """
    with torch.inference_mode(False), torch.enable_grad():
        points = points.clone() if points.is_inference() else points.detach()
        points.requires_grad_()
        with rules or nullcontext():
            logits = _followed(model, points if through is None else through(points))
            totals = [objective(logits, each).sum() for each in classes]
        gradients = []
        for number, total in enumerate(totals, start=1):
            gradient = None
            if total.requires_grad:
                with _backward(model):
                    (gradient,) = torch.autograd.grad(
                        total, points, retain_graph=number < len(totals), allow_unused=True
                    )
                model.passes.backward += len(points)
            gradients.append(torch.zeros_like(points) if gradient is None else gradient)
    return [each.detach() for each in gradients], logits.detach()


def has_gradients(model: Model, points: Tensor) -> bool:
    """Return whether the logits depend on the input in a way that autograd sees.

    A module that computes without gradients, or detaches, has none; a gradient of zeros is one.
    The pass is not counted.

    Args:
        model: The network.
        points: `(N, C, H, W)` anywhere; one sample is enough.

    Raises:
        NotDifferentiable: If autograd refuses to go through the network.
    """
    with model.passes.uncounted(), torch.inference_mode(False), torch.enable_grad():
        points = points.to(model.device, copy=True).requires_grad_()
        logits = _followed(model, points)
        gradient = None
        if logits.requires_grad:
            with _backward(model):
                (gradient,) = torch.autograd.grad(logits.sum(), points, allow_unused=True)
    return gradient is not None


def _followed(model: Model, points: Tensor) -> Tensor:
    """Return logits that autograd follows; name a network that only runs without it."""
    try:
        return model.logits(points)
    except TriGuardError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        try:
            with torch.no_grad(), model.passes.uncounted():
                model.logits(points.detach())
        except Exception:  # it runs neither way, and that is what is to be told
            raise error from None
        raise _refusal(model, error) from error


@contextmanager
def _backward(model: Model) -> Iterator[None]:
    """Name a network that autograd does not go back through."""
    try:
        yield
    except TriGuardError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _refusal(model, error) from error


def _refusal(model: Model, error: Exception) -> NotDifferentiable:
    reason = first_line(error)
    return NotDifferentiable(
        f"the module {type(model.module).__name__} cannot be differentiated: "
        f"{type(error).__name__}: {reason.partition(' Hint: ')[0]}"
    )
