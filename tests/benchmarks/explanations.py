"""Attributions against the bare loops of their own passes, and against their peers.

Hyperparameters are such that every method takes as many passes as its table says: steps too short
to change a prediction, so that no sample leaves early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_triguard import attacks, attributions
from pytest_triguard.attributions import Attribution
from pytest_triguard.classifier import Classifier
from pytest_triguard.engine.objectives import logit
from pytest_triguard.running import running
from tests.benchmarks import cams, captum_settings, curves, shared
from tests.benchmarks.bare import SIZES, Bare
from tests.benchmarks.networks import CLASSES, SHAPES, network
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.throughput import warmed
from tests.benchmarks.timing import Ratio, pairs


@dataclass(frozen=True)
class Passes:
    """Passes per sample.

    Attributes:
        gradients: Forward and backward.
        forwards: Forward alone.
        again: Backward once more, through the graph of one of the gradients.
        in_turn: Whether each needs the one before, so that they share no batch.
        counted: Whether forward passes depend on what the method finds, and are counted.
    """

    gradients: int
    forwards: int = 0
    again: int = 0
    in_turn: bool = False
    counted: bool = False

    @property
    def work(self) -> float:
        """About how many passes forward and backward they are worth."""
        return self.gradients + (self.forwards + self.again) / 2


@dataclass(frozen=True)
class Scene:
    """A network and images of one size.

    Attributes:
        network: Name of the network.
        shape: Shape of an image.
        passes: Passes of a method that has the choice, a multiple of 10.
        work: Passes of all images together.
        required: Share of the bare loop's throughput to be reached.
        sizes: Batches among which the bare loop has the choice.
    """

    network: str
    shape: tuple[int, int, int]
    passes: int
    work: int
    required: float
    sizes: tuple[int, ...] = SIZES


SCENES = {
    "small_cnn": Scene("small_cnn", SHAPES["small_cnn"], 20, 2560, 0.95),
    "resnet18": Scene("resnet18", SHAPES["resnet18"], 10, 640, 0.95),
    "resnet18 at 224x224": Scene("resnet18", (3, 224, 224), 10, 64, 0.90, sizes=(4, 8, 16)),
}
_MOST_IMAGES = 2048
_STILL = 1e-6
"""Steps so short that no prediction changes."""

Case = tuple[str, dict[str, Any], Passes]


def cases(scene: Scene) -> list[Case]:
    """Return every method with its hyperparameters and its passes."""
    many, one = scene.passes, Passes(1)
    references = torch.rand(many, *scene.shape, generator=torch.Generator().manual_seed(2))
    lines = {"references": many // 5, "points": 5}
    mim = {"steps": many // 10, "copies": 10, "eps": _STILL}
    gra = attacks.get("gra", steps=many // 10, copies=10, eps=_STILL, stop="never")
    return [
        ("saliency", {}, one),
        ("gradient_x_input", {}, one),
        ("fast_ig", {}, one),
        ("fullgrad", {}, one),
        ("deeplift", {"reused": "each_call"}, Passes(1, forwards=1)),
        ("guided_grad_cam", {}, Passes(1, forwards=1)),
        ("integrated_gradients", {"points": many}, Passes(many)),
        ("smoothgrad", {"copies": many}, Passes(many)),
        ("smoothgrad_squared", {"copies": many}, Passes(many)),
        ("unigrad", {"copies": many}, Passes(many)),
        ("ig_uniform", lines, Passes(many)),
        ("ig_sg", lines, Passes(many)),
        ("ig_sq", lines, Passes(many)),
        ("expected_gradients", {"copies": many}, Passes(many)),
        ("lpi", {"references": references}, Passes(many)),
        ("guided_ig", {"steps": many}, Passes(many, in_turn=True)),
        ("mfaba", {"steps": many, "step_size": _STILL}, Passes(many, forwards=1, in_turn=True)),
        (
            "agi",
            {"steps": many // 2, "classes": 2, "step_size": _STILL},
            Passes(many, again=many, in_turn=True),
        ),
        (
            "big",
            {"eps": (_STILL,), "steps": many // 5, "cw_steps": many // 5, "points": many // 2},
            Passes(2 * (many // 5) + many // 2, forwards=23, in_turn=True, counted=True),
        ),
        ("attexplore", mim, Passes(many)),
        ("attexplore_plus_plus", {"attack": gra}, Passes(many + many // 10)),
        ("occlusion", {}, Passes(0, forwards=1 + _windows(scene.shape[1:]))),
    ]


def _windows(size: tuple[int, ...]) -> int:
    """Return how many windows of a quarter of the side, half overlapping, cover an image."""
    window = round(min(size) / 4)
    stride = window // 2
    rows, columns = (len(range(0, side - window + stride, stride)) for side in size)
    return rows * columns


def measure(plan: Plan) -> Iterator[Row]:
    """Yield everything about explanations."""
    yield from limits(plan)
    for part in (captum_settings, cams, curves, shared):
        yield from part.measure(plan)


def limits(plan: Plan) -> Iterator[Row]:
    """Yield the throughput of every method as a share of its bare loop's."""
    for name, scene in SCENES.items():
        subject = Subject(scene)
        for case in cases(scene):
            yield subject.row(plan, name, case)


