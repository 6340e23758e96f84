"""The data of a check: tensors, a Dataset or a DataLoader, read batch by batch and checked."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.engine import draws
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.sources import READ_ROWS, source_of
from pytest_triguard.validation import describe, whole

BOUNDS_TOLERANCE = 1e-6
_NONE = "inputs must hold at least one sample, but none came"


class Samples:
    """Samples that can be read more than once, a batch at a time, and never held as a whole.

    Args:
        inputs: `(N, C, H, W)` tensor, or a Dataset or DataLoader of `input`, `(input, label)` or
            `(input, label, id)`.
        labels: `(N,)` integer tensor; only with a tensor of inputs.
        ids: One unique id per sample; only with a tensor of inputs.
        targets: One class for all samples, or `(N,)` integer tensor, or None.
        bounds: Valid range per channel, as a classifier has it.
        dtype: Floating dtype the classifier takes, or None for any.
        samples: Size of the seeded random subset to read, or None for everything.
        seed: Seed of the subset.
        hashed: Whether what is read is hashed, for `fingerprint`.

    Attributes:
        count: Number of samples, or None where only reading tells.
        total: Number of samples before the subset is taken; positions count in it.
        bounds: Valid range per channel.
        num_classes: Number of classes the labels are checked against, or None before it is known.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If shapes, values or labels are refused, or a loader shuffles.
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any = None,
        *,
        ids: Sequence[Hashable] | None = None,
        targets: Any = None,
        bounds: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,)),
        dtype: torch.dtype | None = None,
        samples: int | None = None,
        seed: int = 0,
        hashed: bool = True,
    ) -> None:
        self.num_classes: int | None = None
        self._hashed = hashed
        self.bounds = bounds
        self._dtype = dtype
        self._digest: str | None = None
        self._place: int | None = None
        self._source = source_of(inputs, labels, ids)
        self.count = self.total = self._source.count
        if self.count == 0:
            raise InputError(_NONE)
        self._targets = _targets(targets, self.total)
        if samples is not None:
            self._choose(whole("samples", samples, low=1), seed)

    def _choose(self, samples: int, seed: int) -> None:
        if self.count is None:
            raise InputError(
                "samples needs data of known length, but the loader does not tell how long it is"
            )
        if samples < self.count:
            keys = draws.row_keys(torch.arange(self.count), seed=seed, method="samples")
            chosen = keys.argsort()[:samples].sort().values.tolist()
            self._source = self._source.subset(chosen)
            self.count = samples

    def first(self) -> Batch:
        """Return the first few samples, checked.

        Raises:
            InputError: If there are none.
        """
        for batch in self._source.read():
            return self._checked(batch).rows(slice(READ_ROWS))
        raise InputError(_NONE)

    def alone(self, place: int) -> Samples:
        """Return one of the samples, by its place among those that are read, as data of its own.

        Its position, id, label and target stay what they are.
        """
        one = copy.copy(self)
        one._place, one.count = place, 1
        return one

    def __iter__(self) -> Iterator[Batch]:
        digest = _Digest()
        seen: set[Hashable] = set()
        read = 0
        kind: tuple[object, ...] = ()
        for batch in _all_or_one(self._source.read(), self._place):
            checked = self._checked(batch)
            if self._source.named:
                _refuse_repeated(checked.ids, seen)
            kind = _one_kind(checked, kind)
            if self._hashed:
                digest.add(checked)
            read += len(checked)
            yield checked
        if not read:
            raise InputError(_NONE)
        self._digest = digest.hexdigest() if self._hashed else None

    @property
    def fingerprint(self) -> str:
        """Hash of everything that was read; empty as long as nothing was read to its end.

        Always empty where nothing is hashed.
        """
        return self._digest or ""

    def _checked(self, batch: Batch) -> Batch:
        _check_inputs(batch.inputs, self._dtype)
        _check_range(batch, self.bounds)
        labels = batch.labels
        if labels is not None:
            labels = _classes("labels", labels, len(batch), self.num_classes)
        targets = self._targets
        if isinstance(targets, Tensor):
            targets = targets[torch.tensor(batch.positions, device=targets.device)]
        elif targets is not None:
            targets = torch.full((len(batch),), targets, dtype=torch.int64)
        if targets is not None:
            targets = _classes("targets", targets, len(batch), self.num_classes)
        return replace(batch, labels=labels, targets=targets)


def _all_or_one(batches: Iterator[Batch], place: int | None) -> Iterator[Batch]:
    """Yield all batches, or where a place is given the one sample that is read there."""
    before = 0
    for batch in batches:
        if place is None:
            yield batch
        elif place < before + len(batch):
            yield batch.rows(slice(place - before, place - before + 1))
            return
        before += len(batch)


