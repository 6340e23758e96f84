"""The blended trigger, with the mask that makes it a ground truth for attributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pytest_triguard.backdoors.base import per_channel
from pytest_triguard.backdoors.patch import PatchTrigger
from pytest_triguard.errors import InputError
from pytest_triguard.facts import Facts
from pytest_triguard.validation import number

_PRESENT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Blend(PatchTrigger):
    """A pattern that shines through the image: `x' = (1 - alpha m) x + alpha m t`.

    The mask `m` is the pixels where the pattern, summed over channels, exceeds the lower end of
    the bounds by more than 1e-6; elsewhere the image stays as it is. With `alpha=1` and a pattern
    that covers its whole rectangle this is BadNets.

    By default a checkerboard of the upper end of the bounds and a quarter of the range, a quarter
    of the image's shorter side wide, in the bottom right corner: all of its pixels are in the
    mask, and its contrast shows on dark and bright images alike.

    A pattern as large as the image and nowhere dark is the whole-image blend of the original
    paper. Its mask is the whole image, so that the trigger recall is 1 for every attribution, and
    so is its chance level: measure attack success with it, not recall.

    Args:
        alpha: Share of the pattern in a covered pixel, above 0.

    References:
        Chen et al. 2017, "Targeted Backdoor Attacks on Deep Learning Systems Using Data
        Poisoning", arXiv:1712.05526, section 4; the mask as in "BackX", arXiv:2405.02344.
    """

    name: ClassVar[str] = "blend"
    facts: ClassVar[Facts] = Facts(cost="none")

    alpha: float = 0.2

    def __post_init__(self) -> None:
        number("alpha", self.alpha, low=0, high=1, low_open=True)
        super().__post_init__()

    @property
    def opacity(self) -> float:
        """The share of the pattern, `alpha`."""
        return float(self.alpha)

    def default_size(self, height: int, width: int) -> tuple[int, int]:
        """Return a square of a quarter of the image's shorter side, rounded up."""
        side = -(-min(height, width) // 4)
        return side, side

    def default_patch(self, inputs: Tensor, height: int, width: int) -> Tensor:
        """Return the checkerboard, `(C or 1, h, w)`."""
        low, high = (per_channel(end, inputs) for end in self.bounds)
        rows = torch.arange(height, device=inputs.device).unsqueeze(1)
        columns = torch.arange(width, device=inputs.device)
        return torch.where((rows + columns) % 2 == 0, high, low + (high - low) / 4)

    def covered(self, patch: Tensor) -> Tensor:
        """Return the pixels where the pattern is above the lower end of the bounds, `(h, w)`."""
        return (patch - per_channel(self.bounds[0], patch)).sum(0) > _PRESENT

    def check_patch(self, patch: Tensor) -> None:
        """Refuse a pattern that covers no pixel.

        Raises:
            InputError: If it does not.
        """
        if not bool(self.covered(patch).any()):
            raise InputError(
                "pattern must exceed the lower end of the bounds somewhere, because the image is "
                "left alone elsewhere, but an empty pattern came"
            )
