"""A dataset in which some samples carry a backdoor's trigger and its target label."""

from __future__ import annotations

import operator
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pytest_triguard.backdoors.base import Trigger, per_channel
from pytest_triguard.data import BOUNDS_TOLERANCE
from pytest_triguard.engine import draws
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import describe, number, whole


class PoisonedDataset(Dataset[tuple[Any, ...]]):
    """A dataset of which a share carries a trigger and the trigger's target as its label.

    Only samples with another label than the target are eligible, so that every poisoned sample
    teaches the backdoor; `rate` is the share of those, not of the whole dataset. Which ones is a
    pure function of the seed and the sample ids: a higher rate poisons the same samples and more.
    Items come out as they are in the dataset, poisoned ones with a tensor label where theirs was
    one. The dataset is read once at the start, for its labels.

    Args:
        dataset: Items `(input, label)` or `(input, label, id)`: a floating tensor `(C, H, W)`, a
            class as an int or a tensor of one element, and the sample's id; without one, its index.
            Inputs lie inside the bounds of the trigger.
        trigger: The trigger.
        rate: Share of the eligible samples that are poisoned, from 0 to 1, exactly
            `round(rate * eligible)` of them.
        seed: Seed of the choice.

    Attributes:
        poisoned: Indexes of the poisoned samples, rising.
        eligible: Number of samples with another label than the target.

    Raises:
        InputTypeError: If an argument or an item has the wrong type.
        InputError: If a value is refused.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from pytest_triguard import backdoors
        >>> clean = TensorDataset(torch.zeros(8, 1, 6, 6), torch.arange(8) % 2)
        >>> trigger = backdoors.get("badnets", target=0)
        >>> len(backdoors.PoisonedDataset(clean, trigger, rate=0.5).poisoned)
        2
    """

    def __init__(self, dataset: Any, trigger: Trigger, *, rate: float, seed: int = 0) -> None:
        _check_dataset(dataset)
        if not isinstance(trigger, Trigger):
            raise InputTypeError(
                f"trigger must be a backdoor trigger, but {describe(trigger)} came"
            )
        rate = number("rate", rate, low=0, high=1)
        self.dataset = dataset
        self.trigger = trigger
        indexes, keys = self._eligible()
        self.eligible = len(indexes)
        self.poisoned = _chosen(indexes, keys, round(rate * self.eligible), whole("seed", seed))
        self._poisoned = frozenset(self.poisoned)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        index = operator.index(index)  # a tensor is not found among the poisoned ones
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"index must be below {len(self)}, but {index} came")
        inputs, label, *rest = _item(self.dataset[place], place)
        if place not in self._poisoned:
            return inputs, label, *rest
        target = self.trigger.target
        forced = torch.full_like(label, target) if isinstance(label, Tensor) else target
        return self.trigger(inputs.unsqueeze(0)).squeeze(0), forced, *rest

    def _eligible(self) -> tuple[list[int], list[int]]:
        """Return the indexes of the eligible samples, and the keys of their ids."""
        indexes: list[int] = []
        keys: list[int] = []
        for place in range(len(self)):
            inputs, label, *rest = _item(self.dataset[place], place)
            self._check_range(inputs, place)
            if int(label) != self.trigger.target:
                indexes.append(place)
                keys.append(_key(rest[0] if rest else place))
        return indexes, keys

    def _check_range(self, inputs: Tensor, place: int) -> None:
        inputs = self.trigger.checked(inputs.unsqueeze(0))
        low, high = (per_channel(end, inputs) for end in self.trigger.bounds)
        inside = (inputs >= low - BOUNDS_TOLERANCE) & (inputs <= high + BOUNDS_TOLERANCE)
        if not bool(inside.all()):
            raise InputError(
                f"dataset must give inputs inside the trigger's bounds {self.trigger.bounds!r}, "
                f"outside of which it clips them, but index {place} reaches from "
                f"{float(inputs.min()):g} to {float(inputs.max()):g}; "
                f"backdoors.get({self.trigger.name!r}, bounds=...) sets them"
            )


def _chosen(indexes: list[int], keys: list[int], count: int, seed: int) -> tuple[int, ...]:
    ids = torch.tensor(keys, dtype=torch.int64)
    order = draws.row_keys(ids, seed=seed, method="poisoning").argsort(stable=True)
    return tuple(sorted(indexes[place] for place in order[:count].tolist()))


def _check_dataset(dataset: Any) -> None:
    in_order = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not in_order or isinstance(dataset, IterableDataset | Tensor | str):
        raise InputTypeError(
            f"dataset must be a Dataset with a length and indexes, but {describe(dataset)} came"
        )
    if not len(dataset):
        raise InputError("dataset must hold at least one sample, but none came")


def _item(item: Any, place: int) -> tuple[Any, ...]:
    """Return an item as a tuple if it is one that can be poisoned."""
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise InputTypeError(
            f"dataset must give (input, label) or (input, label, id), but {describe(item)} came "
            f"at index {place}"
        )
    inputs, label = item[:2]
    if not isinstance(inputs, Tensor) or not inputs.dtype.is_floating_point:
        raise InputTypeError(
            f"dataset must give floating tensors, but {describe(inputs)} came at index {place}"
        )
    if inputs.ndim != 3:
        raise InputError(
            f"dataset must give inputs (C, H, W), but {describe(inputs)} came at index {place}"
        )
    if not _is_class(label):
        raise InputTypeError(
            f"dataset must give labels that are one integer, but {describe(label)} came at index "
            f"{place}"
        )
    if len(item) == 3 and isinstance(item[2], Tensor) and item[2].numel() != 1:
        raise InputError(
            f"dataset must give ids of one element, but {describe(item[2])} came at index {place}"
        )
    return tuple(item)


def _is_class(label: Any) -> bool:
    if not isinstance(label, Tensor):
        return isinstance(label, Integral) and not isinstance(label, bool)
    whole_numbers = not label.is_floating_point() and not label.is_complex()
    return label.numel() == 1 and whole_numbers and label.dtype != torch.bool


def _key(sample_id: Any) -> int:
    return draws.id_key(sample_id.item() if isinstance(sample_id, Tensor) else sample_id)
