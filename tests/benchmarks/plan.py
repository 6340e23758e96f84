"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements; the defaults are those of the published table."""

    pairs: int = 5
    cnn_images: int = 512
    resnet_images: int = 256
    digits: int = 512
    streams: tuple[int, int] = (1_000, 20_000)
    runs: int = 10
    interval_pairs: int = 21
    turns: int = 11
    """Turns of every comparison of explanations, of which the median is taken."""
    share: float = 1.0
    """Share of their images."""


QUICK = Plan(
    pairs=3,
    cnn_images=256,
    resnet_images=64,
    digits=128,
    streams=(500, 2_000),
    runs=3,
    interval_pairs=9,
    turns=5,
    share=0.5,
)
