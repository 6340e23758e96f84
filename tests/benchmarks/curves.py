"""Insertion and deletion of digits by integrated gradients, against sweeps over every state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from pytest_triguard import attributions, metrics
from pytest_triguard.classifier import Classifier
from pytest_triguard.metrics.removal import area, cut_points, ranks
from tests.benchmarks.cams import best
from tests.benchmarks.networks import digits, trained_cnn
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Ratio, pairs

IMAGES, STEPS = 256, 100
_TRAINING = 4_000
_STRIDE = 8
"""Pixels between two cut points of Quantus, which divide the image: 98 of them."""
ABSENT = "Quantus is not installed: this row is left out"


class Scene:
    """Digits, a network that knows them, and the maps of integrated gradients from zero."""

    def __init__(self, count: int) -> None:
        inputs, labels = digits()
        self.module = trained_cnn(inputs[:_TRAINING], labels[:_TRAINING])
        held = slice(_TRAINING, _TRAINING + count)
        self.inputs, self.labels = inputs[held], labels[held]
        self.classifier = Classifier(self.module)
        method = attributions.get("integrated_gradients")
        self.maps = method(self.classifier, self.inputs, self.labels)

    def ours(self) -> tuple[Tensor, Tensor]:
        """Return the areas of insertion and of deletion."""
        given = self.maps, self.classifier, self.inputs, self.labels
        insertion, deletion = (metrics.get(name, steps=STEPS) for name in ("insertion", "deletion"))
        return insertion(*given), deletion(*given)

    def masked(self, batch: int) -> Callable[[], list[Tensor]]:
        """Return what evaluates every state by a mask of the ranks, batch by batch."""
        return lambda: rank_masks(self.module, self.inputs, self.labels, self.maps, batch)

    def quantus(self, batch: int) -> Callable[[], object]:
        """Return what runs PixelFlipping of Quantus twice."""
        import quantus

        inputs, labels = self.inputs.numpy(), self.labels.numpy()
        orders = [self.maps.abs().numpy(), -self.maps.abs().numpy()]

        def run() -> list[object]:
            found = []
            for order in orders:
                metric = quantus.PixelFlipping(
                    features_in_step=_STRIDE,
                    abs=False,
                    normalise=False,
                    perturb_baseline="black",
                    disable_warnings=True,
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found.append(
                        metric(
                            model=self.module,
                            x_batch=inputs,
                            y_batch=labels,
                            a_batch=order,
                            batch_size=batch,
                            softmax=True,
                        )
                    )
            return found

        return run


@torch.no_grad()
def rank_masks(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    maps: Tensor,
    batch: int,
    directions: tuple[bool, ...] = (True, False),
) -> list[Tensor]:
    """Return the areas of insertion (True) and deletion from every state at every cut point."""
    pixels = maps.abs().sum(1).flatten(1)
    order = ranks(pixels).view(-1, 1, *inputs.shape[2:])
    cuts = cut_points(pixels.shape[1], STEPS)
    found = []
    for inserts in directions:
        parts = []
        for some, own, places in zip(
            inputs.split(batch), labels.split(batch), order.split(batch), strict=True
        ):
            values = []
            for cut in cuts:
                state = torch.where((places < cut) == inserts, some, 0.0)
                values.append(module(state).softmax(1).gather(1, own.unsqueeze(1)))
            parts.append(torch.cat(values, 1))
        found.append(area(torch.cat(parts), cuts))
    return found


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the time of both peers over ours."""
    scene = Scene(max(32, int(IMAGES * plan.share)))
    count = len(scene.inputs)
    masked = best(scene.masked, count)
    what = f"insertion + deletion, {count} digits, {STEPS} cut points"
    apart = max(
        float((ours - theirs).abs().max())
        for ours, theirs in zip(scene.ours(), scene.masked(count)(), strict=True)
    )
    found = pairs(masked, scene.ours, plan.turns, summary=Ratio.median)
    yield Row(
        f"{what}: time of rank masks / here",
        found.clock,
        ">= 2",
        found.processor,
        f"{found.first:.2f} s against {found.second:.2f} s; areas differ by at most {apart:.1e}",
    )
    if find_spec("quantus") is None:
        yield Row(f"{what}: time of PixelFlipping twice / here", None, ">= 2", details=ABSENT)
        return
    found = pairs(best(scene.quantus, count), scene.ours, plan.turns, summary=Ratio.median)
    yield Row(
        f"{what}: time of PixelFlipping twice / here",
        found.clock,
        ">= 2",
        found.processor,
        f"{found.first:.2f} s against {found.second:.2f} s, Quantus at 98 cut points",
    )
