"""The pictures of the documentation: `python -m tests.real.pictures [FAMILY ...]`.

A digit on the LeNet5 of clean training, the same on that of adversarial training, and
scikit-image's cat, a photograph in the public domain, on EfficientNet-Lite0; the class explained is
the one that is right, and for the cat the prediction.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pytest_triguard.attributions.lpi import LPI
from tests.real import found, maps
from tests.real.sheets import show

FOLDER = Path(__file__).parents[2] / "docs" / "_static"
FAMILIES = {
    "gradients": ("saliency", "gradient_x_input", "deeplift", "occlusion"),
    "smoothing": ("saliency", "smoothgrad", "smoothgrad_squared", "unigrad"),
    "path-integrals": (
        "integrated_gradients",
        "guided_ig",
        "ig_uniform",
        "ig_sg",
        "lpi",
    ),
    "class-activation": ("grad_cam", "guided_grad_cam", "fullgrad"),
    "adversarial-paths": ("agi", "big", "mfaba", "attexplore", "attexplore_plus_plus"),
}
DIGIT = 2
_SIDE, _DPI, _COARSE = 1.35, 80, 4
_COLOURS = (256, 128, 96, 64)
_LARGEST = 60_000
"""Bytes of a picture."""


def rows(name: str) -> list[Tensor]:
    """Return the map of a method in each row, each `(C, H, W)`."""
    made = []
    for training in found.LENETS:
        classifier, images, labels, others = maps.of_digits(training)
        method = maps.method(name, training)
        method = method.fit(classifier, others) if isinstance(method, LPI) else method
        made.append(method(classifier, images[DIGIT : DIGIT + 1], labels[DIGIT : DIGIT + 1])[0])
    method = maps.method(name, "photographs")
    if isinstance(method, LPI):
        method = method.fit(found.efficientnet(0), found.photographs()[0])
    # A panel has fewer pixels than the photograph.
    return [*made, avg_pool2d(method(found.efficientnet(0), found.cat())[0], _COARSE)]


def picture(family: str) -> Figure:
    """Return a row for each network and a column for each method."""
    methods = FAMILIES[family]
    figure = Figure(figsize=((1 + len(methods)) * _SIDE, 3 * _SIDE + 0.2), layout="constrained")
    panels = figure.subplots(3, 1 + len(methods))
    digit = found.one_digit_each()[0][DIGIT]
    for row, image in enumerate((digit, digit, found.cat()[0])):
        panels[row, 0].imshow(image.mean(0), cmap="gray", vmin=0, vmax=1)
    for column, name in enumerate(methods, start=1):
        for row, values in enumerate(rows(name)):
            show(panels[row, column], values)
        panels[0, column].set_title(name, fontsize=7)
    for row, name in enumerate(("clean training", "adversarial training", "photograph")):
        panels[row, 0].set_ylabel(name, fontsize=8)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    return figure


def save(family: str) -> None:
    """Write the picture of a family, with as many colours as its file has room for."""
    buffer = io.BytesIO()
    picture(family).savefig(buffer, dpi=_DPI)
    path = FOLDER / f"maps-{family}.png"
    for colours in _COLOURS:
        Image.open(buffer).convert("RGB").quantize(colours).save(path, optimize=True)
        if path.stat().st_size <= _LARGEST:
            return
    raise SystemExit(f"{path} must be no larger than {_LARGEST} bytes")


def main() -> None:
    for family in sys.argv[1:] or FAMILIES:
        save(family)
        sys.stdout.write(f"{family}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
