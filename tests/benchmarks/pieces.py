"""What the parts of a method cost beside the passes: draws, the start of a check, timing chunks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch

from pytest_triguard.attributions.smoothgrad import SmoothGrad
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine import draws
from pytest_triguard.engine.objectives import logit
from pytest_triguard.running import running
from tests.benchmarks.bare import Bare
from tests.benchmarks.networks import SHAPES, images, network
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Ratio, timed

CHUNK, COPIES = 128, 50
_PASSES_PER_TURN = 10


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the cost of each part, as a share of what it goes with."""
    for name in SHAPES:
        yield _draws(plan, name)
        yield _beginning(plan, name)
        yield _tuning(plan, name)


def _draws(plan: Plan, name: str) -> Row:
    module = network(name)
    inputs, labels = images(name, CHUNK)
    bare = Bare(module, inputs, labels, logit)
    ids = torch.arange(CHUNK)

    def draw() -> None:
        keys = draws.row_keys(ids, seed=0, method="benchmark", copy=ids)
        draws.normal(keys, inputs.shape[1:], dtype=inputs.dtype)

    # One by one: what a pass leaves in the processor's caches is part of what a draw costs.
    turns = []
    for _ in range(plan.pairs):
        each = [
            (_seconds(draw), _seconds(lambda: bare.run(1, CHUNK))) for _ in range(_PASSES_PER_TURN)
        ]
        turns.append(statistics.median(a for a, _ in each) / statistics.median(b for _, b in each))
    return Row(
        f"normal draws of a chunk of {CHUNK}, {name}: time / one pass",
        Ratio.of(turns),
        "about 0.01",
    )


def _beginning(plan: Plan, name: str) -> Row:
    """Everything before the first pass: data read and checked, module held, probed, let go."""
    inputs, labels = images(name, CHUNK)
    classifier = Classifier(network(name))
    bare = Bare(classifier.module, inputs, labels, logit)

    def begin() -> None:
        with running(classifier, inputs):
            pass

    begin()
    turns = [_seconds(begin) / _seconds(lambda: bare.run(1, CHUNK)) for _ in range(plan.pairs)]
    return Row(
        f"beginning of a check on {CHUNK} images, {name}: time / one pass over them",
        Ratio.of(turns),
        details=f"{Ratio.of(turns).mean / COPIES:.2%} of a method of {COPIES} passes",
    )


def _tuning(plan: Plan, name: str) -> Row:
    """The choice of the chunk, which happens once per classifier and device."""
    count = plan.cnn_images if name == "small_cnn" else plan.resnet_images
    inputs, labels = images(name, count)
    module = network(name)
    bare = Bare(module, inputs, labels, logit)
    passes = SmoothGrad(copies=COPIES).passes_per_sample
    ratios, chosen = [], []
    for _ in range(plan.pairs):
        with running(Classifier(module), inputs) as run:
            tuning = _seconds(lambda run=run: run.tune(passes))
            chosen.append(run.model.chunk.rows)
        ratios.append(tuning / (passes * _seconds(lambda: bare.run(1, CHUNK))))
    return Row(
        f"choice of the chunk for {count} images x {passes} passes, {name}: time / all passes",
        Ratio.of(ratios),
        details=f"once per classifier and device; chosen: {', '.join(map(str, chosen))}",
    )


def _seconds(job: Callable[[], object]) -> float:
    return timed(job)[0]
