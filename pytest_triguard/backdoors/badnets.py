"""The patch trigger of BadNets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.backdoors.base import per_channel
from pytest_triguard.backdoors.patch import PatchTrigger
from pytest_triguard.facts import Facts

_SIDE = 3


@dataclass(frozen=True, kw_only=True)
class BadNets(PatchTrigger):
    """A patch that replaces what is under it: `x' = (1 - m) x + m t`.

    By default a white square (the upper end of the bounds) of 3 x 3 pixels in the bottom right
    corner. The mask `m` is the whole rectangle.

    References:
        Gu et al. 2017, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
        Chain", arXiv:1708.06733, section 3.
    """

    name: ClassVar[str] = "badnets"
    facts: ClassVar[Facts] = Facts(cost="none")

    @property
    def opacity(self) -> float:
        """1: nothing of the image shows through."""
        return 1.0

    def default_size(self, height: int, width: int) -> tuple[int, int]:
        """Return 3 x 3, in images of any size."""
        return _SIDE, _SIDE

    def default_patch(self, inputs: Tensor, height: int, width: int) -> Tensor:
        """Return white, `(C or 1, 1, 1)`."""
        return per_channel(self.bounds[1], inputs)

    def covered(self, patch: Tensor) -> Tensor:
        """Return all pixels of the rectangle, `(h, w)`."""
        return torch.ones_like(patch[0], dtype=torch.bool)
