"""Samples in the midst of a search: tensors that share their first dimension, and host lists."""

from __future__ import annotations

from collections.abc import Container, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Rows:
    """Samples in the midst of a search; row `i` of every tensor belongs to sample `i`.

    Attributes:
        positions: Place of each sample in the data.
        ids: Sample ids.
        steps: Steps each row has been through since its start, known without asking the device.
        starts: Starts before the current one, likewise.
        spent: Gradient passes of those starts, likewise.
        tensors: What travels with each row, by name.
    """

    positions: list[int]
    ids: list[Hashable]
    steps: list[int]
    starts: list[int]
    spent: list[int]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.tensors[name] = value

    def get(self, name: str) -> Tensor | None:
        """Return what travels under a name, or None."""
        return self.tensors.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def part(self, part: slice) -> Rows:
        """Return some rows, without a copy; the rows themselves if it is all of them."""
        if part.indices(len(self)) == (0, len(self), 1):
            return self
        return Rows(
            self.positions[part],
            self.ids[part],
            self.steps[part],
            self.starts[part],
            self.spent[part],
            {name: value[part] for name, value in self.tensors.items()},
        )

    def pick(self, places: list[int], names: Container[str] | None = None) -> Rows:
        """Return the rows at some places, copied, with all they carry or what is named."""
        index = self._index(places)
        return Rows(
            [self.positions[each] for each in places],
            [self.ids[each] for each in places],
            [self.steps[each] for each in places],
            [self.starts[each] for each in places],
            [self.spent[each] for each in places],
            {
                name: value.index_select(0, index)
                for name, value in self.tensors.items()
                if names is None or name in names
            },
        )

    def put(self, places: list[int], rows: Rows) -> None:
        """Overwrite the rows at some places, which is cheaper than joining everything anew."""
        index = self._index(places)
        for name, value in self.tensors.items():
            value.index_copy_(0, index, rows[name])
        for source, place in enumerate(places):
            self.positions[place] = rows.positions[source]
            self.ids[place] = rows.ids[source]
            self.steps[place] = rows.steps[source]
            self.starts[place] = rows.starts[source]
            self.spent[place] = rows.spent[source]

    def _index(self, places: list[int]) -> Tensor:
        device = next(iter(self.tensors.values())).device
        return torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True)


def joined(parts: list[Rows]) -> Rows:
    """Return the rows of several parts as one."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        [each for part in parts for each in part.positions],
        [each for part in parts for each in part.ids],
        [each for part in parts for each in part.steps],
        [each for part in parts for each in part.starts],
        [each for part in parts for each in part.spent],
        {name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors},
    )
