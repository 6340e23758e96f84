"""Integrated gradients from references of a distribution, one random point per reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.attributions.lines import AlongLines, Lines
from pytest_triguard.engine import draws
from pytest_triguard.engine.baselines import check_finite
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.engine.second_order import GradientMean
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import Facts
from pytest_triguard.validation import describe, one_of, whole

_DRAWN = 100


@dataclass(frozen=True, kw_only=True)
class ExpectedGradients(AlongLines):
    """Mean of the displacement from a reference times the gradient at a random point between.

    A reference that is the sample itself says nothing and is left out of the mean; where only valid
    contributions are kept, it counts as a valid one of 0.

    Args:
        references: `(R, C, H, W)`, each used once for every sample, such as training images; or
            `"uniform"`, drawn from the valid range.
        copies: Number of references drawn for each sample, with replacement from a tensor, or
            None for each of the tensor once, or for 100 uniform ones.

    References:
        Erion et al. 2021, "Improving performance of deep learning models with axiomatic
        attribution priors and expected gradients", Nature Machine Intelligence 3, equation 2.
    """

    name: ClassVar[str] = "expected_gradients"
    facts: ClassVar[Facts] = Facts(sign="signed", axioms=("complete on average", "linear"))

    references: str | Tensor = "uniform"
    copies: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_references(self.references)
        if self.copies is not None:
            whole("copies", self.copies, low=1)

    @property
    def passes_per_sample(self) -> int:
        """One per reference."""
        if self.copies is not None:
            return self.copies
        return len(self.references) if isinstance(self.references, Tensor) else _DRAWN

    def explain(self, model: Model, batch: Batch) -> Tensor:
        """Return the maps, `(n, C, H, W)`."""
        maps = super().explain(model, batch)
        if isinstance(self.references, str) or self.keep != "all":
            return maps
        return maps * per_row(self._left_out(self.references, batch), maps)

    def gradient_mean(self, model: Model, batch: Batch) -> GradientMean:
        """Return the mean of the contributions, by the divisor of each sample.

        Raises:
            InputError: If only valid contributions are kept.
        """
        mean = super().gradient_mean(model, batch)
        if isinstance(self.references, str):
            return mean
        divisor = self._left_out(self.references, batch)
        return replace(
            mean,
            term=lambda values, copies: values * per_row(copies.context[-1], values),
            context=(*mean.context, divisor),
        )

    def _left_out(self, references: Tensor, batch: Batch) -> Tensor:
        """Return what leaving each sample out of its own references multiplies its map by."""
        # A sample contributes nothing as its own reference, so only the divisor has to change.
        own = self._own(_given(references, batch), batch)
        others = (self.passes_per_sample - own).clamp_min(1).to(batch.inputs.dtype)
        return self.passes_per_sample / others

    def lines(self, model: Model, batch: Batch) -> Lines:
        """Return the lines from the references."""
        if isinstance(self.references, Tensor):
            given = _given(self.references, batch)

            def start(copies: Copies) -> Tensor:
                return given.index_select(0, self._chosen(copies.keys, copies.numbers, len(given)))
        else:
            low, high = model.bounds(batch.inputs.dtype)

            def start(copies: Copies) -> Tensor:
                keys = self._keys("reference", copies.keys, copies.numbers)
                shape, dtype = copies.inputs.shape[1:], copies.inputs.dtype
                return low + (high - low) * draws.uniform(keys, shape, dtype=dtype)

        return Lines(self.passes_per_sample, self._places, [1.0], start)

    def _places(self, copies: Copies) -> Tensor:
        keys = self._keys("place", copies.keys, copies.numbers)
        return draws.uniform(keys, (), dtype=copies.inputs.dtype)

    def _keys(self, kind: str, keys: Tensor, numbers: Tensor) -> Tensor:
        return draws.row_keys(
            keys, seed=self.drawn_seed, method=f"{self.name}/{kind}", copy=numbers
        )

    def _chosen(self, keys: Tensor, numbers: Tensor, count: int) -> Tensor:
        """Return which of the given references each copy starts from, `(m,)` int64."""
        if self.copies is None:
            return numbers
        share = draws.uniform(self._keys("reference", keys, numbers), (), dtype=torch.float64)
        return (share * count).to(torch.int64)

    def _own(self, given: Tensor, batch: Batch) -> Tensor:
        """Return for how many copies of each sample the reference is the sample itself."""
        same = torch.stack([(batch.inputs == each).flatten(1).all(1) for each in given], 1)
        if self.copies is None:
            return same.sum(1)
        numbers = torch.arange(self.copies, device=same.device).repeat(len(same))
        keys = batch.keys.repeat_interleave(self.copies)
        chosen = self._chosen(keys, numbers, len(given)).view(-1, self.copies)
        return same.gather(1, chosen).sum(1)


def _check_references(references: object) -> None:
    if isinstance(references, str):
        one_of("references", references, ("uniform",))
    elif not isinstance(references, Tensor):
        raise InputTypeError(
            f"references must be a tensor (R, C, H, W) or 'uniform', but {describe(references)} "
            "came"
        )
    elif references.ndim != 4 or not len(references) or not references.dtype.is_floating_point:
        raise InputError(
            "references must be a floating tensor (R, C, H, W) of at least one reference, but "
            f"{describe(references)} came"
        )
    else:
        check_finite("references", references)


def _given(references: Tensor, batch: Batch) -> Tensor:
    """Return the references beside the samples."""
    inputs = batch.inputs
    if references.shape[1:] != inputs.shape[1:]:
        raise InputError(
            f"references must have shape (R, {', '.join(map(str, inputs.shape[1:]))}) to go with "
            f"the inputs, but {describe(references)} came"
        )
    return references.to(inputs.device, inputs.dtype)
