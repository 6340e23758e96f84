"""Attributions against Captum's, which is given the best of several settings on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from tests.benchmarks.networks import images, network
from tests.benchmarks.plan import Plan
from tests.benchmarks.table import Row
from tests.benchmarks.throughput import warmed
from tests.benchmarks.timing import Ratio, pairs, timed

BATCHES = (32, 64, 128, 256)
PASSES = 50
WORK = {"small_cnn": 3200, "resnet18": 1280}
_MOST_IMAGES = 1024

Explain = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""From images, classes and a setting to maps."""


@dataclass(frozen=True)
class Peer:
    """A method of Captum beside ours.

    Attributes:
        build: Returns what explains by Captum, from the network.
        passes: About how many passes a map takes.
        ours: Hyperparameters that make ours do the same work.
        settings: Settings of Captum's, beside the size of the batch, which has the name None.
        networks: Networks that Captum's takes.
    """

    build: Callable[[nn.Module], Explain]
    passes: int = 1
    ours: dict[str, Any] = field(default_factory=dict)
    settings: tuple[dict[str, Any], ...] = ({},)
    networks: tuple[str, ...] = ("small_cnn", "resnet18")


def _plain(kind: str, **options: Any) -> Callable[[nn.Module], Explain]:
    def build(module: nn.Module) -> Explain:
        method = getattr(captum.attr, kind)(module)
        return lambda inputs, classes, setting: method.attribute(
            inputs, target=classes, **options, **setting
        )

    return build


def _tunnel(kind: str) -> Callable[[nn.Module], Explain]:
    def build(module: nn.Module) -> Explain:
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(module))
        return lambda inputs, classes, setting: tunnel.attribute(
            inputs,
            nt_type=kind,
            nt_samples=PASSES,
            stdevs=0.15,
            target=classes,
            abs=False,
            **setting,
        )

    return build


def _integrated(module: nn.Module) -> Explain:
    method = captum.attr.IntegratedGradients(module)
    return lambda inputs, classes, setting: method.attribute(
        inputs,
        target=classes,
        n_steps=PASSES,
        method="riemann_middle",
        internal_batch_size=setting.get("rows", len(inputs)),
    )


def _occluded(module: nn.Module) -> Explain:
    method = captum.attr.Occlusion(module)

    def explain(inputs: Tensor, classes: Tensor, setting: dict[str, Any]) -> Tensor:
        window = round(inputs.shape[2] / 4)
        return method.attribute(
            inputs,
            (inputs.shape[1], window, window),
            strides=(inputs.shape[1], window // 2, window // 2),
            target=classes,
            **setting,
        )

    return explain


def _last_spatial(module: nn.Module) -> nn.Module:
    return module[5] if isinstance(module, nn.Sequential) else module.layer3


def _guided(module: nn.Module) -> Explain:
    method = captum.attr.GuidedGradCam(module, _last_spatial(module))
    return lambda inputs, classes, setting: method.attribute(
        inputs, target=classes, interpolate_mode="bilinear"
    )


def _cam(module: nn.Module) -> Explain:
    method = captum.attr.LayerGradCam(module, _last_spatial(module))
    return lambda inputs, classes, setting: captum.attr.LayerAttribution.interpolate(
        method.attribute(inputs, target=classes, relu_attributions=True),
        inputs.shape[2:],
        interpolate_mode="bilinear",
    )


def _at_once(name: str, *counts: int) -> tuple[dict[str, Any], ...]:
    return tuple({name: count} for count in counts)


PEERS = {
    "saliency": Peer(_plain("Saliency", abs=False)),
    "gradient_x_input": Peer(_plain("InputXGradient")),
    "integrated_gradients": Peer(_integrated, PASSES, settings=({}, {"rows": 256})),
    "smoothgrad": Peer(
        _tunnel("smoothgrad"), PASSES, settings=_at_once("nt_samples_batch_size", 1, 2, 5)
    ),
    "smoothgrad_squared": Peer(
        _tunnel("smoothgrad_sq"), PASSES, settings=_at_once("nt_samples_batch_size", 1, 2, 5)
    ),
    "deeplift": Peer(_plain("DeepLift"), 4, networks=("small_cnn",)),
    "occlusion": Peer(_occluded, 30, settings=_at_once("perturbations_per_eval", 1, 2, 8)),
    "grad_cam": Peer(_cam),
    "guided_grad_cam": Peer(_guided, 2),
}


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the time of every method over that of Captum's at its best setting."""
    for name in WORK:
        for method, peer in PEERS.items():
            if name in peer.networks:
                yield row(plan, name, method, peer)


def row(plan: Plan, name: str, method: str, peer: Peer) -> Row:
    """Return the time of a method over that of Captum's."""
    module = network(name)
    count = min(_MOST_IMAGES, int(WORK[name] * plan.share / peer.passes))
    inputs, classes = images(name, count)
    classifier = Classifier(module)
    chunk = warmed(classifier, inputs, work=100 * WORK[name])
    layer = {"layer": _last_spatial(module)} if method.endswith("cam") else {}
    attribution = attributions.get(method, **peer.ours, **layer)
    job, setting = best(peer, module, inputs, classes)
    found = pairs(
        lambda: attribution(classifier, inputs, classes), job, plan.turns, summary=Ratio.median
    )
    return Row(
        f"{method}, {name}, {count} images: time / Captum's",
        found.clock,
        "<= 1.05",
        found.processor,
        f"{found.first:.2f} s at chunk {chunk}, Captum {found.second:.2f} s with {setting}",
    )


def best(
    peer: Peer, module: nn.Module, inputs: Tensor, classes: Tensor
) -> tuple[Callable[[], object], str]:
    """Return Captum's job at its fastest setting, and that setting in words."""
    explain = peer.build(module)

    def job(batch: int, setting: dict[str, Any]) -> Callable[[], object]:
        def run() -> object:
            parts = zip(inputs.split(batch), classes.split(batch), strict=True)
            return torch.cat([explain(some, own, setting).detach() for some, own in parts])

        return run

    found: dict[str, tuple[float, Callable[[], object]]] = {}
    for batch in (each for each in BATCHES if each <= len(inputs) or each == BATCHES[0]):
        for setting in peer.settings:
            told = ", ".join(f"{key}={value}" for key, value in setting.items())
            each = job(batch, setting)
            seconds = min(timed(each)[1] for _ in range(2))
            found[f"batches of {batch}" + (f", {told}" if told else "")] = seconds, each
    chosen = min(found, key=lambda name: found[name][0])
    return found[chosen][1], chosen
