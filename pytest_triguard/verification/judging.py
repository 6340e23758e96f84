"""From a bound to a verdict: what has to hold before a sample is called proven."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pytest_triguard.engine.samples import Batch
from pytest_triguard.verification.faithful import outside
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import Margins
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.result import SampleVerdict, Status
from pytest_triguard.verification.specification import Rows

SLACK: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float64: 1e-13}
"""What a margin has to exceed for a proof in real arithmetic, by the module's dtype and relative to
the largest magnitude of a logit (at least 1): the module that runs rounds, the bound is on the one
that does not."""

OPEN, PROVEN, FALSIFIED, NOT_FINITE, STRAY, UNSUPPORTED = range(6)
"""What is found about a sample, as numbers that a device can work with."""

_STATUS: dict[int, Status] = {
    OPEN: "unknown",
    PROVEN: "proven",
    FALSIFIED: "falsified",
    NOT_FINITE: "unknown",
    STRAY: "unsupported",
    UNSUPPORTED: "unsupported",
}
_REASONS = {
    OPEN: "the bound is not above the slack",
    NOT_FINITE: "the bound is not finite",
    STRAY: "the module's own logits are outside their bounds: the graph is not the module",
}


def judge(
    network: Network, found: Margins, rows: Rows, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return code, margin and slack of each sample, `(n,)` each; not finite comes first.

    Args:
        network: The captured module.
        found: What a bound found.
        rows: What is to be proven.
        logits: `(n, K)` the module's own logits of the samples.
    """
    slack = slack_of(network, found.logits, rows)
    finite = torch.isfinite(found.margin) & torch.isfinite(slack)
    stray = outside(network, found.logits, logits)
    code = torch.where(found.margin > slack, PROVEN, OPEN)
    code = torch.where(stray, STRAY, torch.where(finite, code, NOT_FINITE))
    known = finite & ~stray
    return (
        code.to(network.dtype),
        torch.where(known, found.margin, -torch.inf),
        torch.where(known, slack, torch.inf),
    )


def slack_of(network: Network, logits: Interval, rows: Rows) -> Tensor:
    """Return what a margin has to exceed for a proof, `(n,)`.

    Args:
        network: The captured module.
        logits: Bounds of the logits, `(n, K)`.
        rows: What is to be proven.
    """
    largest = logits.magnitude.amax(1)
    if network.unit is not None:  # what the module rounds is in the bounds
        return 0 * largest
    return largest.clamp_min(1) * (SLACK[network.given] * max(1.0, rows.size / 2))


def worth_retrying(
    network: Network, found: Margins, region: Interval, margin: Tensor, slack: Tensor
) -> Tensor:
    """Return whether bounds in float64 might prove what these do not, `(n,)` bool.

    They might where these are not finite, and where the margin is within reach of what was rounded:
    that is to the width of the logits as the network's share of rounding is to the width of the
    region. An estimate: it decides what is computed again, and proves nothing.

    Args:
        network: The captured module, in the dtype of the bounds.
        found: What a bound found.
        region: The inputs.
        margin: Of each sample, `(n,)`.
        slack: What it has to exceed.
    """
    size = region.magnitude.flatten(1).amax(1)
    radius = (region.upper - region.lower).flatten(1).amax(1) / 2
    width = (found.logits.upper - found.logits.lower).amax(1)
    reach = 2 * network.share * size / radius * width
    finite = torch.isfinite(margin) & torch.isfinite(slack)
    return ~finite | ((margin <= slack) & ~(margin + reach < slack))


def verdicts(
    block: Batch, columns: list[list[float]], bound: str, refusal: str
) -> list[SampleVerdict]:
    """Return what was found about samples that nothing was known about.

    Args:
        block: The samples.
        columns: Code, margin, slack and label of each.
        bound: Name of the bound, or nothing if there was none.
        refusal: Why the module cannot be bounded, if it cannot.
    """
    codes = [int(code) for code in columns[0]]
    broken = [place for place, code in enumerate(codes) if code == FALSIFIED]
    clean = dict(zip(broken, block.pick(broken).inputs if broken else (), strict=True))
    return [
        SampleVerdict(
            position=block.positions[place],
            id=block.ids[place],
            label=None if block.labels is None else int(columns[3][place]),
            status=_STATUS[code],
            stage={PROVEN: bound, FALSIFIED: "clean"}.get(code),
            reason=refusal if code == UNSUPPORTED else _REASONS.get(code) if bound else None,
            margin=columns[1][place],
            slack=columns[2][place],
            clean=clean.get(place),
            counterexample=clean.get(place),
        )
        for place, code in enumerate(codes)
    ]


def updated(
    before: SampleVerdict, code: int, margin: float, slack: float, bound: str
) -> SampleVerdict:
    """Return a verdict after one more bound; the larger of the margins stays."""
    better = replace(before, margin=margin, slack=slack) if margin > before.margin else before
    if code == PROVEN:
        return replace(better, status="proven", stage=bound, reason=None)
    if code == STRAY:
        return replace(before, status="unsupported", reason=_REASONS[STRAY])
    first, _, rest = (better.reason or "").partition("; ")
    told = rest if first in (_REASONS[OPEN], _REASONS[NOT_FINITE]) else better.reason
    now = _REASONS[OPEN if better.margin > -math.inf else NOT_FINITE]
    return replace(better, reason=f"{now}; {told}" if told else now)


def because(verdict: SampleVerdict, why: str) -> SampleVerdict:
    """Return the verdict with one more reason, where it is unknown."""
    if verdict.status != "unknown":
        return verdict
    return replace(verdict, reason=f"{verdict.reason}; {why}" if verdict.reason else why)
