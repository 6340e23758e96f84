"""Certificates for the expectation map of SmoothGrad.

The map is `G(x) = E grad p(x + n)` for a softmax probability p and normal noise n of standard
deviation s, neither clipped. It is the gradient of p smoothed by the noise, and by Stein's identity

    G(x) = E p(x + n) n / s^2,

which asks nothing of p but that it lies between 0 and 1. Three facts follow.

* The map moves slowly. Its derivative is `E (p - 1/2) (z z' - I) / s^2` for standard normal z;
  along a unit vector that is at most `E |z^2 - 1| / 2 = 2 phi(1)` over s^2, phi the normal density.
* The map is short: along a unit vector it is at most `E |z| / 2 = phi(0)` over s.
* So it moves by at most `min(2 phi(1) |d| / s^2, 2 phi(0) / s)` when the input moves by d. Both are
  attained by probabilities that are 0 or 1.

The map at the sample itself is not known; it is estimated by draws. A gradient has no bound that
holds over all inputs, so its mean over draws would carry no confidence statement. The terms of
Stein's identity have one: in antithetic pairs, with the noise cut off at `c` standard deviations,

    t = (p(x + s z) - p(x - s z)) / 2 * clip(z, -c, c) / s,    |t| <= c / (2 s),

and to cut it off moves the mean by at most `E (|z| - c)_+ / (2 s) = (phi(c) - c Q(c)) / s`, Q the
normal tail. The empirical Bernstein inequality of Maurer and Pontil, united over the elements of
the map, then gives a radius for each element; all hold at once with the stated confidence.

References:
    Wang et al. 2020, "Smoothed Geometry for Robust Attribution", arXiv:2006.06643, theorem 2 (whose
    constant 2 in place of 0.484 does not centre the output).
    C. M. Stein, "Estimation of the mean of a multivariate normal distribution", Annals of
    Statistics 9, 1981.
    A. Maurer, M. Pontil, "Empirical Bernstein bounds and sample-variance penalization", COLT 2009,
    theorem 4.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.attacks.base import check_eps
from pytest_triguard.attributions.base import with_targets
from pytest_triguard.engine import draws
from pytest_triguard.engine.devices import supports_float64
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import probability
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import InputError, ModelError
from pytest_triguard.running import running
from pytest_triguard.settings import current_settings
from pytest_triguard.validation import flag, number, one_of, share, whole
from pytest_triguard.verification import rounding, top_k
from pytest_triguard.verification.intervals import BALL_NORMS, per_sample

CHANNELS = ("separate", "sum")
"""What becomes of the channels: elements of their own, or one element per pixel."""

_SLOPE = 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)
_REACH = 2 / math.sqrt(2 * math.pi)
_OUTWARD = 1 + 1e-12


@dataclass(frozen=True)
class SmoothedMapCertificate:
    """What is known about the expectation map of each sample; all in float64 where not said.

    Attributes:
        displacement: `(N,)` largest L2 distance between the map at the sample and the map anywhere
            in the ball. Holds without any sampling.
        overlap: `(N,)` int64, at least so many of the k largest elements of the map at the sample
            are among the k largest anywhere in the ball, with the confidence.
        vacuous: `(N,)` bool, whether `overlap` says no more than counting does: any two sets of k
            among D elements share `2k - D`.
        estimate: `(N, C, H, W)` estimate of the map at the sample, C being 1 for summed channels.
        radius: `(N, C, H, W)` how far the map at the sample is from the estimate at most, in every
            element at once, with the confidence.
        estimate_overlap: `(N,)` int64, at least so many of the k largest elements of the estimate
            are among the k largest of the map at the sample, with the confidence; nothing is said
            of an estimate at another point.
        k: Number of elements that are compared.
        confidence: Of what holds with a confidence: for each sample by itself, all its elements
            together.
        noise: Standard deviation of the noise.
        copies: Draws per sample.
    """

    displacement: Tensor
    overlap: Tensor
    vacuous: Tensor
    estimate: Tensor
    radius: Tensor
    estimate_overlap: Tensor
    k: int
    confidence: float
    noise: float
    copies: int

    def describe(self) -> str:
        """Return what was certified in words, for reports."""
        total, empty = len(self.overlap), int(self.vacuous.sum())
        return (
            f"expectation map of SmoothGrad with noise {self.noise:g}: a top-{self.k} overlap of "
            f"{int(self.overlap.min())} or more in the ball of every one of {total} samples, each "
            f"with confidence {self.confidence:g} ({self.copies} draws); vacuous for {empty} of "
            f"{total}"
        )


def certify_smoothgrad(
    classifier: Any,
    inputs: Any,
    targets: Any = None,
    *,
    eps: float | Tensor,
    k: int,
    norm: str = "l2",
    noise: float = 0.15,
    copies: int = 10_000,
    confidence: float = 0.95,
    channels: str = "separate",
    absolute: bool = False,
    seed: int | None = None,
    ids: Sequence[Hashable] | None = None,
) -> SmoothedMapCertificate:
    """Certify how far the expectation map of SmoothGrad can move in a ball, and what stays on top.

    The map is the mean gradient of the softmax probability over normal noise of a fixed standard
    deviation, without clipping: neither of the noise nor of the ball to the valid range. What is
    certified is the gradient of the probability that the module computes, smoothed by that noise;
    it equals the mean gradient where that probability is continuous. Nothing is claimed for a map
    that is an average over draws at another point than the sample. The draws are taken to be what
    they stand for, independent standard normal numbers.

    Args:
        classifier: The `Classifier`. Its logits must be finite for every input, not only in the
            valid range.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        targets: Class explained, one for all or `(N,)`; None for the labels a loader brings, else
            the prediction.
        eps: Radius of the ball in input units, one for all samples or `(N,)`.
        k: Number of largest elements to compare.
        norm: `"l2"`, `"linf"` (a ball within the L2 ball of `eps * sqrt(d)`) or `"l1"`.
        noise: Standard deviation of the noise in input units, the same for every input.
        copies: Draws per sample, at least 2; each costs two forward passes.
        confidence: Confidence of what rests on draws, in (0, 1), for each sample.
        channels: `"separate"`, or `"sum"` to add up the channels of each pixel first.
        absolute: Whether magnitudes are compared, in place of signed elements.
        seed: Seed of the draws, or None for the session's.
        ids: One unique id per sample, which the draws are keyed with; default: its place.

    Returns:
        Bounds, estimates and overlaps, sample by sample, on the device of the inputs.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module breaks what a classifier promises, or a probability is not finite.
    """
    check_eps(eps)
    asked = _Request(
        k=whole("k", k, low=1),
        norm=one_of("norm", norm, BALL_NORMS),
        noise=number("noise", noise, low=0, low_open=True),
        copies=whole("copies", copies, low=2),
        confidence=share("confidence", confidence),
        summed=one_of("channels", channels, CHANNELS) == "sum",
        absolute=flag("absolute", absolute),
        seed=current_settings().seed if seed is None else whole("seed", seed),
    )
    with running(classifier, inputs, ids=ids, targets=targets) as run:
        run.require_one_each("eps", eps)
        asked.refuse_k(run.like)
        run.tune(2 * asked.copies)
        device = run.like.device
        parts = []
        for block in Feed(run.samples, run.model.device).blocks(run.model.chunk.rows):
            found = asked.certified(run.model, with_targets(run.model, block), eps)
            parts.append([each.to(device) for each in found])
    distance, overlap, vacuous, estimate, radius, own = map(torch.cat, zip(*parts, strict=True))
    return SmoothedMapCertificate(
        displacement=distance,
        overlap=overlap,
        vacuous=vacuous,
        estimate=estimate,
        radius=radius,
        estimate_overlap=own,
        k=asked.k,
        confidence=asked.confidence,
        noise=asked.noise,
        copies=asked.copies,
    )


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What was asked for, checked."""

    k: int
    norm: str
    noise: float
    copies: int
    confidence: float
    summed: bool
    absolute: bool
    seed: int

    def refuse_k(self, like: Tensor) -> None:
        elements = like[0].numel() // (like.shape[1] if self.summed else 1)
        if self.k > elements:
            raise InputError(
                f"k must not exceed the {elements} elements of a map, but {self.k} came"
            )

    @torch.no_grad()
    def certified(self, model: Model, block: Batch, eps: float | Tensor) -> tuple[Tensor, ...]:
        """Return the columns of the certificate for some samples, in its order."""
        dtype = torch.float64 if supports_float64(model.device) else block.inputs.dtype
        scale = math.sqrt(block.inputs.shape[1] if self.summed else 1)
        lengths = _lengths(eps, block, self.norm)
        outward = 1 + 2 * rounding.roundoff(dtype)  # a coarser dtype may round down
        distance = displacement(lengths, self.noise, scale).to(dtype).to(model.device) * outward
        estimate, radius = self.estimated(model, block, dtype)
        _refuse_not_finite(estimate, block)
        low, high = (estimate - radius).flatten(1), (estimate + radius).flatten(1)
        ranked = estimate.flatten(1)
        if self.absolute:
            low, high = torch.maximum(low, -high).clamp_min(0), torch.maximum(-low, high)
            ranked = ranked.abs()
        overlap = top_k.kept(low, high, self.k, distance)
        # A ball that is a point moves nothing, whatever is known of the map.
        overlap = torch.where(distance == 0, self.k, overlap)
        vacuous = overlap <= max(0, 2 * self.k - low.shape[1])
        own = top_k.shared(ranked, low, high, self.k)
        return distance, overlap, vacuous, estimate, radius, own

    def estimated(self, model: Model, block: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the estimate of the map at each sample and its radius, `(n, C, H, W)`."""
        like = block.inputs[:, :1] if self.summed else block.inputs
        moments = torch.zeros((2, *like.shape), dtype=dtype, device=model.device)
        cutoff = math.sqrt(2 * math.log(self.copies))
        made = max(1, model.chunk.rows // (2 * len(block)))
        for first in range(0, self.copies, made):
            numbers = range(first, min(first + made, self.copies))
            terms = self.terms(model, block, numbers, cutoff, dtype)
            moments[0] += terms.sum(0)
            moments[1] += terms.square_().sum(0)
        mean = moments[0] / self.copies
        radius = _radius(moments, self.copies, cutoff, self.confidence)
        factor = math.sqrt(block.inputs.shape[1] if self.summed else 1) / self.noise
        return mean * factor, radius * (factor * _OUTWARD)

    def terms(
        self, model: Model, block: Batch, numbers: range, cutoff: float, dtype: torch.dtype
    ) -> Tensor:
        """Return the terms of some draws before their factor, `(len(numbers), n, C, H, W)`.

        Summed channels are one normal number times the root of their count, which is a factor.
        """
        times, rows = len(numbers), len(block)
        which = torch.arange(numbers.start, numbers.stop, device=model.device)
        keys = draws.row_keys(
            block.keys.repeat(times),
            seed=self.seed,
            method="certify_smoothgrad",
            copy=which.repeat_interleave(rows),
        )
        normal = draws.normal(keys, block.inputs.shape[1:], dtype=dtype)
        weights = self.differences(model, block, normal)
        if self.summed:
            normal = normal.sum(1, keepdim=True).div_(math.sqrt(block.inputs.shape[1]))
        terms = normal.clamp_(-cutoff, cutoff).mul_(per_sample(weights, normal))
        return terms.view(times, rows, *terms.shape[1:])

    def differences(self, model: Model, block: Batch, normal: Tensor) -> Tensor:
        """Return half of what the probability differs by on both sides, for every draw."""
        times = len(normal) // len(block)
        inputs = block.inputs.to(normal.dtype).repeat(times, 1, 1, 1)
        points = torch.cat([inputs + self.noise * normal, inputs - self.noise * normal])
        if block.targets is None:
            raise TypeError("the samples have targets")
        classes = block.targets.repeat(times)
        logits = model.chunk.map(model.logits, points.to(block.inputs.dtype))
        # A softmax that is rounded may leave the range that the terms' bound rests on.
        values = probability(logits.to(normal.dtype), classes.repeat(2)).clamp(0, 1)
        above, below = values.chunk(2)
        return (above - below) / 2


def displacement(lengths: Tensor, noise: float, scale: float = 1.0) -> Tensor:
    """Bound how far the expectation map moves when the input moves.

    Args:
        lengths: `(N,)` float64, L2 lengths of the inputs' moves.
        noise: Standard deviation of the noise.
        scale: Largest stretch of what is done to the map: for summed channels, the root of their
            number.

    Returns:
        `(N,)` L2 lengths of the map's moves, rounded up.
    """
    linear = lengths / noise * (_SLOPE / noise)
    return linear.clamp_max(_REACH / noise) * (scale * _OUTWARD)


def _lengths(eps: float | Tensor, block: Batch, norm: str) -> Tensor:
    """Return the L2 radius of a ball that holds the ball of each sample, `(n,)` on the host."""
    if isinstance(eps, Tensor):
        if max(block.positions) >= len(eps):
            raise InputError(
                f"eps must be one number or name one per sample, but {len(eps)} came for more"
            )
        radii = eps.detach().cpu()[torch.tensor(block.positions)].double()
    else:
        radii = torch.full((len(block),), float(eps), dtype=torch.float64)
    return radii * math.sqrt(block.inputs[0].numel()) if norm == "linf" else radii


def _radius(moments: Tensor, copies: int, cutoff: float, confidence: float) -> Tensor:
    """Return how far means of terms are from what they estimate, united over the elements.

    Args:
        moments: `(2, n, ...)` sums of the terms and of their squares, each at most half the cutoff.
        copies: Number of terms.
        cutoff: Where the noise was cut off.
        confidence: For all elements of a sample at once.
    """
    sums, squares = moments
    rounded = 4 * rounding.gamma(copies, moments.dtype)
    variance = (squares - sums.square() / copies).clamp_min(0)
    variance = (variance + rounded * squares) / (copies - 1)
    # Each element has two sides, and each side the two events of the inequality.
    share = math.log(4 * sums[0].numel() / (1 - confidence))
    tail = math.erfc(cutoff / math.sqrt(2)) / 2
    cut = math.exp(-(cutoff**2) / 2) / math.sqrt(2 * math.pi) - cutoff * tail
    fixed = 7 * cutoff * share / (3 * (copies - 1)) + max(cut, 0.0) + rounded * cutoff
    deviation: Tensor = (variance * (2 * share / copies)).sqrt()
    return deviation + fixed


def _refuse_not_finite(estimate: Tensor, block: Batch) -> None:
    finite = torch.isfinite(estimate).flatten(1).all(1)
    if not bool(finite.all()):
        first = block.ids[int((~finite).nonzero()[0, 0])]
        raise ModelError(
            "the module must give finite logits for every input, but those of a noisy copy of "
            f"sample {first} are not finite"
        )
