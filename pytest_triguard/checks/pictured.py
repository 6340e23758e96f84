"""The picture of the worst sample of a failed check, made of that sample alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from pytest_triguard import pictures
from pytest_triguard.attributions import Attribution
from pytest_triguard.checks.finding import Finding, plain_id
from pytest_triguard.engine.model import Model
from pytest_triguard.reporting import numbers
from pytest_triguard.running import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_ID = 32


def picture_of_worst(run: Run, finding: Finding) -> Callable[[], Figure] | None:
    """Return what draws the worst sample of a finding, or None where there is nothing to draw.

    Samples can be read again and draws go by sample id, so that the sample comes out alone as it
    did among the others.

    Args:
        run: Classifier and samples that were measured.
        finding: What was found.
    """
    if finding.picture is None or not finding.worst or not pictures.available():
        return None
    worst = finding.worst[0]
    place = [plain_id(each) for each in finding.ids].index(worst["id"])
    alone = replace(run, samples=run.samples.alone(place))
    known = ", ".join(
        f"{name} {numbers.number(value) if isinstance(value, float) else value}"
        for name, value in worst.items()
        if name != "id"
    )
    return partial(finding.picture, alone, f"sample {str(worst['id'])[:_LONGEST_ID]}: {known}")


def overlay(attribution: Attribution) -> Callable[[Run, str], Figure]:
    """Return what draws a sample and its map.

    Args:
        attribution: What explains.
    """

    def draw(run: Run, title: str) -> Figure:
        batch, maps = next(attribution.stream(run.model, run.samples))
        image = visible(run.model, batch.inputs[0])
        return pictures.heatmap_overlay(image, maps[0], title=title)

    return draw


def side_by_side(
    model: Model, image: Tensor, maps: Sequence[tuple[str, Tensor]], title: str
) -> Figure:
    """Draw several maps of one image and, of two, their difference.

    Args:
        model: The network.
        image: `(C, H, W)` in the user's space.
        maps: Names and maps `(C, H, W)`; names may repeat.
        title: Shown above.
    """
    names = [name for name, _ in maps]
    named = {
        f"{name} ({place + 1})" if names.count(name) > 1 else name: values
        for place, (name, values) in enumerate(maps)
    }
    return pictures.drift_panels(visible(model, image), named, title=title)


def visible(model: Model, image: Tensor) -> Tensor:
    """Return an image `(C, H, W)` of the user's space in [0, 1]."""
    low, high = model.bounds(image.dtype)
    return ((image - low[0]) / (high[0] - low[0])).clamp(0, 1)
