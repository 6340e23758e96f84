"""Entropy, drift between two baselines and deletion of one method, against Captum's maps for each.

Ours are three checks of a classifier that was never checked before, which share their maps.
Captum's are made anew for each; the numbers themselves are found alike, and deletion by a sweep
over every state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import captum.attr
import torch
from torch import Tensor, nn

from pytest_triguard import (
    Classifier,
    assert_drift_below,
    assert_entropy_below,
    assert_faithful,
    metrics,
)
from pytest_triguard.engine.baselines import blurred
from tests.benchmarks.cams import best
from tests.benchmarks.curves import Scene, rank_masks
from tests.benchmarks.networks import images, network
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Ratio, pairs

POINTS = 50
DIGITS, IMAGES = 64, 16
"""How many; Captum's default holds all points of all of them at once."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the time of Captum's, tuned and by default, over ours."""
    scene = Scene(DIGITS)
    yield from rows(plan, "small_cnn, digits", scene.module, (scene.inputs, scene.labels))
    yield from rows(
        plan, "resnet18, random images", network("resnet18"), images("resnet18", IMAGES)
    )


def rows(plan: Plan, name: str, module: nn.Module, given: tuple[Tensor, Tensor]) -> Iterator[Row]:
    """Yield both rows of a network."""
    inputs, labels = given
    count = len(inputs)

    def ours() -> None:
        checks(Classifier(module), inputs, labels)

    tuned = best(lambda batch: lambda: by_captum(module, inputs, labels, batch), count)
    jobs = (
        ("tuned", ">= 1.9", tuned),
        ("by default", ">= 2.8", lambda: by_captum(module, inputs, labels, None)),
    )
    for kind, required, job in jobs:
        found = pairs(job, ours, max(3, plan.turns // 2), summary=Ratio.median)
        yield Row(
            f"entropy + drift + deletion, {name}, {count} images: time of Captum {kind} / here",
            found.clock,
            required,
            found.processor,
            f"{found.first:.2f} s against {found.second:.2f} s",
        )


def checks(classifier: Classifier, inputs: Tensor, labels: Tensor) -> None:
    """Check entropy, drift and deletion."""
    method = "integrated_gradients"
    assert_entropy_below(classifier, inputs, 1.0, labels=labels, attribution=method)
    assert_drift_below(classifier, inputs, 2.0, labels=labels, attribution=method)
    assert_faithful(classifier, inputs, labels, attribution=method, deletion_at_most=1.0)


def by_captum(module: nn.Module, inputs: Tensor, labels: Tensor, batch: int | None) -> None:
    """Find entropy, drift and deletion from Captum's maps.

    Args:
        module: The network.
        inputs: Images.
        labels: Their classes.
        batch: Rows of a pass, or None for Captum's default.
    """
    method = captum.attr.IntegratedGradients(module)

    def maps(start: Tensor) -> Tensor:
        sizes = len(inputs) if batch is None else batch
        parts = zip(inputs.split(sizes), start.split(sizes), labels.split(sizes), strict=True)
        return torch.cat(
            [
                method.attribute(
                    some, base, target=own, n_steps=POINTS, internal_batch_size=batch
                ).detach()
                for some, base, own in parts
            ]
        )

    zero, blur = torch.zeros_like(inputs), blurred(inputs)
    entropy: Callable[..., Tensor] = metrics.get("entropy")
    drift: Callable[..., Tensor] = metrics.get("drift")
    entropy(maps(zero)).mean()
    drift(maps(zero), maps(blur)).mean()
    rank_masks(module, inputs, labels, maps(zero), batch or len(inputs), directions=(False,))