class Subject:
    """A network, with the best batch of the bare loop and the chunk of the classifier found."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.module = network(scene.network)
        self.classifier = Classifier(self.module)
        few = pictures(scene, scene.sizes[-1])
        self.batch = Bare(self.module, *few, logit).best_batch(scene.sizes)
        self.chunk = warmed(self.classifier, few[0], work=scene.work * 1000)

    def row(self, plan: Plan, name: str, case: Case) -> Row:
        """Return the throughput of a method as a share of its bare loop's."""
        method, parameters, passes = case
        count = min(_MOST_IMAGES, max(1, int(self.scene.work * plan.share / passes.work)))
        inputs, labels = pictures(self.scene, count)
        bare = Bare(self.module, inputs, labels, logit)
        attribution = attributions.get(method, **parameters)
        if passes.counted:
            passes = replace(passes, forwards=self.forwards(attribution, inputs, labels))
        found = pairs(
            lambda: loop(bare, passes, self.batch),
            lambda: attribution(self.classifier, inputs, labels),
            plan.turns,
            summary=Ratio.median,
        )
        return Row(
            f"{method}, {_told(passes)}, {name}, {count} images: throughput / bare loop",
            found.clock,
            f">= {self.scene.required:.2f}",
            found.processor,
            f"bare {found.first:.2f} s at batch {self.batch}, here {found.second:.2f} s at chunk "
            f"{self.chunk}",
        )

    def forwards(self, attribution: Attribution, inputs: Tensor, labels: Tensor) -> int:
        """Return the forward passes of an image that no backward pass goes with."""
        with running(self.classifier, inputs, targets=labels) as run:
            before = run.model.passes.copy()
            for _ in attribution.stream(run.model, run.samples):
                pass
            spent = run.model.passes - before
        return round((spent.forward - spent.backward) / len(inputs))


def pictures(scene: Scene, count: int) -> tuple[Tensor, Tensor]:
    """Return random images in [0, 1] and random labels."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(count, *scene.shape, generator=generator)
    return inputs, torch.randint(CLASSES, (count,), generator=generator)


def loop(bare: Bare, passes: Passes, batch: int) -> None:
    """Run the passes and nothing else, those of one image in one batch where they may be."""
    times = 1 if passes.in_turn else passes.gradients
    if passes.in_turn:
        for _ in range(passes.forwards):
            bare.predict(batch)
    else:
        replace(bare, inputs=bare.inputs.repeat(passes.forwards, 1, 1, 1)).predict(batch)
    inputs, classes = bare.inputs.repeat(times, 1, 1, 1), bare.classes.repeat(times)
    for some, own in zip(inputs.split(batch), classes.split(batch), strict=True):
        for _ in range(passes.gradients if passes.in_turn else 1):
            points = some.detach().requires_grad_()
            total = bare.objective(bare.module(points), own).sum()
            if passes.again:
                torch.autograd.grad(total, points, retain_graph=True)
            torch.autograd.grad(total, points)


def _told(passes: Passes) -> str:
    parts = [(passes.gradients, "gradients"), (passes.forwards, "forward"), (passes.again, "again")]
    return " and ".join(f"{count} {name}" for count, name in parts if count)
