"""Pictures of explanations, as matplotlib figures.

matplotlib is in the extra `pictures`. Figures are made without `pyplot`, so nothing global
changes and no window opens; `figure.savefig(path)` writes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pytest_triguard.errors import InputError, InputTypeError, TriGuardError
from pytest_triguard.metrics.removal_curve import Curve
from pytest_triguard.validation import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 2.4
"""Inches of a panel."""

_SIGNED, _UNSIGNED = "seismic", "viridis"

Array = npt.NDArray[Any]


def available() -> bool:
    """Return whether matplotlib can be imported; the first call tries."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def heatmap_overlay(image: Tensor, attribution: Tensor, *, title: str = "") -> Figure:
    """Show an image, its map, and the map over the image.

    Args:
        image: `(C, H, W)` in [0, 1], grey or colour.
        attribution: `(C, H, W)` map, summed over channels; signed maps run from blue (against the
            class) to red (for it), maps without negative values from dark to bright.
        title: Shown above.

    Returns:
        Three panels.

    Raises:
        InputTypeError: If something is no floating tensor.
        InputError: If a shape is wrong.
        TriGuardError: If matplotlib is not installed.
    """
    shown, values = _image("image", image), _map("attribution", attribution, image)
    figure, (first, second, third) = _panels(3, title)
    _show_image(first, shown, "image")
    _show_map(second, values, "map")
    third.imshow(shown.mean(2), cmap="gray", vmin=0, vmax=1)
    _show_map(third, values, "map over image", alpha=0.6)
    return figure


def drift_panels(image: Tensor, maps: Mapping[str, Tensor], *, title: str = "") -> Figure:
    """Show how a map depends on its baseline.

    Args:
        image: `(C, H, W)` in [0, 1].
        maps: Names of baselines to maps `(C, H, W)`, at least two; each is divided by the mass of
            all its elements, as in the drift between them, and all share one scale.
        title: Shown above.

    Returns:
        Panels of the image, each map, and for two maps their difference.

    Raises:
        InputTypeError: If something is no floating tensor.
        InputError: If a shape is wrong, a map is zero or not finite, or there are fewer than two.
        TriGuardError: If matplotlib is not installed.
    """
    if len(maps) < 2:
        raise InputError(f"maps must hold at least two maps, but {len(maps)} came")
    shown = _image("image", image)
    summed = {name: _map(name, each, image) for name, each in maps.items()}
    shares = {
        name: _shares(name, each, _checked(name, maps[name]).numpy())
        for name, each in summed.items()
    }
    if len(shares) == 2:
        first, second = shares.values()
        shares["difference"] = first - second
    peak = max(float(np.abs(each).max()) for each in shares.values())
    figure, (start, *panels) = _panels(1 + len(shares), title)
    _show_image(start, shown, "image")
    for axes, (name, values) in zip(panels, shares.items(), strict=True):
        _show_map(axes, values, name, peak=peak)
    return figure


def displacement(
    image: Tensor, adversarial: Tensor, clean_map: Tensor, attacked_map: Tensor, *, title: str = ""
) -> Figure:
    """Show where a map moved under an attack: red where it left, blue where it went.

    Args:
        image: `(C, H, W)` in [0, 1].
        adversarial: `(C, H, W)` the attacked image.
        clean_map: `(C, H, W)` map of the image.
        attacked_map: `(C, H, W)` map of the attacked image.
        title: Shown above.

    Returns:
        Panels of both images, both maps as shares of absolute attribution on one scale, and the
        displacement on a scale of its own, which shows where and not how much.

    Raises:
        InputTypeError: If something is no floating tensor.
        InputError: If a shape is wrong, or a map is zero or not finite.
        TriGuardError: If matplotlib is not installed.
    """
    clean, moved = (
        _shares(name, values, values)
        for name, values in (
            ("clean_map", np.abs(_map("clean_map", clean_map, image))),
            ("attacked_map", np.abs(_map("attacked_map", attacked_map, image))),
        )
    )
    peak = max(float(clean.max()), float(moved.max()))
    figure, panels = _panels(5, title)
    _show_image(panels[0], _image("image", image), "image")
    _show_image(panels[1], _image("adversarial", adversarial), "attacked")
    _show_map(panels[2], clean, "map", peak=peak)
    _show_map(panels[3], moved, "map, attacked", peak=peak)
    _show_map(panels[4], clean - moved, "red left, blue came", signed=True)
    return figure


