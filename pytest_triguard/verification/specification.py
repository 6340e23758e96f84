"""What is to be proven of the logits: that some rows, applied to them, stay above zero."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import describe, whole


class Rows(Protocol):
    """The rows of a block of samples: a matrix `(S, K)` for each, never built as a whole."""

    @property
    def count(self) -> int:
        """Number of rows, S."""

    @property
    def size(self) -> float:
        """Largest sum of magnitudes in a row."""

    @property
    def spare(self) -> int:
        """Number of rows that need not be above zero, whichever they are at a point."""

    def times(self, values: Tensor) -> Tensor:
        """Return the rows times values `(n, K)`, as `(n, S)`."""

    def magnitudes_times(self, values: Tensor) -> Tensor:
        """Return the magnitudes of the rows times values `(n, K)`, as `(n, S)`."""

    def lowest(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return what the rows are at least for logits between bounds `(n, K)`, as `(n, S)`."""

    def merged(self, weight: Tensor, part: slice) -> Tensor:
        """Return some rows times weights `(K, D)`, as `(n or 1, rows, D)`."""

    def least(self, values: Tensor) -> Tensor:
        """Return what values `(n, S)` of the rows say of all that have to hold, `(n,)`."""

    @property
    def height(self) -> int:
        """Number of rows that count: those of `matrix`."""

    def matrix(self, weight: Tensor, part: slice) -> Tensor:
        """Return some of the rows that count times weights `(K, D)`, as `(n or 1, rows, D)`."""

    def matrix_sizes(self, values: Tensor, part: slice) -> Tensor:
        """Return the magnitudes of those rows times values `(n, K)`, as `(n, rows)`."""

    def violated(self, logits: Tensor) -> Tensor:
        """Return whether the module's own logits `(n, K)` break the property, `(n,)` bool."""


def joint(values: Tensor, spare: int) -> Tensor:
    """Return the least of values `(n, S)` after the `spare` smallest are left out, `(n,)`.

    Of lower bounds of rows it is a bound that all rows but `spare` of them are above together. What
    is NaN counts as smallest: it holds nothing, and spares nothing else.
    """
    if not spare:
        return values.amin(1)
    return torch.where(values.isnan(), -torch.inf, values).kthvalue(spare + 1, dim=1).values


@dataclass(frozen=True)
class TopK:
    """That the label stays among the classes with the k largest logits.

    That is: everywhere in the region, at most k - 1 other logits exceed the label's. It is proven
    by K - k differences to other classes that are positive throughout the region, the same
    classes everywhere; so a proof may be missed where it is now this class and now that one that
    passes the label. It is broken by an input at which k or more other logits exceed the label's.

    Args:
        k: From 1, which is as without a specification, to the number of classes minus 1.

    Raises:
        InputTypeError: If k is not a whole number.
        InputError: If k is below 1.
    """

    k: int

    def __post_init__(self) -> None:
        whole("k", self.k, low=1)


