"""What a branch and bound leaves behind: a tree of splits, whose leaves are bounded one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_triguard.errors import InputError
from pytest_triguard.verification.domains import Domains

_LEAF = -1

Path = tuple[tuple[int, int], ...]
"""Decisions from the root on: the place of what is split, and the side."""


@dataclass(frozen=True)
class ProofTree:
    """How one row of a specification was proven for one sample.

    A tree in which every node is a leaf or has two children, one for each side of a split, covers
    the region whatever the places are: a ReLU input is at least 0 or at most 0, and an input of the
    network is in the upper half of its box or in the lower. So that the leaves cover the region is
    seen from the shape alone.

    Attributes:
        row: Row of the specification.
        splits: The nodes in preorder, the upper side first: the place of the ReLU input that is
            split, or beyond these of the input of the network, or -1 for a leaf.
        multipliers: For each leaf in that order, what the bound started from: a multiplier for
            each decision from the root on, 0 for a half of a box.

    Raises:
        InputError: If the nodes are no such tree, or the multipliers do not go with it, or are
            negative or not finite.
    """

    row: int
    splits: tuple[int, ...]
    multipliers: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if min(self.splits, default=_LEAF) < _LEAF:
            raise InputError("a proof tree must have places from 0 on, or -1 for a leaf")
        paths = list(self.paths())
        if [len(path) for path in paths] != [len(each) for each in self.multipliers]:
            raise InputError("a proof tree must have a multiplier for each decision of each leaf")
        # A negative one would turn a constraint around, and the bound would not hold.
        if not all(0 <= weight < math.inf for each in self.multipliers for weight in each):
            raise InputError("a proof tree must have multipliers that are finite and at least 0")

    def paths(self) -> Iterator[Path]:
        """Hand out the decisions of each leaf.

        Raises:
            InputError: If the leaves do not cover the region.
        """
        waiting: list[Path] = [()]
        for place in self.splits:
            if not waiting:
                raise InputError("a proof tree must end with its last leaf, but more nodes came")
            path = waiting.pop()
            if place == _LEAF:
                yield path
            else:
                waiting += [(*path, (place, -1)), (*path, (place, 1))]
        if waiting:
            raise InputError(
                f"the leaves of a proof tree must cover the region, but {len(waiting)} parts are "
                "missing"
            )

    def domains(self, dtype: torch.dtype, device: torch.device) -> Domains:
        """Return the leaves as domains of the first sample, not bounded yet."""
        paths = list(self.paths())
        depth = max(map(len, paths))

        def column(rows: Iterable[Sequence[float]], kind: torch.dtype) -> Tensor:
            padded = [[*row, *[0] * (depth - len(row))] for row in rows]
            return torch.tensor(padded, dtype=kind).view(len(paths), depth).to(device)

        owner = torch.zeros(len(paths), dtype=torch.int64, device=device)
        return Domains(
            owner,
            owner + self.row,
            torch.full_like(owner, -torch.inf, dtype=dtype),
            {
                "places": column([[place for place, _ in path] for path in paths], torch.int64),
                "signs": column([[sign for _, sign in path] for path in paths], torch.int64),
                "multipliers": column(self.multipliers, dtype),
                "next": owner + _LEAF,
            },
        )


def trees(closed: Sequence[Domains], owner: int) -> tuple[ProofTree, ...]:
    """Return the proof trees of one sample.

    Args:
        closed: The domains that were proven, with what their bound started from as `start`.
        owner: The sample.
    """
    found: dict[int, dict[Path, tuple[float, ...]]] = {}
    for each in closed:
        own = each.pick((each.owner == owner).nonzero().flatten())
        for row, path, start in _listed(own):
            found.setdefault(row, {})[path] = start
    return tuple(_tree(row, leaves) for row, leaves in sorted(found.items()))


def _listed(domains: Domains) -> Iterator[tuple[int, Path, tuple[float, ...]]]:
    """Hand out row, decisions and first multipliers of each domain."""
    state = domains.state
    columns = (domains.row, state["places"], state["signs"], state["start"])
    for row, places, signs, start in zip(*(each.tolist() for each in columns), strict=True):
        used = [place for place, sign in enumerate(signs) if sign]
        path = tuple((places[place], signs[place]) for place in used)
        yield row, path, tuple(start[place] for place in used)


def _tree(row: int, leaves: dict[Path, tuple[float, ...]]) -> ProofTree:
    """Return the tree with some leaves."""
    places = {path[:depth]: path[depth][0] for path in leaves for depth in range(len(path))}
    splits: list[int] = []
    multipliers = []
    waiting: list[Path] = [()]
    while waiting:
        path = waiting.pop()
        if path in leaves:
            splits.append(_LEAF)
            multipliers.append(leaves[path])
        else:
            place = places[path]
            splits.append(place)
            waiting += [(*path, (place, -1)), (*path, (place, 1))]
    return ProofTree(row, tuple(splits), tuple(multipliers))


def started(domains: Domains, bounded: Domains) -> Domains:
    """Return domains after they were bounded, with what their bound started from."""
    return replace(bounded, state=bounded.state | {"start": domains.state["multipliers"].detach()})
