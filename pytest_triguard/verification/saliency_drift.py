"""A sound bound on how far the saliency of a sample can drift within a ball."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.attributions.base import with_targets
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import ModelError
from pytest_triguard.metrics.drift import DRIFT_FORMS
from pytest_triguard.running import running
from pytest_triguard.validation import one_of
from pytest_triguard.verification import rounding
from pytest_triguard.verification.gradient_bounds import Gradients, captured
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.operators import Unsupported
from pytest_triguard.verification.regions import Region, region

_CHECKED = 4
_FULL = 2.0
"""Largest drift of the allocation."""


def saliency_drift_bound(
    classifier: Any,
    inputs: Any,
    targets: Any = None,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    form: str = "allocation",
) -> Tensor:
    """Bound the drift between the saliency of a sample and that of any input in a ball around it.

    The saliency is the gradient of the target's logit, signed; the target is held fixed. The
    network must be piecewise linear. The drift is that of `metrics.get("drift", form=...)`, in real
    arithmetic, and at kinks for every choice between their sides.

    Args:
        classifier: The `Classifier`; its exact module is bounded.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        targets: Class explained, one for all or `(N,)`; None for the labels a loader brings, else
            the prediction.
        eps: Radius of the ball in input units, one for all samples or `(N,)`; the ball is cut by
            the classifier's bounds.
        norm: `"linf"`, `"l2"` or `"l1"`.
        form: `"allocation"` (at most 2, and 2 says nothing; it is about inputs whose saliency is
            not zero, where alone the drift is defined), `"l2"` or `"completeness_orthogonal"`.

    Returns:
        `(N,)` on the device of the inputs, in float64 where the classifier's device knows it;
        infinite where bounds overflow.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the gradient cannot be bounded; names operator and module path.
    """
    one_of("form", form, DRIFT_FORMS)
    with running(classifier, inputs, targets=targets) as run:
        run.require_one_each("eps", eps)
        where = region(eps, norm, None, None, run.model)
        run.tune(2)
        gradients, parts = None, []
        for block in Feed(run.samples, run.model.device).blocks(run.model.chunk.rows):
            batch = with_targets(run.model, block)
            if gradients is None:
                first = batch.rows(slice(0, _CHECKED))
                gradients = captured(run.model, first.inputs, _classes(first))
            parts.append(_bounded(gradients, run.model, where, batch, form).to(run.like.device))
    return torch.cat(parts)


def _classes(batch: Batch) -> Tensor:
    if batch.targets is None:
        raise TypeError("the samples have targets")
    return batch.targets


@torch.no_grad()
def _bounded(gradients: Gradients, model: Model, where: Region, batch: Batch, form: str) -> Tensor:
    """Return the bound of each sample, `(n,)`."""

    def drift(part: slice) -> Tensor:
        block = batch.rows(part)
        exact = block.inputs.to(gradients.dtype)
        inside = where.around(model, block, gradients.dtype)
        own = gradients.over(Interval(exact, exact), _classes(block))
        other = gradients.over(inside, _classes(block))
        return _drift(form, _flat(own), _flat(other))

    try:
        return torch.cat(model.chunk.attempt(drift, len(batch)))
    except Unsupported as refusal:
        raise ModelError(f"the gradient cannot be bounded: {refusal}") from None


def _flat(value: Interval) -> Interval:
    return Interval(value.lower.flatten(1), value.upper.flatten(1))


def _drift(form: str, own: Interval, other: Interval) -> Tensor:
    """Return the largest drift between maps within two bounds `(n, d)`, rounded up."""
    outward = 1 + 8 * rounding.gamma(own.shape[1], own.dtype)
    if form == "allocation":
        return (_allocation(own, other) * outward).nan_to_num(_FULL).clamp_max(_FULL)
    drift = _length(_farthest(own, other))
    if form == "completeness_orthogonal":
        drift = torch.minimum(drift, _centred(own, other)) / math.sqrt(own.shape[1])
    return torch.where(torch.isfinite(drift), drift * outward, torch.inf)


def _farthest(own: Interval, other: Interval) -> Tensor:
    """Return the largest distance between elements of two maps, `(n, d)`."""
    distance = torch.maximum(other.upper - own.lower, own.upper - other.lower)
    return rounding.up(distance, 1)


def _length(values: Tensor) -> Tensor:
    # Scaled before it is squared: gradients of a saturated network are small enough to vanish.
    peak = values.amax(1, keepdim=True)
    squares = (values / peak.clamp_min(rounding.tiny(values.dtype))).square()
    return squares.sum(1).sqrt() * peak.squeeze(1)


def _centred(own: Interval, other: Interval) -> Tensor:
    """Return the largest L2 length of the difference after its mean is taken out.

    To take out the mean lengthens nothing, so it is that of the centre and the whole radius.
    """
    gap = Interval(
        rounding.down(other.lower - own.upper, 1), rounding.up(other.upper - own.lower, 1)
    )
    centre, radius = gap.centre_and_radius()
    moved = centre - centre.mean(1, keepdim=True)
    error = centre.abs().amax(1, keepdim=True) * rounding.gamma(centre.shape[1], centre.dtype)
    return _length(moved.abs() + 4 * error) + _length(radius)


def _allocation(own: Interval, other: Interval) -> Tensor:
    """Return the lesser of two bounds, by distance and by shares; NaN and infinity say nothing.

    `|A / |A| - B / |B||` is at most `2 |A - B| / max(|A|, |B|)`, all in L1.
    """
    distance = _farthest(own, other).sum(1)
    mass = torch.maximum(_magnitudes(own)[0].sum(1), _magnitudes(other)[0].sum(1))
    by_distance = 2 * distance / mass
    by_shares = _farthest(_shares(own), _shares(other)).sum(1)
    return torch.fmin(by_distance, by_shares)


def _magnitudes(value: Interval) -> tuple[Tensor, Tensor]:
    """Return the least and the largest magnitude of each element."""
    least = torch.maximum(value.lower, -value.upper).clamp_min(0)
    return least, torch.maximum(-value.lower, value.upper)


def _shares(value: Interval) -> Interval:
    """Bound each element of a map over the sum of all magnitudes.

    It grows with the element, and its magnitude falls with what the others sum up to.
    """
    gamma = 4 * rounding.gamma(value.shape[1], value.dtype)
    least, most = _magnitudes(value)
    rest = (least.sum(1, keepdim=True) * (1 - gamma) - least).clamp_min(0)
    others = most.sum(1, keepdim=True) * (1 + gamma) - most

    def highest(end: Tensor) -> Tensor:
        total = end.abs() + torch.where(end > 0, rest, others)
        return torch.where(end == 0, 0.0, end / total)

    return Interval(rounding.down(-highest(-value.lower), 4), rounding.up(highest(value.upper), 4))
