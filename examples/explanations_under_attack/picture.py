"""The picture: digits before and after an attack, and what the network looks at in each."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

TITLES = ("digit", "heatmap", "attacked", "heatmap")


def draw(
    path: Path, clean: Tensor, attacked: Tensor, maps: Tensor, others: Tensor, predicted: list[int]
) -> None:
    """Write a picture with one row per digit, as a PNG file.

    A cross marks the centre of each heatmap.
    """
    rows = len(clean)
    figure = Figure(figsize=(6, 1.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 4, squeeze=False)
    for row, panels in enumerate(axes):
        heat = [each[row].abs().sum(0) for each in (maps, others)]
        shown = (clean[row, 0], heat[0], attacked[row, 0], heat[1])
        for place, (panel, values) in enumerate(zip(panels, shown, strict=True)):
            is_map = place % 2 == 1
            panel.imshow(values.numpy(), cmap="inferno" if is_map else "gray", vmin=0)
            if is_map:
                panel.plot(*centre(values), "c+", markersize=12, markeredgewidth=2)
            panel.set_title(TITLES[place] if is_map else f"{TITLES[place]}: {predicted[row]}")
            panel.axis("off")
    figure.savefig(path, dpi=90)


def centre(values: Tensor) -> tuple[float, float]:
    """Return the column and the row of the centre of mass."""
    total = values.sum()
    rows, columns = (
        float((values.sum(1 - dim) * values.new_tensor(range(values.shape[dim]))).sum() / total)
        for dim in (0, 1)
    )
    return columns, rows