def removal_curves(curves: Mapping[str, Curve], *, title: str = "") -> Figure:
    """Show insertion or deletion curves: their mean over samples, and its standard error.

    Args:
        curves: Names to curves, such as those of several methods and of the random ranking.
        title: Shown above.

    Returns:
        One panel.

    Raises:
        InputError: If there is no curve, or one without a defined sample.
        TriGuardError: If matplotlib is not installed.
    """
    if not curves:
        raise InputError("curves must hold at least one curve, but none came")
    figure, (axes,) = _panels(1, title, side=2 * _SIDE)
    for name, curve in curves.items():
        values = curve.values.detach().double().cpu().numpy()
        values = values[~np.isnan(values).any(1)]
        if not len(values):
            raise InputError(f"the curve {name!r} must hold a defined sample, but holds none")
        several = len(values) > 1
        mean, error = values.mean(0), values.std(0, ddof=int(several)) / np.sqrt(len(values))
        shares = curve.shares.detach().double().cpu().numpy()
        axes.plot(shares, mean, label=f"{name} ({np.trapezoid(mean, shares):.3f})")
        axes.fill_between(shares, mean - error, mean + error, alpha=0.2)
    axes.set_xlabel("share of pixels exchanged")
    axes.set_ylabel("mean output")
    axes.legend(title="area under the curve")
    return figure


def _panels(count: int, title: str, side: float = _SIDE) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TriGuardError(
            "pictures need matplotlib, which is not installed: pip install "
            "'pytest-triguard[pictures]'"
        ) from error
    figure = Figure(figsize=(count * side, side + 0.4), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, count)))
    if title:
        figure.suptitle(title, parse_math=False)  # a dollar in an id is no mathematics
    return figure, axes


def _show_image(axes: Axes, image: Array, title: str) -> None:
    axes.imshow(image if image.shape[2] == 3 else image.mean(2), cmap="gray", vmin=0, vmax=1)
    _frame(axes, title)


def _show_map(
    axes: Axes,
    values: Array,
    title: str,
    *,
    peak: float | None = None,
    signed: bool | None = None,
    alpha: float = 1.0,
) -> None:
    peak = (float(np.abs(values).max()) if peak is None else peak) or 1.0
    signed = bool(values.min() < 0) if signed is None else signed
    low, colours = (-peak, _SIGNED) if signed else (0.0, _UNSIGNED)
    axes.imshow(values, cmap=colours, vmin=low, vmax=peak, alpha=alpha)
    _frame(axes, title)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize="small")
    axes.set_xticks([])
    axes.set_yticks([])


def _image(name: str, image: Any) -> Array:
    values: Array = _checked(name, image).permute(1, 2, 0).numpy()
    return values.clip(0.0, 1.0)


def _map(name: str, attribution: Any, image: Tensor) -> Array:
    values = _checked(name, attribution)
    if values.shape[1:] != image.shape[1:]:
        raise InputError(
            f"{name} must have height and width {tuple(image.shape[1:])} like the image, but "
            f"{describe(attribution)} came"
        )
    summed: Array = values.sum(0).numpy()
    return summed


def _shares(name: str, values: Array, elements: Array) -> Array:
    """Return values as shares of the mass of the elements they are made of."""
    mass = float(np.abs(elements).sum())
    if not 0 < mass < np.inf:
        found = "zero" if mass == 0 else "not finite"
        raise InputError(f"{name} must hold attribution, but it is {found}")
    return values / mass


def _checked(name: str, values: Any) -> Tensor:
    if not isinstance(values, Tensor) or not values.dtype.is_floating_point:
        raise InputTypeError(
            f"{name} must be a floating tensor (C, H, W), but {describe(values)} came"
        )
    if values.ndim != 3 or not values.numel():
        raise InputError(f"{name} must have shape (C, H, W), but {describe(values)} came")
    return values.detach().double().cpu()