def _one_kind(batch: Batch, before: tuple[object, ...]) -> tuple[object, ...]:
    """Return what all batches have in common; `before` is that of the one before, or empty."""
    kind = (tuple(batch.inputs.shape[1:]), batch.inputs.dtype, batch.labels is None)
    if before and kind != before:
        raise InputError(
            f"inputs must be alike in all batches, but {_told(before)} and then {_told(kind)} came"
        )
    return kind


def _told(kind: tuple[object, ...]) -> str:
    shape, dtype, unlabelled = kind
    return f"shape {shape} of {dtype} {'without' if unlabelled else 'with'} labels"


def _check_inputs(inputs: Tensor, dtype: torch.dtype | None) -> None:
    if not all(inputs.shape[1:]):
        raise InputError(f"inputs must have shape (N, C, H, W), but {describe(inputs)} came")
    if not inputs.dtype.is_floating_point:
        raise InputTypeError(
            f"inputs must be floating, but {inputs.dtype} came; for bytes use inputs.float() / 255"
        )
    if dtype is not None and inputs.dtype != dtype:
        raise InputTypeError(
            f"inputs must be {dtype} like the classifier's parameters, but {inputs.dtype} came"
        )


def _check_range(batch: Batch, bounds: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    inputs = batch.inputs
    channels = inputs.shape[1]
    if len(bounds[0]) not in (1, channels):
        raise InputError(
            f"inputs must have the {len(bounds[0])} channels the bounds name, but "
            f"{describe(inputs)} came"
        )
    low, high = inputs.amin((2, 3)).cpu(), inputs.amax((2, 3)).cpu()
    finite = (torch.isfinite(low) & torch.isfinite(high)).all(1)
    if not finite.all():
        place = int((~finite).nonzero()[0, 0])
        raise InputError(
            f"inputs must be finite, but sample {batch.ids[place]} holds NaN or infinity"
        )
    floor, ceiling = (torch.tensor(each, dtype=torch.float64, device="cpu") for each in bounds)
    outside = ((low < floor - BOUNDS_TOLERANCE) | (high > ceiling + BOUNDS_TOLERANCE)).any(1)
    if outside.any():
        place = int(outside.nonzero()[0, 0])
        raise InputError(
            f"inputs must lie inside the classifier's bounds {_shown(bounds)}, but sample "
            f"{batch.ids[place]} reaches from {float(low[place].min()):g} to "
            f"{float(high[place].max()):g}; if the data are normalised, drop Normalize from them "
            "and give mean and std to the Classifier"
        )


def _shown(bounds: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
    low, high = min(bounds[0]), max(bounds[1])
    return f"[{low:g}, {high:g}]"


def _classes(name: str, classes: Tensor, rows: int, num_classes: int | None) -> Tensor:
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise InputTypeError(f"{name} must be integers, but {classes.dtype} came")
    if classes.shape != (rows,):
        raise InputError(f"{name} must have shape ({rows},), but {describe(classes)} came")
    classes = classes.to(torch.int64)  # torch cannot compare all widths
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        top = " on" if num_classes is None else f" to {num_classes - 1}"
        raise InputError(f"{name} must be classes from 0{top}, but {low if low < 0 else high} came")
    return classes


def _targets(targets: Any, count: int | None) -> int | Tensor | None:
    if targets is None:
        return None
    if not isinstance(targets, Tensor):
        return whole("targets", targets)
    if count is None or targets.shape != (count,):
        raise InputError(
            f"targets must be one class or a tensor of shape ({count or 'N'},), but "
            f"{describe(targets)} came"
        )
    return targets


def _refuse_repeated(ids: Iterable[Hashable], seen: set[Hashable]) -> None:
    for each in ids:
        if each in seen:
            raise InputError(f"ids must be unique, but {each!r} came twice")
        seen.add(each)


class _Digest:
    """Hash of samples in their order, the same however they are cut into batches."""

    def __init__(self) -> None:
        self._parts = {
            name: hashlib.blake2b(digest_size=16) for name in ("ids", "inputs", "labels", "targets")
        }
        self._kinds: dict[str, str] = {}

    def add(self, batch: Batch) -> None:
        self._parts["ids"].update("".join(f"{each!r}," for each in batch.ids).encode())
        for name in ("inputs", "labels", "targets"):
            tensor = getattr(batch, name)
            if tensor is not None:
                self._kinds[name] = f"{tensor.dtype} {tuple(tensor.shape[1:])}"
                values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                self._parts[name].update(values.numpy().data)

    def hexdigest(self) -> str:
        whole = [(name, self._kinds.get(name), part.digest()) for name, part in self._parts.items()]
        return hashlib.blake2b(repr(whole).encode(), digest_size=16).hexdigest()
