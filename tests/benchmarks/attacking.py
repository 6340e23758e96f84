"""Attacks on predictions and on explanations against the passes they cannot do without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_triguard import attacks, attribution_attacks
from pytest_triguard.attacks.curve import robust_curve
from pytest_triguard.attacks.pgd import PGD
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.objectives import cross_entropy, logit
from tests.benchmarks import rivals
from tests.benchmarks.bare import Bare
from tests.benchmarks.memory import peak
from tests.benchmarks.networks import images, network
from tests.benchmarks.plan import Plan
from tests.benchmarks.robustness import STEPS, Falling, falling
from tests.benchmarks.table import Row
from tests.benchmarks.throughput import warmed
from tests.benchmarks.timing import Ratio, pairs

TRANSFERABLE: dict[str, dict[str, Any]] = {
    "mim": {},
    "nim": {},
    "si_nim": {},
    "dim": {},
    "tim": {},
    "mig": {"steps": 2},
    "naa": {},
    "sia": {"steps": 2},
    "gra": {"steps": 2},
    "ssa": {"steps": 2},
    "fsps": {"steps": 3, "search_steps": 10},
}
"""Attacks by name; those with many passes a step take fewer steps, which changes no share."""
AT_ONCE = {"si_nim": 5, "mig": 20, "naa": 20, "sia": 20, "gra": 20, "ssa": 20, "fsps": 20}
"""Passes of a sample that need not wait for each other, and so may share a batch; else one."""

EXPLANATIONS = ("topk", "mass_center", "targeted", "manipulate")
_BETA = 10.0
_ASCENTS = 20
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Shares of the images that fall at the radii of the curve."""
_COPIES, _CHUNK = 20, 4


def measure(plan: Plan) -> Iterator[Row]:
    """Yield each attack's share of its limit, then the curve, the memory and other libraries."""
    for kind, count in (("small_cnn", plan.cnn_images), ("resnet18", plan.resnet_images // 4)):
        for name, few in TRANSFERABLE.items():
            yield _transferable(plan, kind, count, name, few)
    for name in EXPLANATIONS:
        yield _explanation(plan, name)
    found = falling(plan)
    yield _curve(plan, found)
    yield from _memory()
    yield from rivals.measure(plan, found)


def _transferable(plan: Plan, kind: str, count: int, name: str, few: dict[str, Any]) -> Row:
    module = network(kind)
    inputs, labels = images(kind, count)
    bare = Bare(module, inputs, labels, cross_entropy)
    batch = bare.best_batch()
    classifier = Classifier(module)
    chunk = warmed(classifier, inputs)
    attack = attacks.get(name, **few)
    passes = attack.passes_per_sample

    # The bare loop fills its batch with such passes, too.
    times = min(AT_ONCE.get(name, 1), max(1, batch // len(inputs)))
    filled = Bare(module, inputs.repeat(times, 1, 1, 1), labels.repeat(times), cross_entropy)

    def loop() -> None:
        filled.run(passes // times, batch)
        bare.run(passes % times, batch)
        bare.predict(batch)

    found = pairs(loop, lambda: attack(classifier, inputs, labels), plan.pairs)
    return Row(
        f"{name}, {passes} passes and a prediction, {kind}, {len(inputs)} images: throughput / "
        "bare loop",
        found.clock,
        ">= 0.95",
        found.processor,
        f"bare {found.first:.2f} s at batch {batch}, here {found.second:.2f} s at chunk {chunk}",
    )


# --- explanations -------------------------------------------------------------------------------


def smooth(module: nn.Sequential) -> nn.Module:
    """Return the network with softplus for ReLU, on the same weights."""
    layers = (nn.Softplus(_BETA) if isinstance(each, nn.ReLU) else each for each in module)
    return nn.Sequential(*layers).eval()


def twice(module: nn.Sequential, inputs: Tensor, classes: Tensor, steps: int, batch: int) -> None:
    """Differentiate a map on the smooth network, and explain on the network itself, so often."""
    twin = smooth(module)
    for some, each in zip(inputs.split(batch), classes.split(batch), strict=True):
        for _ in range(steps):
            points = some.detach().requires_grad_()
            total = logit(twin(points), each).sum()
            (gradient,) = torch.autograd.grad(total, points, create_graph=True)
            torch.autograd.grad((gradient * points).abs().sum(), points)
            Bare(module, some, each, logit).run(1, batch)


def _explanation(plan: Plan, name: str) -> Row:
    module = network("small_cnn")
    inputs, _ = images("small_cnn", plan.cnn_images // 8)
    classifier = Classifier(module)
    chunk = warmed(classifier, inputs)
    classes = module(inputs).argmax(1)
    attack = attribution_attacks.get(name, steps=_ASCENTS, beta=_BETA)
    found = pairs(
        lambda: twice(module, inputs, classes, _ASCENTS, chunk),  # type: ignore[arg-type]
        lambda: attack(classifier, inputs, classes),
        plan.pairs,
    )
    return Row(
        f"{name}, {_ASCENTS} steps, small_cnn, {len(inputs)} images: throughput / bare loop of "
        "second derivatives and explanations",
        found.clock,
        ">= 0.9",
        found.processor,
        f"bare {found.first:.2f} s, here {found.second:.2f} s, both at {chunk} rows",
    )


# --- robust accuracy at several radii -----------------------------------------------------------


def _curve(plan: Plan, found: Falling) -> Row:
    radii = tuple(found.eps(share) for share in _SHARES)
    classifier = Classifier(found.module)
    chunk = warmed(classifier, found.inputs)
    attack = PGD(steps=STEPS)

    def apart() -> list[float]:
        return [
            1 - float(run.success.float().mean())
            for run in (
                PGD(eps=eps, steps=STEPS)(classifier, found.inputs, found.labels) for eps in radii
            )
        ]

    def together() -> list[float]:
        curve = robust_curve(classifier, found.inputs, found.labels, attack=attack, eps=radii)
        return [curve.rate(eps) for eps in radii]

    rates = apart(), together()
    turns = pairs(apart, together, max(1, plan.pairs // 2))
    return Row(
        f"pgd-{STEPS}, robust accuracy at six radii, small_cnn, {len(found.inputs)} digits: time "
        "of six runs / of one curve",
        turns.clock,
        "> 1",
        turns.processor,
        f"{turns.first:.1f} s against {turns.second:.1f} s at chunk {chunk}; rates "
        f"{_told(rates[0])} apart, {_told(rates[1])} together",
    )


def _told(rates: list[float]) -> str:
    return " ".join(f"{each:.3f}" for each in rates)


# --- memory -------------------------------------------------------------------------------------


def _memory() -> Iterator[Row]:
    """Yield the peak of copies of photographs over that of bare passes over one chunk."""
    bare = peak("bare", "photographs", _CHUNK, _CHUNK)
    for method in ("sia", "ssa"):
        ours = peak(method, "photographs", _CHUNK, _CHUNK)
        yield Row(
            f"{method}, {_COPIES} copies, resnet18 at 224x224, {_CHUNK} images, chunk {_CHUNK}: "
            "peak memory / bare passes",
            Ratio.of([ours / bare]),
            "<= 1.25",
            details=f"{ours / 2**20:.0f} MiB over {bare / 2**20:.0f} MiB",
        )
