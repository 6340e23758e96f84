"""Whether what takes part in a check has the valid range of the classifier."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_triguard.classifier import PerChannel
from pytest_triguard.errors import InputError
from pytest_triguard.running import Run


def check_bounds(
    name: str, bounds: tuple[PerChannel, PerChannel], run: Run, advice: str = ""
) -> None:
    """Refuse what brings another valid range than the classifier's.

    Args:
        name: The argument that brings it.
        bounds: Lower and upper end, each one number or one per channel.
        run: The classifier and the samples.
        advice: What to do about it.

    Raises:
        InputError: If its bounds are not the classifier's.
    """
    channels = run.like.shape[1]
    pairs = zip(bounds, run.samples.bounds, strict=True)
    if any(_widened(own, channels) != _widened(asked, channels) for own, asked in pairs):
        own, asked = (_shown(each) for each in (bounds, run.samples.bounds))
        raise InputError(
            f"{name} must have the bounds of the classifier, {asked}, but {own} came"
            + (f"; {advice}" if advice else "")
        )


def _widened(end: PerChannel, channels: int) -> list[float]:
    several = list(end) if isinstance(end, Sequence) else [end]
    return several * channels if len(several) == 1 else several


def _shown(bounds: tuple[PerChannel, PerChannel]) -> str:
    low, high = (_widened(end, 1) for end in bounds)
    return f"[{min(low):g}, {max(high):g}]" if len(low) == 1 == len(high) else f"[{low}, {high}]"
