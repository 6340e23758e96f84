"""Common corruptions: what cameras, files and weather do to images, at five severities.

Scipy blurs, Pillow resizes and encodes, as in the published code; the other kinds are formulas of
one line. Packages that have all published kinds are no longer kept, or under a licence that a test
suite may not be able to take; torchvision gives up its JPEG encoder.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from pytest_triguard.backdoors.base import per_channel
from pytest_triguard.classifier import PerChannel, read_bounds
from pytest_triguard.engine import draws
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.strategies.given import check_range, on_host
from pytest_triguard.validation import describe, one_of, whole

Array = npt.NDArray[Any]

SMALL = 64
"""Images whose shorter side is below this get the parameters for small images."""

SEVERITIES = 5

_SEEDS = 2**16


@dataclass(frozen=True)
class Kind:
    """A kind of corruption.

    Attributes:
        apply: From images in [0, 1], the parameter and the keys of their random draws to
            corrupted images, which are clipped afterwards.
        large: Its parameter at each severity, for large images.
        small: The same for small images.
        is_random: Whether it draws at random.
    """

    apply: Callable[[Tensor, float, Tensor], Tensor]
    large: tuple[float, ...]
    small: tuple[float, ...]
    is_random: bool = False


def _brightness(images: Tensor, amount: float, _: Tensor) -> Tensor:
    value = images.amax(1, keepdim=True)  # the V of HSV
    brighter = (value + amount).clamp_max(1)
    return torch.where(value > 0, images * (brighter / value), brighter)


def _contrast(images: Tensor, factor: float, _: Tensor) -> Tensor:
    means = images.mean((2, 3), keepdim=True)
    return means + factor * (images - means)


def _pixelate(images: Tensor, share: float, _: Tensor) -> Tensor:
    pillow = _pillow("pixelate")
    height, width = images.shape[2:]
    coarse = max(1, int(width * share)), max(1, int(height * share))
    box = pillow.Resampling.BOX

    def pixelated(channel: Array) -> Array:
        small = pillow.fromarray(channel).resize(coarse, box)
        return np.asarray(small.resize((width, height), box))

    channels = images.flatten(0, 1).float().numpy()
    pixels = np.stack([pixelated(each) for each in channels])
    return torch.from_numpy(pixels).to(images.dtype).view_as(images)


def _gaussian_blur(images: Tensor, sigma: float, _: Tensor) -> Tensor:
    spread = (0, 0, sigma, sigma)
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), spread, mode="nearest"))


def _jpeg(images: Tensor, quality: float, _: Tensor) -> Tensor:
    if images.shape[1] not in (1, 3):
        raise InputError(
            f"inputs must have 1 or 3 channels for jpeg, but {images.shape[1]} came; name other "
            "kinds"
        )
    pillow = _pillow("jpeg")

    def encoded(image: Array) -> Array:
        file = io.BytesIO()
        pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
            file, "JPEG", quality=int(quality)
        )
        return np.asarray(pillow.open(file)).reshape(image.shape)

    pixels = (images * 255).round().to(torch.uint8).movedim(1, -1).contiguous().numpy()
    decoded = torch.from_numpy(np.stack([encoded(each) for each in pixels]))
    return decoded.movedim(-1, 1).to(images.dtype) / 255


def _speckle_noise(images: Tensor, spread: float, keys: Tensor) -> Tensor:
    return images + images * spread * _normal(images, keys)


def _gaussian_noise(images: Tensor, spread: float, keys: Tensor) -> Tensor:
    return images + spread * _normal(images, keys)


def _impulse_noise(images: Tensor, share: float, keys: Tensor) -> Tensor:
    drawn = draws.uniform(keys, images.shape[1:], dtype=images.dtype)
    pepper, salt = drawn < share / 2, drawn >= 1 - share / 2
    return images.masked_fill(pepper, 0).masked_fill(salt, 1)


def _normal(images: Tensor, keys: Tensor) -> Tensor:
    return draws.normal(keys, images.shape[1:], dtype=images.dtype)


KINDS: dict[str, Kind] = {
    "brightness": Kind(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Kind(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Kind(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "gaussian_blur": Kind(_gaussian_blur, (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1)),
    "jpeg": Kind(_jpeg, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
    "speckle_noise": Kind(
        _speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6), (0.06, 0.1, 0.12, 0.16, 0.2), True
    ),
    "gaussian_noise": Kind(
        _gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.1), True
    ),
    "impulse_noise": Kind(
        _impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07), True
    ),
}
"""The kinds, the simplest first, with the parameters of ImageNet-C and of CIFAR-10-C."""

_FROM_PILLOW = ("pixelate", "jpeg")


@dataclass(frozen=True)
class Corruption:
    """A common corruption; call it to put it on images.

    Attributes:
        kind: What is done, a key of the table in the documentation of `corruptions`.
        severity: How strongly, 1 to 5.
        seed: Seed of what is random.
        bounds: Lower and upper end of the valid range.
    """

    kind: str
    severity: int
    seed: int = 0
    bounds: tuple[PerChannel, PerChannel] = (0.0, 1.0)

    def __post_init__(self) -> None:
        one_of("kind", self.kind, tuple(KINDS))
        _check_severity(self.severity)
        whole("seed", self.seed)
        read_bounds(self.bounds)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs, corrupted.

        What is random depends on the seed and the place of a sample in the batch.

        Args:
            inputs: `(N, C, H, W)`, or one sample `(C, H, W)`; floating, inside the bounds, left
                as they are.

        Returns:
            The same shape, dtype and device, inside the bounds, in new memory.

        Raises:
            InputTypeError: If `inputs` is no floating tensor.
            InputError: If its shape or range is wrong, or `jpeg` gets other than 1 or 3 channels.
        """
        batch = on_host(inputs)
        low, high = read_bounds(self.bounds)
        check_range(batch, low, high)
        with torch.device("cpu"):
            corrupted = self._corrupted(batch.double(), low, high).to(inputs.dtype)
        return (corrupted[0] if inputs.ndim == 3 else corrupted).to(inputs.device)

    def _corrupted(self, batch: Tensor, low: tuple[float, ...], high: tuple[float, ...]) -> Tensor:
        kind = KINDS[self.kind]
        table = kind.small if min(batch.shape[2:]) < SMALL else kind.large
        keys = draws.row_keys(
            torch.arange(len(batch)), seed=self.seed, method=f"corruption/{self.kind}"
        )
        floor, ceiling = per_channel(low, batch), per_channel(high, batch)
        images = ((batch - floor) / (ceiling - floor)).clamp(0, 1)
        corrupted = kind.apply(images, table[self.severity - 1], keys).clamp(0, 1)
        points = floor + (ceiling - floor) * corrupted
        return torch.minimum(torch.maximum(points, floor), ceiling)


