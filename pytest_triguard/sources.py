"""Where samples come from: tensors, or a DataLoader; both are read batch by batch, in one order."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate
from torch.utils.data.sampler import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from pytest_triguard.engine import draws
from pytest_triguard.engine.chunking import out_of_memory
from pytest_triguard.engine.equality import same_values
from pytest_triguard.engine.samples import Batch, plain
from pytest_triguard.errors import InputError, InputTypeError, first_line
from pytest_triguard.validation import describe

READ_ROWS = 32
"""Samples of a Dataset that are read at once; what is read ahead of a chunk is held beside it."""
_VIEWED_ROWS = 256
"""Samples of a tensor that are read at once: they are not copied, and each read has its cost."""
_READ_BYTES = 64 * 2**20
_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Tensors:
    """Samples given as tensors; `named` tells whether they have ids of their own."""

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor | None,
        ids: Sequence[Hashable] | None,
        chosen: list[int] | None = None,
    ) -> None:
        self.inputs, self.labels, self.ids = inputs, labels, ids
        self.named = ids is not None
        self.positions = range(len(inputs)) if chosen is None else chosen
        self.count: int | None = len(self.positions)

    def subset(self, chosen: list[int]) -> Tensors:
        """Return the samples at some places."""
        return Tensors(self.inputs, self.labels, self.ids, chosen)

    def read(self) -> Iterator[Batch]:
        """Yield the samples batch by batch."""
        row_bytes = max(1, self.inputs[:1].numel() * self.inputs.element_size())
        most = _VIEWED_ROWS if isinstance(self.positions, range) else READ_ROWS
        size = max(1, min(most, _READ_BYTES // row_bytes))
        for start in range(0, len(self.positions), size):
            positions = self.positions[start : start + size]
            if isinstance(positions, range):
                place: slice | Tensor = slice(positions.start, positions.stop)
            else:
                place = torch.tensor(positions)
            ids = positions if self.ids is None else [self.ids[each] for each in positions]
            labels = None if self.labels is None else _at(self.labels, place)
            yield _batch(tuple(positions), tuple(ids), _at(self.inputs, place), labels)


class Loader:
    """Samples that a DataLoader brings; `named` tells whether they have ids of their own."""

    def __init__(self, loader: DataLoader[Any], chosen: list[int] | None = None) -> None:
        self.loader = loader
        self.chosen = chosen
        self.named = False
        self.count = _length(loader)

    def subset(self, chosen: list[int]) -> Loader:
        """Return the samples at some places of the dataset."""
        return Loader(_sequential(self.loader, chosen), chosen)

    def read(self) -> Iterator[Batch]:
        """Yield the samples batch by batch."""
        start = 0
        for place, item in enumerate(self.loader):
            inputs, labels, ids = _parts(item)
            if place == 0:
                self.named = ids is not None
                self._refuse_changing(inputs, labels, ids)
            if not len(inputs):  # a collate function may drop all it is given
                continue
            positions = range(start, start + len(inputs))
            start += len(inputs)
            named = positions if self.chosen is None else self.chosen[positions.start : start]
            yield _batch(tuple(named), tuple(named if ids is None else ids), inputs, labels)

    def _refuse_changing(
        self, inputs: Tensor, labels: Tensor | None, ids: list[Hashable] | None
    ) -> None:
        """Read the first batch again: shuffling and augmentation show in it."""
        again = next(iter(self.loader), None)
        if again is not None:
            again_inputs, again_labels, again_ids = _parts(again)
            same = same_values(inputs, again_inputs) and (
                labels is None or again_labels is None or same_values(labels, again_labels)
            )
            if same or again_ids != ids:
                return
        advice = "" if self.named else ", or let it bring (input, label, id)"
        raise InputError(
            "inputs must be a loader that gives the same samples every time, but its first "
            f"batch came out differently twice; switch shuffling and augmentation off{advice}"
        )


def source_of(inputs: Any, labels: Any, ids: Any) -> Tensors | Loader:
    """Return what reads the samples.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a shape is refused, a loader shuffles, or what it brings is given beside it.
    """
    if isinstance(inputs, Tensor):
        return _tensors(inputs, labels, ids)
    if not isinstance(inputs, DataLoader | Dataset):
        raise InputTypeError(
            f"inputs must be a tensor (N, C, H, W), a Dataset or a DataLoader, but "
            f"{describe(inputs)} came"
        )
    for name, value in (("labels", labels), ("ids", ids)):
        if value is not None:
            raise InputError(f"{name} must come from the loader itself, but were given beside it")
    if isinstance(inputs, DataLoader):
        return Loader(_in_order(inputs))
    if not isinstance(inputs, IterableDataset) and not hasattr(inputs, "__len__"):
        raise InputTypeError(
            "inputs must be a Dataset with a length or an IterableDataset, but a "
            f"{type(inputs).__name__} without __len__ came"
        )
    return Loader(DataLoader(inputs, batch_size=READ_ROWS, collate_fn=_collated))


def _collated(items: list[Any]) -> Any:
    """Return items of a Dataset as a batch."""
    try:
        return default_collate(items)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        if out_of_memory(error):
            raise
        reason = first_line(error)
        raise InputTypeError(
            "inputs must be a Dataset of (input, label) or (input, label, id) with tensors of one "
            f"shape as inputs, but its items make no batch: {reason}"
        ) from error


def _tensors(inputs: Tensor, labels: Any, ids: Any) -> Tensors:
    _require_images(inputs)
    if labels is not None and not isinstance(labels, Tensor):
        raise InputTypeError(f"labels must be a tensor (N,), but {describe(labels)} came")
    if labels is not None and labels.shape != inputs.shape[:1]:
        raise InputError(
            f"labels must have shape ({len(inputs)},) to go with the inputs, but "
            f"{describe(labels)} came"
        )
    return Tensors(inputs, labels, None if ids is None else _ids(ids, len(inputs)))


def _ids(ids: Any, count: int) -> list[Hashable]:
    """Return ids as a list of plain values."""
    if not isinstance(ids, Iterable) or isinstance(ids, str):
        raise InputTypeError(f"ids must be one id per sample, but {describe(ids)} came")
    listed: list[Any] = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    # An element of an array or a tensor is no plain value either.
    listed = [each.tolist() if hasattr(each, "tolist") else each for each in listed]
    if len(listed) != count:
        raise InputError(f"ids must name {count} samples, but {len(listed)} came")
    for each in listed:
        if not isinstance(each, Hashable):
            raise InputTypeError(f"ids must be numbers or text, but {describe(each)} came")
    return listed


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader that does not shuffle: of one with ids, in the order of its dataset.

    Then what belongs to samples by their places stays theirs, however often they are read.

    Raises:
        InputError: If the samples have no ids, or an order of their own.
    """
    samplers = (loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    sampler = next((each for each in samplers if isinstance(each, _RANDOM)), None)
    if sampler is None:
        return loader
    advice, first = "use shuffle=False", next(iter(loader), None)
    if first is None or _parts(first)[2] is None:
        advice += ", or let it bring (input, label, id)"
    elif isinstance(sampler, SubsetRandomSampler):
        return _sequential(loader, sorted(sampler.indices))
    elif isinstance(sampler, RandomSampler) and len({*sampler}) == len(sampler.data_source):
        return _sequential(loader, range(len(sampler.data_source)))
    raise InputError(
        "inputs must be a loader that does not shuffle, but its sampler is a "
        f"{type(sampler).__name__}; {advice}"
    )


def _sequential(loader: DataLoader[Any], chosen: Sequence[int]) -> DataLoader[Any]:
    """Return a loader of some samples of a dataset, in this order."""
    return DataLoader(
        Subset(loader.dataset, chosen),
        batch_size=loader.batch_size or 1,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        timeout=loader.timeout,
    )


def _length(loader: DataLoader[Any]) -> int | None:
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        return None
    in_order = isinstance(loader.sampler, SequentialSampler)
    one_by_one = type(loader.batch_sampler) is BatchSampler
    if loader.drop_last or not one_by_one or not in_order:
        return None
    return len(loader.dataset)


def _parts(item: Any) -> tuple[Tensor, Tensor | None, list[Hashable] | None]:
    parts = tuple(item) if isinstance(item, list | tuple) else (item,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], Tensor):
        raise InputTypeError(
            "inputs must be a loader of input, (input, label) or (input, label, id), but a batch "
            f"of {describe(item) if len(parts) == 1 else f'{len(parts)} parts'} came"
        )
    inputs, labels, ids = (*parts, None, None)[:3]
    _require_images(inputs)
    if labels is not None and not isinstance(labels, Tensor):
        raise InputTypeError(f"the loader's labels must be a tensor, but {describe(labels)} came")
    return inputs, labels, None if ids is None else _ids(ids, len(inputs))


def _at(values: Tensor, place: slice | Tensor) -> Tensor:
    return values[place if isinstance(place, slice) else place.to(values.device)]


def _batch(
    positions: tuple[int, ...], ids: tuple[Hashable, ...], inputs: Tensor, labels: Tensor | None
) -> Batch:
    keys = torch.tensor([draws.id_key(each) for each in ids], dtype=torch.int64, device="cpu")
    return Batch(
        positions, ids, keys, plain(inputs.detach()), None if labels is None else plain(labels)
    )


def _require_images(inputs: Tensor) -> None:
    if inputs.is_nested or inputs.layout is not torch.strided or inputs.is_meta:
        raise InputTypeError(
            "inputs must be a dense tensor with values, but a "
            f"{'nested' if inputs.is_nested else inputs.layout} one on {inputs.device} came"
        )
    if inputs.ndim != 4:
        raise InputError(f"inputs must have shape (N, C, H, W), but {describe(inputs)} came")
