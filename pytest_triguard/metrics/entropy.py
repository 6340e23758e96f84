"""How widely an attribution is spread over the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pytest_triguard.engine.precision import at_least_single
from pytest_triguard.facts import Facts
from pytest_triguard.metrics.base import Metric, check_maps, scaled
from pytest_triguard.validation import one_of

EntropyForm = Literal["normalized", "raw"]
ENTROPY_FORMS: tuple[EntropyForm, ...] = ("normalized", "raw")

_RAW_OFFSET = 1e-10


@dataclass(frozen=True, kw_only=True)
class Entropy(Metric):
    """Shannon entropy of a map read as a distribution of absolute attribution.

    * `"normalized"`: over pixels. With `a_i` the absolute attribution of pixel `i` summed over
      channels and `p = a / sum(a)`, it is `-sum(p ln p) / ln(H W)`: 0 where one pixel holds
      everything, 1 where all hold the same. It does not change when a map is scaled.
      Images of a single pixel are undefined, because `ln 1 = 0`.
    * `"raw"`: over single elements, in nats: `-sum(p ln(p + c))` with
      `p = |A| / (sum |A| + c)` and `c = 1e-10`, the form of TriGuard's first experiments.
      It depends on the size of the image.

    A zero map is undefined in both forms.

    Args:
        form: `"normalized"` or `"raw"`.

    References:
        Shannon 1948, "A Mathematical Theory of Communication", section 6.
    """

    name: ClassVar[str] = "entropy"
    facts: ClassVar[Facts] = Facts(
        cost="none", sign="lower is more concentrated", checked="scipy, Quantus"
    )

    form: EntropyForm = "normalized"

    def __post_init__(self) -> None:
        one_of("form", self.form, ENTROPY_FORMS)

    @property
    def title(self) -> str:
        """What reports call the number."""
        return "attribution entropy" if self.form == "normalized" else "raw attribution entropy"

    @property
    def undefined_reason(self) -> str:
        """Why a sample can be undefined."""
        return "zero map or single pixel" if self.form == "normalized" else "zero map"

    def reach(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return `(0, 1)`, or for the raw form 0 and the entropy of a uniform map."""
        if self.form == "normalized":
            return 0.0, 1.0
        elements = math.prod(shape[-3:])
        # With one or two elements, a map that the offset keeps from summing to 1 lies above ln n.
        return 0.0, math.log(elements) if elements > 2 else elements / math.e

    def __call__(self, maps: Tensor) -> Tensor:
        """Return the entropy of each map.

        Args:
            maps: `(N, C, H, W)` floating.

        Returns:
            `(N,)` in the dtype and on the device of the maps, NaN where undefined.

        Raises:
            InputTypeError: If `maps` is no floating tensor.
            InputError: If its shape is another.
        """
        maps = check_maps("maps", maps)
        values = _normalized(maps) if self.form == "normalized" else _raw(maps)
        return values.to(maps.dtype)


def _normalized(maps: Tensor) -> Tensor:
    pixels = scaled(maps).abs().sum(1).flatten(1)
    # Left to itself, a share that is rounded off 1 would be divided by 0.
    if pixels.shape[1] == 1:
        return torch.full_like(pixels[:, 0], math.nan)
    shares = pixels / pixels.sum(1, keepdim=True)
    # 0 - x, unlike -x, turns 0 into 0 and not into -0.
    entropy = 0.0 - torch.xlogy(shares, shares).sum(1)
    # Rounding alone can carry a uniform map above 1.
    return (entropy / math.log(pixels.shape[1])).clamp(0.0, 1.0)


def _raw(maps: Tensor) -> Tensor:
    elements = at_least_single(maps).abs().flatten(1)
    total = elements.sum(1)
    shares = elements / (total + _RAW_OFFSET).unsqueeze(1)
    # The offset inside the logarithm makes a single element's entropy -1e-10.
    entropy = 0.0 - (shares * (shares + _RAW_OFFSET).log()).sum(1).clamp_max(0.0)
    return entropy.masked_fill(~(total > 0), math.nan)
