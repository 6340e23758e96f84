"""Gradients averaged over noisy copies of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pytest_triguard.attributions.base import Attribution, known_targets
from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import (
    MEAN,
    MEAN_SQUARE,
    Copies,
    Mean,
    expected_gradient,
)
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.second_order import GradientMean
from pytest_triguard.facts import Facts
from pytest_triguard.validation import number, whole


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(Attribution):
    """Mean gradient at `x + noise`, the noise normal and not clipped.

    Args:
        copies: Number of noisy copies.
        noise_level: Standard deviation of the noise, as a fraction of each sample's own range
            (largest minus smallest value).

    References:
        Smilkov et al. 2017, "SmoothGrad: Removing Noise by Adding Noise", arXiv:1706.03825,
        section 2.1.
    """

    name: ClassVar[str] = "smoothgrad"
    kind: ClassVar[str] = "gradient"
    facts: ClassVar[Facts] = Facts(sign="signed", axioms=("linear",), checked="Captum")
    reduction: ClassVar[Mean] = MEAN

    copies: int = 50
    noise_level: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("copies", self.copies, low=1)
        number("noise_level", self.noise_level, low=0)

    @property
    def passes_per_sample(self) -> int:
        """One per copy."""
        return self.copies

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the reduced gradients, `(n, C, H, W)`."""
        inputs = batch.inputs
        spread = noise_scale(inputs, self.noise_level)
        return expected_gradient(
            model,
            inputs,
            known_targets(batch),
            batch.keys,
            self.objective,
            copies=self.copies,
            make=self._noisy,
            context=(spread,),
            reduction=self.reduction,
        )

    def gradient_mean(self, model: Model, batch: Batch) -> GradientMean:
        """Return the mean over the noisy copies, whose noise depends on the sample's range."""
        return GradientMean(
            self.objective,
            self.copies,
            self._noisy,
            term=lambda gradients, _: gradients**self.reduction.power,
            context=(noise_scale(batch.inputs, self.noise_level),),
        )

    def _noisy(self, copies: Copies) -> Tensor:
        # Both methods draw the same noise, so that their maps differ by the reduction alone.
        return noisy(copies, copies.context[0], seed=self.drawn_seed, method="smoothgrad")


def noise_scale(inputs: Tensor, level: float) -> Tensor:
    """Return a fraction of the range of each sample, `(n,)`."""
    return (inputs.amax((1, 2, 3)) - inputs.amin((1, 2, 3))) * level


def noisy(copies: Copies, spread: Tensor, *, seed: int, method: str) -> Tensor:
    """Return copies with normal noise of a standard deviation `(m,)` added."""
    inputs = copies.inputs
    keys = draws.row_keys(copies.keys, seed=seed, method=method, copy=copies.numbers)
    noise = draws.normal(keys, inputs.shape[1:], dtype=inputs.dtype)
    return inputs + noise.mul_(per_row(spread, noise))


@dataclass(frozen=True, kw_only=True)
class SmoothGradSquared(SmoothGrad):
    """Mean of the squared gradients at `x + noise`; never negative.

    References:
        Hooker et al. 2019, "A Benchmark for Interpretability Methods in Deep Neural Networks",
        arXiv:1806.10758, section 4.1.
    """

    name: ClassVar[str] = "smoothgrad_squared"
    facts: ClassVar[Facts] = Facts(sign="never negative", checked="Captum")
    reduction: ClassVar[Mean] = MEAN_SQUARE
