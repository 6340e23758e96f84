"""Throughput of gradient methods against the bare loop of as many passes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pytest_triguard import attacks, attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.objectives import cross_entropy, logit
from tests.benchmarks.bare import Bare
from tests.benchmarks.networks import images, network
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Job, pairs

METHODS = {"integrated_gradients": 50, "smoothgrad": 50, "pgd": 40}
"""Passes per image of each method."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the throughput of each method on each network, as a share of the bare loop's."""
    for name, count in (("small_cnn", plan.cnn_images), ("resnet18", plan.resnet_images)):
        for method, passes in METHODS.items():
            yield _row(plan, name, count, method, passes)


def _row(plan: Plan, name: str, count: int, method: str, passes: int) -> Row:
    module = network(name)
    inputs, labels = images(name, count)
    objective = cross_entropy if method == "pgd" else logit
    bare = Bare(module, inputs, labels, objective)
    batch = bare.best_batch()
    classifier = Classifier(module)
    chunk = warmed(classifier, inputs)
    job = _job(classifier, method, inputs, labels)
    found = pairs(lambda: bare.run(passes, batch), job, plan.pairs)
    return Row(
        f"{method}, {passes} passes, {name}, {count} images: throughput / bare loop",
        found.clock,
        ">= 0.95",
        found.processor,
        f"bare {found.first:.2f} s at batch {batch}, here {found.second:.2f} s at chunk {chunk}",
    )


def _job(classifier: Classifier, method: str, inputs: torch.Tensor, labels: torch.Tensor) -> Job:
    if method == "pgd":
        attack = attacks.get(method, steps=METHODS[method], stop="never")
        return lambda: attack(classifier, inputs, labels)
    attribution = attributions.get(method)
    return lambda: attribution(classifier, inputs, labels)


def warmed(classifier: Classifier, inputs: torch.Tensor, work: int | None = None) -> int:
    """Let the classifier choose its chunk, as the first check of a run does, and return it.

    Args:
        classifier: The classifier.
        inputs: Some images.
        work: Passes of all images together, or None for so many that any timing pays.
    """
    from pytest_triguard.running import running

    with running(classifier, inputs) as run:
        run.tune(10**6 if work is None else -(-work // len(inputs)))
        return run.model.chunk.rows
