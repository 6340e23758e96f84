"""Copies cut into blocks, each transformed in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import Copies
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.transforms.base import InputTransform
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.validation import describe, number, one_of, whole

OPERATIONS = (
    "roll_rows",
    "roll_columns",
    "flip_rows",
    "flip_columns",
    "rotate",
    "scale",
    "noise",
)
"""What a block goes through by default."""

_KNOWN = (*OPERATIONS, "identity")


@dataclass(frozen=True, kw_only=True)
class Blocks(InputTransform):
    """Each copy is cut at random into a grid, and each block goes through a random operation.

    A block is rolled by a random number of rows or columns, turned over from top to bottom or
    from left to right, rotated by 180 degrees, multiplied by a number drawn from `[0, 1)`, or has
    uniform noise added and is clipped to the valid range. Cuts and operations are drawn for each
    sample, where published code draws them for the batch.

    Args:
        copies: Number of copies.
        blocks: Blocks along each axis.
        noise: Amplitude of the noise, in input units.
        operations: Names of what is drawn from.

    References:
        Wang et al. 2023, "Structure Invariant Transformation for better Adversarial
        Transferability", arXiv:2309.14700, section 3.3.
    """

    name: ClassVar[str] = "sia"

    copies: int = 20
    blocks: int = 3
    noise: float = 16 / 255
    operations: Sequence[str] = OPERATIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("blocks", self.blocks, low=1)
        number("noise", self.noise, low=0)
        given = self.operations
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise InputTypeError(f"operations must be a list of names, but {describe(given)} came")
        if not given:
            raise InputError("operations must name at least one, but an empty list came")
        for each in given:
            one_of("operations", each, _KNOWN)
        object.__setattr__(self, "operations", tuple(given))

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        return super().parameters() | {"operations": list(self.operations)}

    def apply(self, model: Model, copies: Copies) -> Tensor:
        """Return the shuffled inputs, `(m, C, H, W)`."""
        inputs, keys = copies.inputs, copies.keys
        height, width = inputs.shape[2:]
        if min(height, width) < self.blocks:
            raise InputError(
                f"blocks must not exceed the sides of the inputs, {height} x {width} pixels, but "
                f"{self.blocks} came"
            )
        each, cuts = self.blocks**2, (height - 1, width - 1)
        draw = draws.uniform(keys, (sum(cuts) + 3 * each,), dtype=inputs.dtype)
        sizes = [*cuts, each, each, each]
        by_row, by_column, drawn, share, factor = torch.split(draw, sizes, dim=1)
        grid = _Grid(_Axis.cut(by_row, self.blocks), _Axis.cut(by_column, self.blocks), self.blocks)
        number = (drawn * len(self.operations)).floor()
        where = {name: number == place for place, name in enumerate(self.operations)}
        moved = _moved(inputs, grid, share, where)
        if "scale" in where:
            factor = torch.where(where["scale"], factor, torch.ones_like(factor))
            moved = moved * grid.spread(factor).unsqueeze(1)
        if "noise" in where:
            moved = self._noisy(moved, grid.spread(where["noise"]).unsqueeze(1), keys, model)
        return moved

    def _noisy(self, inputs: Tensor, where: Tensor, keys: Tensor, model: Model) -> Tensor:
        """Return the inputs with noise where it is wanted, and clipped there to the valid range."""
        # The keys themselves have drawn the blocks.
        noise = draws.uniform(
            keys + 1, inputs.shape[1:], dtype=inputs.dtype, low=-self.noise, high=self.noise
        )
        noisy = torch.addcmul(inputs, noise, where.to(inputs.dtype))
        # Going backward, this costs a third of what the derivative of a clamp does.
        with torch.no_grad():
            clipped = noisy.clamp(*model.bounds(inputs.dtype))
            beyond = (clipped != noisy).logical_and_(where)
        return torch.where(beyond, clipped, noisy)


def _moved(inputs: Tensor, grid: _Grid, share: Tensor, where: dict[str, Tensor]) -> Tensor:
    """Return every pixel fetched from where its block's operation says.

    Args:
        inputs: `(m, C, H, W)`.
        grid: How they are cut.
        share: `(m, blocks)` how far a block is rolled, as a share of its length.
        where: `(m, blocks)` bool, the blocks that go through an operation, by its name.
    """
    nowhere = torch.zeros_like(share, dtype=torch.bool)

    def drawn(name: str) -> Tensor:
        return where.get(name, nowhere)

    row = grid.fetched(1, share, drawn("roll_rows"), drawn("flip_rows") | drawn("rotate"))
    column = grid.fetched(2, share, drawn("roll_columns"), drawn("flip_columns") | drawn("rotate"))
    source = (row * inputs.shape[3] + column).flatten(1).unsqueeze(1)
    flat = inputs.flatten(2)
    return flat.gather(2, source.expand_as(flat)).view_as(inputs)


@dataclass(frozen=True)
class _Axis:
    """One axis of each row, cut into blocks; all are `(m, size)` int64.

    Attributes:
        block: Number of the block that each place is in.
        start: Where that block begins.
        length: How long it is.
    """

    block: Tensor
    start: Tensor
    length: Tensor

    @classmethod
    def cut(cls, scores: Tensor, blocks: int) -> _Axis:
        """Cut at the places of lowest score; `(m, size - 1)` scores for the places from 1 on."""
        size = scores.shape[1] + 1
        cuts = 1 + scores.argsort(1)[:, : blocks - 1].sort(1).values
        ends = cuts.new_zeros(len(cuts), 1), cuts.new_full((len(cuts), 1), size)
        edges = torch.cat([ends[0], cuts, ends[1]], 1)
        places = torch.arange(size, device=cuts.device)
        block = (places.unsqueeze(1) >= cuts.unsqueeze(1)).sum(2)
        start = edges.gather(1, block)
        return cls(block, start, edges.gather(1, block + 1) - start)


@dataclass(frozen=True)
class _Grid:
    """Rows and columns cut into as many blocks each, numbered row by row."""

    rows: _Axis
    columns: _Axis
    blocks: int

    @cached_property
    def block(self) -> Tensor:
        """Number of the block that each pixel is in, `(m, H, W)` int64."""
        return self.rows.block.unsqueeze(2) * self.blocks + self.columns.block.unsqueeze(1)

    def spread(self, values: Tensor) -> Tensor:
        """Return the value of each pixel's block, `(m, H, W)`."""
        return values.gather(1, self.block.flatten(1)).view(self.block.shape)

    def fetched(self, dim: int, share: Tensor, rolled: Tensor, turned: Tensor) -> Tensor:
        """Return the place along an axis from which each pixel is fetched, `(m, H, W)`.

        Args:
            dim: Dimension of the axis.
            share: How far a block is rolled, as a share of its length.
            rolled: Which blocks are rolled.
            turned: Which blocks have their end first.
        """
        axis, across = (self.rows, self.columns) if dim == 1 else (self.columns, self.rows)
        # For each place along the axis and each block across it, not yet for each pixel.
        others = torch.arange(self.blocks, device=share.device)
        along, step = axis.block.unsqueeze(2), self.blocks
        block = (along * step + others if dim == 1 else others * step + along).flatten(1)

        def own(values: Tensor) -> Tensor:
            return values.gather(1, block).view(len(values), -1, self.blocks)

        start, length = axis.start.unsqueeze(2), axis.length.unsqueeze(2)
        inside = torch.arange(axis.block.shape[1], device=share.device).view(1, -1, 1) - start
        shift = (own(share) * length).to(torch.int64).clamp_max(length - 1)
        inside = torch.where(own(rolled), (inside - shift) % length, inside)
        source = start + torch.where(own(turned), length - 1 - inside, inside)
        index = across.block.unsqueeze(1).expand(-1, source.shape[1], -1)
        found = source.gather(2, index)
        return found if dim == 1 else found.mT
