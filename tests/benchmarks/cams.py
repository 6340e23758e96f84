"""Grad-CAM against a forward pass, and against pytorch-grad-cam where it is installed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from tests.benchmarks.networks import CLASSES, network
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Ratio, pairs, timed

SCENES: dict[str, tuple[str, tuple[int, int, int], int]] = {
    "small_cnn": ("small_cnn", (1, 28, 28), 1024),
    "resnet18": ("resnet18", (3, 32, 32), 512),
    "resnet18 at 224x224": ("resnet18", (3, 224, 224), 64),
}
"""Network, shape of an image, and how many."""
_BATCHES = (16, 32, 64, 128, 256)
ABSENT = "pytorch-grad-cam is not installed: this row is left out"


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the time of Grad-CAM over a forward pass, and that of the peer over ours."""
    for name in SCENES:
        yield from rows(plan, name)


def rows(plan: Plan, name: str) -> Iterator[Row]:
    """Yield both rows of a network."""
    kind, shape, count = SCENES[name]
    module = network(kind)
    layer = "5" if isinstance(module, nn.Sequential) else "layer4"
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(max(16, int(count * plan.share)), *shape, generator=generator)
    classes = torch.randint(CLASSES, (len(inputs),), generator=generator)
    classifier, attribution = Classifier(module), attributions.get("grad_cam", layer=layer)

    def ours() -> Tensor:
        return attribution(classifier, inputs, classes)

    forward = best(lambda batch: lambda: _forward(module, inputs, batch), len(inputs))
    found = pairs(ours, forward, plan.turns, summary=Ratio.median)
    what = f"grad_cam, {name}, {len(inputs)} images"
    yield Row(
        f"{what}: time / a forward pass",
        found.clock,
        "<= 1.35",
        found.processor,
        f"{found.first:.2f} s, forward {found.second:.2f} s",
    )
    if find_spec("pytorch_grad_cam") is None:
        yield Row(f"{what}: time of pytorch-grad-cam / here", None, ">= 2", details=ABSENT)
        return
    peer = best(lambda batch: peer_job(module, layer, inputs, classes, batch), len(inputs))
    found = pairs(peer, ours, plan.turns, summary=Ratio.median)
    yield Row(
        f"{what}: time of pytorch-grad-cam / here",
        found.clock,
        ">= 2",
        found.processor,
        f"{found.first:.2f} s against {found.second:.2f} s",
    )


def best(job: Callable[[int], Callable[[], object]], count: int) -> Callable[[], object]:
    """Return the job of the fastest batch."""
    sizes = [size for size in _BATCHES if size <= count]
    seconds = {size: min(timed(job(size))[1] for _ in range(2)) for size in sizes}
    return job(min(seconds, key=lambda size: seconds[size]))


@torch.no_grad()
def _forward(module: nn.Module, inputs: Tensor, batch: int) -> None:
    for some in inputs.split(batch):
        module(some)


def peer_job(
    module: nn.Module, name: str, inputs: Tensor, classes: Tensor, batch: int
) -> Callable[[], object]:
    """Return what explains by pytorch-grad-cam, as its documentation does.

    Parameters have gradients there: with frozen ones it finds none to go back with.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    twin = copy.deepcopy(module).requires_grad_()
    same = twin.get_submodule(name)

    def run() -> None:
        with GradCAM(model=twin, target_layers=[same]) as cam:
            for some, own in zip(inputs.split(batch), classes.split(batch), strict=True):
                goals = [ClassifierOutputTarget(each) for each in own.tolist()]
                cam(input_tensor=some, targets=goals)

    return run