def corruptions(
    severity: int = SEVERITIES,
    *,
    kinds: Sequence[str] | None = None,
    bounds: tuple[PerChannel, PerChannel] = (0.0, 1.0),
) -> st.SearchStrategy[Corruption]:
    """Return a strategy for common corruptions up to a severity.

    A draw is a `Corruption`, a function: `corruption(inputs)` are the corrupted inputs, whatever
    their dtype, device and number. It shrinks to the first of the kinds, severity 1 and seed 0.
    A failing test prints kind, severity and seed.

    The parameters are those of ImageNet-C, and for images whose shorter side is below 64 pixels
    those of CIFAR-10-C, at severities 1 to 5:

    - `brightness`, added to the largest channel of a pixel: .1 .2 .3 .4 .5; .05 .1 .15 .2 .3
    - `contrast`, factor around each channel's mean: .4 .3 .2 .1 .05; .75 .5 .4 .3 .15
    - `pixelate`, share of the size it is averaged down to: .6 .5 .4 .3 .25; .95 .9 .85 .75 .65
    - `gaussian_blur`, standard deviation in pixels: 1 2 3 4 6; .4 .6 .7 .8 1
    - `jpeg`, quality, on 1 or 3 channels: 25 18 15 10 7; 80 65 58 50 40
    - `speckle_noise`, relative standard deviation: .15 .2 .35 .45 .6; .06 .1 .12 .16 .2
    - `gaussian_noise`, standard deviation: .08 .12 .18 .26 .38; .04 .06 .08 .09 .1
    - `impulse_noise`, share of elements that turn black or white: .03 .06 .09 .17 .27;
      .01 .02 .03 .05 .07

    Those in the unit of brightness are shares of the range that `bounds` gives.

    Args:
        severity: Largest severity that is drawn, 1 to 5.
        kinds: Which of the above; None for all.
        bounds: Lower and upper end of the valid range, each one number or one per channel.

    Returns:
        A strategy for corruptions.

    Raises:
        ModuleNotFoundError: If Pillow is not installed, which `pixelate` and `jpeg` need.
        InputTypeError: If an argument has the wrong type.
        InputError: If a value is refused.

    References:
        Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common
        Corruptions and Perturbations", arXiv:1903.12261, section 3, and its published code.

    Example:
        >>> import torch
        >>> from hypothesis import given
        >>> @given(corruptions(2, kinds=["brightness", "gaussian_noise"]))
        ... def test_it_stays_in_range(corruption):
        ...     corrupted = corruption(torch.full((2, 3, 8, 8), 0.9))
        ...     assert corrupted.min() >= 0 and corrupted.max() <= 1
        >>> test_it_stays_in_range()
    """
    _check_severity(severity)
    chosen = _chosen(kinds)
    for each in chosen:
        if each in _FROM_PILLOW:
            _pillow(each)
    ends = read_bounds(bounds)
    return _corruptions(chosen, severity, bounds if len(ends[0]) > 1 else (ends[0][0], ends[1][0]))


@st.composite
def _corruptions(
    draw: st.DrawFn, kinds: tuple[str, ...], severity: int, bounds: tuple[PerChannel, PerChannel]
) -> Corruption:
    kind = draw(st.sampled_from(kinds))
    chosen = draw(st.integers(1, severity))
    seed = draw(st.integers(0, _SEEDS - 1)) if KINDS[kind].is_random else 0
    return Corruption(kind, chosen, seed, bounds)


def _chosen(kinds: Any) -> tuple[str, ...]:
    if kinds is None:
        return tuple(KINDS)
    if isinstance(kinds, str) or not isinstance(kinds, Sequence):
        raise InputTypeError(f"kinds must be a list of names, but {describe(kinds)} came")
    if not kinds:
        raise InputError("kinds must name at least one kind, but an empty list came")
    for each in kinds:
        one_of("kinds", each, tuple(KINDS))
    return tuple(kinds)


def _check_severity(severity: Any) -> None:
    if whole("severity", severity, low=1) > SEVERITIES:
        raise InputError(f"severity must be at most {SEVERITIES}, but {severity} came")


def _pillow(kind: str) -> Any:
    """Return Pillow's images.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"the corruption {kind} needs Pillow, which is not installed; name other kinds, or "
            'install it with: python -m pip install "pytest-triguard[corruptions]"',
            name="PIL",
        ) from None
    return Image
