"""The verifier's interval bounds against as many plain forward passes as they cost."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_triguard.classifier import Classifier
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.network import Network
from tests.benchmarks.networks import CLASSES
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.timing import Job, pairs

IMAGES, EPS = 8, 0.01
LARGEST = "<= 1.25"


def simple_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def _torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = importlib.import_module("torchvision.models")
        return getattr(models, name)(num_classes=CLASSES, **arguments)

    return build


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "SimpleCNN": (simple_cnn, (1, 28, 28)),
    "resnet18": (_torchvision("resnet18"), (3, 32, 32)),
    "resnet50": (_torchvision("resnet50"), (3, 32, 32)),
    "mobilenet_v3_large": (_torchvision("mobilenet_v3_large"), (3, 64, 64)),
    "densenet121": (_torchvision("densenet121"), (3, 32, 32)),
    "vgg16": (_torchvision("vgg16"), (3, 32, 32)),
    "inception_v3": (_torchvision("inception_v3", init_weights=False), (3, 75, 75)),
}
"""Networks by name, with the shape of their images."""


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the time of the bounds as a ratio to that of two forward passes, in both dtypes."""
    for name in NETWORKS:
        yield from _rows(plan, name)


def _rows(plan: Plan, name: str) -> Iterator[Row]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = build().eval().requires_grad_(False)
    images = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(1))
    with Classifier(module).prepared() as model, torch.no_grad():
        model.logits(images)
        network = Network(model, images.dtype)
        for each, required in ((network.own, LARGEST), (network, "")):
            yield _row(
                plan, name, each, images, lambda: [module(images) for _ in range(2)], required
            )


def _row(
    plan: Plan, name: str, network: Network, images: Tensor, forward: Job, required: str
) -> Row:
    centre = images.to(network.dtype)
    region = Interval(centre - EPS, centre + EPS)

    def bound() -> object:
        with network.untracked():
            return network.enclose(region.alike())

    for _ in range(2):
        forward()
        logits = network.enclose(region).logits
    finite = bool(torch.isfinite(logits.upper - logits.lower).all())
    turns = max(1, plan.interval_pairs if required else plan.interval_pairs // 3)
    found = pairs(bound, forward, turns)
    dtype = str(network.dtype).removeprefix("torch.")
    return Row(
        f"intervals in {dtype}, {name}, {IMAGES} images of {images.shape[-1]} pixels a side: "
        "time / two forward passes in float32",
        found.clock,
        required,
        found.processor,
        f"{found.first * 1e3:.1f} ms against {found.second * 1e3:.1f} ms, "
        f"{'finite' if finite else 'not finite'}",
    )
