"""How well sums of attribution follow what their pixels do to the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.base import known_logits, known_targets, with_logits
from pytest_triguard.engine import draws
from pytest_triguard.engine.baselines import Baseline, baseline_inputs, check_baseline
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.metrics.base import scaled
from pytest_triguard.metrics.model_metric import OutputMetric, over_copies
from pytest_triguard.metrics.removal import ranks
from pytest_triguard.metrics.topk_intersection import check_k, top_count
from pytest_triguard.validation import whole


@dataclass(frozen=True, kw_only=True)
class SensitivityN(OutputMetric):
    """Correlation of summed attribution with the change of output, over random sets of pixels.

    For each of many random sets of `n` pixels, the sum of their attribution is held against
    `f(x) - f(x without them)`; the number is Pearson's correlation of the two. 1 for `w * (x - b)`
    of a linear network with weights `w` and the same baseline `b`, which integrated gradients give;
    that a map is complete is not enough. Where either does not vary, there is no correlation:
    undefined.

    Args:
        n: Size of the sets: a whole number counts pixels, a fraction in (0, 1] is a share.
        subsets: Number of random sets, at least 2.
        baseline: What stands in for removed pixels.

    References:
        Ancona et al. 2018, "Towards Better Understanding of Gradient-based Attribution Methods
        for Deep Neural Networks", arXiv:1711.06104, section 4.
    """

    name: ClassVar[str] = "sensitivity_n"
    facts: ClassVar[Facts] = Facts(cost=f"{PASSES} forward", sign="higher is better")

    n: float = 0.1
    subsets: int = 100
    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.n, "n")
        whole("subsets", self.subsets, low=2)
        check_baseline("baseline", self.baseline)

    @property
    def title(self) -> str:
        """What reports call the number."""
        return f"sensitivity-n of the {self.output}"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "sums or changes that do not vary"

    @property
    def passes_per_sample(self) -> int:
        """One per set, and one for the sample."""
        return self.subsets + 1

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(-1, 1)`."""
        return -1.0, 1.0

    def measure(self, model: Model, batch: Batch, maps: Tensor) -> Tensor:
        """Return the correlation of each map, `(n,)`.

        Raises:
            InputError: If `n` is larger than the map.
        """
        batch = with_logits(model, batch)
        inputs, targets = batch.inputs, known_targets(batch)
        pixels = scaled(maps).sum(1).flatten(1)
        size = top_count(self.n, pixels.shape[1], "n")
        clean = self.objective(known_logits(batch), targets)
        start = baseline_inputs(self.baseline, model, batch, seed=self.drawn_seed)

        def evaluate(samples: Tensor, copies: Tensor) -> Tensor:
            keys = draws.row_keys(
                batch.keys[samples], seed=self.drawn_seed, method=self.name, copy=copies
            )
            drawn = draws.uniform(keys, pixels.shape[1:], dtype=torch.float32)
            chosen = ranks(drawn) < size
            shape = (-1, 1, *inputs.shape[2:])
            points = torch.where(chosen.view(shape), start[samples], inputs[samples])
            change = clean[samples] - self.objective(model.logits(points), targets[samples])
            return torch.stack([(pixels[samples] * chosen).sum(1), change], 1)

        return correlation(*over_copies(model, batch, self.subsets, evaluate).unbind(2))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of each pair of rows.

    Args:
        first: `(N, M)` floating.
        second: Likewise.

    Returns:
        `(N,)`, NaN where a row does not vary beyond rounding.
    """
    centred = [each - each.mean(1, keepdim=True) for each in (first, second)]
    lengths = [torch.linalg.vector_norm(each, dim=1) for each in centred]
    value: Tensor = (centred[0] * centred[1]).sum(1) / (lengths[0] * lengths[1])
    for values, length in zip((first, second), lengths, strict=True):
        rounding = torch.finfo(values.dtype).eps * torch.linalg.vector_norm(values, dim=1)
        value = value.masked_fill(~(length > 4 * rounding), torch.nan)
    return value.clamp(-1.0, 1.0)
