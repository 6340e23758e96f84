"""Maps of many methods on one sheet to look at."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_SIDE = 1.1
"""Inches of a panel."""


def sheet(images: Tensor, found: dict[str, Tensor]) -> Figure:
    """Return a row of images and below it a row of maps for each method.

    Args:
        images: `(n, C, H, W)` in [0, 1].
        found: Names and maps `(n, C, H, W)`; signed ones run from blue to red around zero, and
            each map has its own scale: the 99.5th percentile of its absolute values.
    """
    rows, columns = 1 + len(found), len(images)
    figure = Figure(figsize=(columns * _SIDE + 1.6, rows * _SIDE), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for place, image in enumerate(images):
        panels[0, place].imshow(image.permute(1, 2, 0).mean(2), cmap="gray", vmin=0, vmax=1)
        for row, values in enumerate(found.values(), start=1):
            show(panels[row, place], values[place])
    for row, name in enumerate(("image", *found)):
        panels[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    return figure


def show(axes: Axes, attribution: Tensor) -> None:
    """Draw a map `(C, H, W)`, nothing where it is undefined."""
    shown = attribution.sum(0).double().numpy()
    if not np.isfinite(shown).all():
        return
    peak = float(np.percentile(np.abs(shown), 99.5)) or 1.0
    signed = bool(shown.min() < 0)
    colours = "seismic" if signed else "viridis"
    axes.imshow(shown, cmap=colours, vmin=-peak if signed else 0.0, vmax=peak)
