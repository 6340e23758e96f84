"""Finds modules whose logits for a sample are not a function of that sample alone."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_triguard.engine.chunking import out_of_memory
from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.equality import same_values
from pytest_triguard.engine.generators import Generators
from pytest_triguard.engine.model import Model
from pytest_triguard.errors import ModelError, TriGuardError, first_line

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_COARSE = 3e-2
"""Relative change of the logits that kernels alone may cause: they differ with the batch size."""

_SOFTMAX = 1e-5
"""How near to a probability distribution logits must be to be taken for one."""

_CALLS = 32
"""Calls more of a module that drew at random and yet gave the same twice."""


@torch.no_grad()
def probe(model: Model, inputs: Tensor, *, may_draw: bool = False) -> None:
    """Run a sample alone and in company, and refuse a module whose answers change.

    Costs five rows of forward passes, which are not counted: a call starts with them. A module that
    draws at random costs some more; one that overwrites its inputs is marked, and gets a copy from
    then on. One that gives probabilities is marked, too.

    Args:
        model: The network.
        inputs: `(n, C, H, W)` samples on the model's device.
        may_draw: Whether a module may draw at random; one that does is marked, and what depends
            on its neighbours can then not be told from what it draws.

    Raises:
        ModelError: If the module does not take the inputs, if two calls differ, if the logits of
            a sample change with its neighbours, if the forward pass changes a buffer, or if the
            logits are not finite.
    """
    row = inputs[:1]
    low, high = model.bounds(row.dtype)
    buffers = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    name = type(model.module).__name__
    before = Generators(model.device)
    # Outside of inference mode tensors count how often they were written to.
    with torch.inference_mode(False), torch.no_grad(), model.passes.uncounted():
        rows = torch.cat([row, (low + high) - row, inputs[1:2]])
        version = rows._version
        company = _first(model, rows)
        # What is given from here on is not its own: the user's, or a leaf of the graph.
        model.overwrites = rows._version != version
        alone = _twice_alone(model, row)
        other = None if alone is None else _other(model, row, *alone, drew=before.moved())
    # The second row of the company is no sample of the user's.
    given = torch.cat([company[::2], *(alone or ())])
    if not bool(given.isfinite().all()):
        raise ModelError(f"the module {name} must give finite logits, but NaN or infinity came")
    model.ends_in_softmax = _probabilities(given)
    if alone is not None and other is not None:
        if may_draw:
            model.draws = True
            return
        raise ModelError(
            f"the module {name} is random: two calls on the same inputs gave logits that differ by "
            f"{float((alone[0] - other).abs().max()):.2g}; a dropout that a custom forward "
            "leaves active is the usual reason (pass training=self.training to it)"
        )
    if alone is None or differs(company[:1], alone[0], computed_in=row.dtype):
        raise ModelError(
            f"the module {name} is batch-dependent: the logits of one sample change with its "
            "neighbours; batch normalisation without running statistics is the usual reason"
        )
    for key, buffer in model.module.named_buffers():
        if key not in buffers or not same_values(buffer, buffers[key]):
            raise ModelError(
                f"the module {name} changes its buffer {key!r} in its forward pass, "
                "although it is in evaluation mode"
            )


def _first(model: Model, rows: Tensor) -> Tensor:
    """Return the logits of the first call, in which inputs of a wrong shape show."""
    try:
        return model.logits(rows)
    except TriGuardError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = first_line(error)
        raise ModelError(
            f"the module {type(model.module).__name__} must take inputs of shape "
            f"(N, {', '.join(map(str, rows.shape[1:]))}) and dtype {rows.dtype}, but it raised "
            f"{type(error).__name__}: {reason}"
        ) from error


def _probabilities(logits: Tensor) -> bool:
    """Return whether every row is a distribution over classes, as a softmax makes it."""
    away = (logits.sum(1) - 1).abs().amax()
    return bool(torch.maximum(away, -logits.amin()) <= _SOFTMAX)


def _twice_alone(model: Model, row: Tensor) -> tuple[Tensor, Tensor] | None:
    try:
        return model.logits(row), model.logits(row)
    except ModelError:
        raise
    except ValueError:  # batch normalisation refuses one value per channel
        return None


def _other(
    model: Model, row: Tensor, first: Tensor, second: Tensor, *, drew: bool
) -> Tensor | None:
    """Return logits of the same row that differ from the first, or None if they never do.

    Chance may give the same twice; a module that drew from a generator is asked more often.
    """
    if not _repeat(model, first, second, row.dtype):
        return second
    again = (model.logits(row) for _ in range(_CALLS if drew else 0))
    return next((each for each in again if not _repeat(model, first, each, row.dtype)), None)


def _repeat(model: Model, first: Tensor, second: Tensor, computed_in: torch.dtype) -> bool:
    """Return whether two calls on the same inputs gave the same, but for what a device varies."""
    return torch.equal(first, second) or not (
        is_host(model.device) or differs(first, second, computed_in=computed_in)
    )


def differs(first: Tensor, second: Tensor, *, computed_in: torch.dtype) -> bool:
    """Return whether logits, or what is of their size, differ by more than kernels explain.

    Args:
        first: The logits of some samples.
        second: Their logits again.
        computed_in: Dtype of the inputs: a network may turn coarse logits into finer numbers.
    """
    return bool(apart(first, second, computed_in=computed_in))


def apart(first: Tensor, second: Tensor, *, computed_in: torch.dtype) -> Tensor:
    """Return the same as a tensor `()` bool, which is not read from the device."""
    tolerance = max(_TOLERANCE.get(each, _COARSE) for each in (first.dtype, computed_in))
    scale = first.abs().amax().clamp_min(1.0)
    # A comparison with NaN is false.
    return ~((first - second).abs().amax() <= tolerance * scale)
