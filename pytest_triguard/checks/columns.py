"""Per-sample scalars, gathered block by block and read from the device once."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


class Columns:
    """Named per-sample scalars in whatever order samples finish.

    Tensors stay on their device until `arrays`, which reads each column once.

    Args:
        *names: Columns that exist even if nothing is added to them.
    """

    def __init__(self, *names: str) -> None:
        self._positions: list[int] = []
        self._ids: list[Hashable] = []
        self._parts: dict[str, list[Tensor]] = {name: [] for name in names}

    def __len__(self) -> int:
        return len(self._positions)

    def add(
        self,
        positions: Sequence[int],
        ids: Sequence[Hashable],
        **columns: Tensor | Sequence[float] | float,
    ) -> None:
        """Add some samples; a column that is not named is NaN for them.

        Args:
            positions: Place of each sample in the data.
            ids: Sample ids.
            **columns: `(n,)` values by name, or one for all of them.
        """
        for name in columns.keys() - self._parts.keys():
            self._parts[name] = [_filled(math.nan, len(self))] if len(self) else []
        self._positions += positions
        self._ids += ids
        for name, parts in self._parts.items():
            values = columns.get(name, math.nan)
            if isinstance(values, Sequence):
                values = torch.tensor(values, dtype=torch.float64)
            elif not isinstance(values, Tensor):
                values = _filled(values, len(positions))
            parts.append(values.detach())

    def arrays(self) -> tuple[list[Hashable], dict[str, Array]]:
        """Return the ids and the columns as float64 arrays, in the order of the data."""
        order = np.argsort(np.array(self._positions, dtype=np.int64), kind="stable")
        columns = {}
        for name, parts in self._parts.items():
            host = [part.cpu().to(torch.float64) for part in _joined_by_device(parts)]
            columns[name] = torch.cat([*host, _filled(math.nan, 0)]).numpy()[order]
        return [self._ids[place] for place in order], columns


def _filled(value: float, count: int) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def _joined_by_device(parts: list[Tensor]) -> list[Tensor]:
    """Join neighbouring parts of one device and dtype, so that each run is read once."""
    joined: list[list[Tensor]] = []
    for part in parts:
        last = joined[-1][-1] if joined else None
        if last is not None and (last.device, last.dtype) == (part.device, part.dtype):
            joined[-1].append(part)
        else:
            joined.append([part])
    return [torch.cat(run) for run in joined]