@dataclass(frozen=True)
class Differences:
    """`f_y - f_j` for the label y and every other class j, or for one target each.

    Attributes:
        labels: `(n,)` int64.
        targets: `(n,)` int64, or None for every other class.
        classes: Number of logits.
        top: Among how many of the largest logits the label's is to be; 1 with targets.
    """

    labels: Tensor
    targets: Tensor | None
    classes: int
    top: int = 1

    @property
    def count(self) -> int:
        """Number of rows, that of the label itself included."""
        return self.classes if self.targets is None else 1

    @property
    def size(self) -> float:
        """Two ones in a row."""
        return 2.0

    @property
    def spare(self) -> int:
        """Number of other classes that may pass the label."""
        return self.top - 1

    def times(self, values: Tensor) -> Tensor:
        """Return the rows times values `(n, K)`, as `(n, S)`."""
        return self._labelled(values) - self._others(values)

    def magnitudes_times(self, values: Tensor) -> Tensor:
        """Return the magnitudes of the rows times values `(n, K)`, as `(n, S)`."""
        return self._labelled(values) + self._others(values)

    def lowest(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return what the rows are at least for logits between bounds `(n, K)`, as `(n, S)`."""
        return self._labelled(lower) - self._others(upper)

    def merged(self, weight: Tensor, part: slice) -> Tensor:
        """Return some rows times weights `(K, D)`, as `(n, rows, D)`."""
        own = weight.index_select(0, self.labels).unsqueeze(1)
        if self.targets is not None:
            return own - weight.index_select(0, self.targets).unsqueeze(1)
        return own - weight[part].unsqueeze(0)

    def least(self, values: Tensor) -> Tensor:
        """Return what values `(n, S)` of the rows say of all that have to hold, `(n,)`."""
        if self.targets is None:
            values = values.scatter(1, self.labels.unsqueeze(1), torch.inf)
        return joint(values, self.spare)

    @property
    def height(self) -> int:
        """Number of rows, without that of the label itself."""
        return self.classes - 1 if self.targets is None else 1

    def matrix(self, weight: Tensor, part: slice) -> Tensor:
        """Return some rows of classes other than the label times weights, `(n, rows, D)`."""
        if self.targets is not None:
            return self.merged(weight, part)
        return weight[self.labels.unsqueeze(1)] - weight[self._unlike[:, part]]

    def matrix_sizes(self, values: Tensor, part: slice) -> Tensor:
        """Return the magnitudes of those rows times values `(n, K)`, as `(n, rows)`."""
        if self.targets is not None:
            return self.magnitudes_times(values)
        return self._labelled(values) + values.gather(1, self._unlike[:, part])

    def violated(self, logits: Tensor) -> Tensor:
        """Return whether another class is predicted, or the target is not below the label.

        Where the label is to be among the top k, whether k other logits exceed its own.
        """
        if self.spare:
            return (logits > self._labelled(logits)).sum(1) > self.spare
        if self.targets is None:
            return logits.argmax(1) != self.labels
        return (self.times(logits) <= 0).any(1)

    @cached_property
    def _unlike(self) -> Tensor:
        """The classes other than the label, `(n, K - 1)`."""
        others = torch.arange(self.classes - 1, device=self.labels.device)
        return others + (others >= self.labels.unsqueeze(1))

    def _labelled(self, values: Tensor) -> Tensor:
        return values.gather(1, self.labels.unsqueeze(1))

    def _others(self, values: Tensor) -> Tensor:
        return values if self.targets is None else values.gather(1, self.targets.unsqueeze(1))


@dataclass(frozen=True)
class Matrix:
    """The same rows on the logits for every sample, each to stay above zero.

    Attributes:
        rows: `(S, K)` in the dtype of the bounds.
        size: Largest sum of magnitudes in a row.
    """

    rows: Tensor
    size: float
    spare: ClassVar[int] = 0

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def times(self, values: Tensor) -> Tensor:
        """Return the rows times values `(n, K)`, as `(n, S)`."""
        return values @ self.rows.T

    def magnitudes_times(self, values: Tensor) -> Tensor:
        """Return the magnitudes of the rows times values `(n, K)`, as `(n, S)`."""
        return values @ self.rows.abs().T

    def lowest(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return what the rows are at least for logits between bounds `(n, K)`, as `(n, S)`."""
        return lower @ self.rows.clamp_min(0).T + upper @ self.rows.clamp_max(0).T

    def merged(self, weight: Tensor, part: slice) -> Tensor:
        """Return some rows times weights `(K, D)`, as `(1, rows, D)`."""
        return (self.rows[part] @ weight).unsqueeze(0)

    def least(self, values: Tensor) -> Tensor:
        """Return the smallest of values `(n, S)`, `(n,)`."""
        return values.amin(1)

    @property
    def height(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def matrix(self, weight: Tensor, part: slice) -> Tensor:
        """Return some rows times weights `(K, D)`, as `(1, rows, D)`."""
        return self.merged(weight, part)

    def matrix_sizes(self, values: Tensor, part: slice) -> Tensor:
        """Return the magnitudes of those rows times values `(n, K)`, as `(n, rows)`."""
        return values @ self.rows[part].abs().T

    def violated(self, logits: Tensor) -> Tensor:
        """Return whether a row is not above zero."""
        return (self.times(logits.to(self.rows.dtype)) <= 0).any(1)


@dataclass(frozen=True)
class Specification:
    """What the user asked to be proven, before it is known of which samples.

    Attributes:
        targets: One class for all samples, one each `(N,)`, or None.
        rows: `(S, K)` rows on the logits, or None.
        top: Among how many of the largest logits the label's is to be; 1 with targets or rows.
    """

    targets: int | Tensor | None = None
    rows: Tensor | None = None
    top: int = 1

    @property
    def needs_labels(self) -> bool:
        """Whether samples without labels are an error."""
        return self.rows is None

    def fits(self, dtype: torch.dtype) -> bool:
        """Return whether rows on the logits are the same numbers in a dtype."""
        return self.rows is None or bool((self.rows.to(dtype).double() == self.rows.double()).all())

    def of(self, block: Batch, classes: int, dtype: torch.dtype) -> Rows:
        """Return the rows of a block of samples on the model's device.

        Args:
            block: The samples.
            classes: Number of logits.
            dtype: Dtype of the bounds.

        Raises:
            InputError: If the specification does not go with samples or classifier.
        """
        if self.rows is not None:
            if self.rows.shape[1] != classes:
                raise InputError(
                    f"specification must have {classes} columns, one per class, but "
                    f"{describe(self.rows)} came"
                )
            rows = self.rows.detach().to(dtype).to(block.inputs.device)
            return Matrix(rows, float(self.rows.abs().sum(1).max()))
        if block.labels is None:
            raise InputError("labels are missing: give them beside the inputs, or in the loader")
        return Differences(block.labels, block.targets, classes, self.top)

    def targeted(self, batch: Batch) -> Tensor | None:
        """Return the target of each sample in a batch, `(n,)`, where the batch is; or None.

        Raises:
            InputError: If there is not one target per sample, or a target is the label.
        """
        if self.targets is None:
            return None
        if isinstance(self.targets, Tensor):
            if max(batch.positions) >= len(self.targets):
                raise InputError(
                    f"specification must name one target per sample, but {len(self.targets)} came "
                    f"for at least {max(batch.positions) + 1} samples"
                )
            places = torch.tensor(batch.positions).to(self.targets.device)
            targets = self.targets.index_select(0, places).to(torch.int64).to(batch.inputs.device)
        else:
            targets = torch.full_like(batch.keys, self.targets).to(batch.inputs.device)
        if batch.labels is not None and bool((targets == batch.labels).any()):
            first = int((targets == batch.labels).nonzero()[0, 0])
            raise InputError(
                f"specification must name a target other than the label, but for sample "
                f"{batch.ids[first]} it names the label {int(batch.labels[first])}"
            )
        return targets


def parse(specification: Any) -> Specification:
    """Return the specification behind an argument.

    Args:
        specification: None for every difference of the label's logit to another; a class, or
            `(N,)` integers, for the difference to that target's; `(S, K)` numbers for rows on the
            logits, each to stay above zero; a `TopK` for a label among the k largest.

    Raises:
        InputTypeError: If it is none of these.
        InputError: If a value is refused.
    """
    if specification is None or isinstance(specification, Specification):
        return specification or Specification()
    if isinstance(specification, TopK):
        return Specification(top=specification.k)
    if not isinstance(specification, Tensor):
        return Specification(targets=whole("specification", specification))
    numbers = not specification.dtype.is_complex and specification.dtype != torch.bool
    if specification.ndim == 2 and specification.numel() and numbers:
        if not bool(torch.isfinite(specification).all()):
            raise InputError("specification must be finite, but it holds NaN or infinity")
        return Specification(rows=specification)
    if specification.ndim != 1 or specification.dtype.is_floating_point or not numbers:
        raise InputTypeError(
            "specification must be None, a class, integers (N,), rows (S, K) on the logits, or a "
            f"TopK, but {describe(specification)} came"
        )
    if not specification.numel() or int(specification.min()) < 0:
        raise InputError("specification must name classes from 0, but a negative or empty one came")
    return Specification(targets=specification)


def check_classes(specification: Specification, classes: int) -> None:
    """Refuse targets beyond the classes of the classifier, and a top k of all of them.

    Raises:
        InputError: If that is asked for.
    """
    if specification.top >= classes:
        raise InputError(
            f"specification must name a top k below the {classes} classes, but "
            f"TopK({specification.top}) came"
        )
    if specification.targets is None:
        return
    largest = int(torch.as_tensor(specification.targets).max())
    if largest >= classes:
        raise InputError(
            f"specification must name classes from 0 to {classes - 1}, but {largest} came"
        )
