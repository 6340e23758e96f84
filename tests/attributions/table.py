"""The attributions as the tests see them: a new attribution is one row in `TABLE`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel
from captum.attr import Saliency as CaptumSaliency
from torch import Tensor, nn

from pytest_triguard import attributions
from tests.networks import SHAPES

Known = Callable[[Tensor, Tensor], Tensor]
Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One attribution, as the table tests it.

    Attributes:
        name: Its name in the family.
        linear: Its map where the output is `w . x + b`, from inputs and `w`.
        quadratic: Its expected map where the output is `x' Q x / 2`, from flat inputs and `Q`.
        peer: The same map by Captum.
        agreeing: Hyperparameters that make it comparable with the peer.
        defaults: Hyperparameters it must have unless told otherwise, beside the common ones.
        few: Hyperparameters that make it fast enough for a test.
        many: Name of the hyperparameter that says how many gradients are averaged, or None.
        random: Whether it draws.
        never_negative: Whether its maps have no sign.
    """

    name: str
    linear: Known
    quadratic: Known
    peer: Peer
    agreeing: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    few: dict[str, Any] = field(default_factory=dict)
    many: str | None = None
    random: bool = False
    never_negative: bool = False

    def method(self, **changed: Any) -> attributions.Attribution:
        """Return the attribution, fast, with changed hyperparameters."""
        return attributions.get(self.name, **(self.few | changed))


LEVEL = 0.15
"""Noise of SmoothGrad, as a fraction of the range of a sample."""


def spread(inputs: Tensor) -> Tensor:
    """Return the standard deviation of the noise of each flat sample, `(N, 1)`."""
    return LEVEL * (inputs.amax(1, keepdim=True) - inputs.amin(1, keepdim=True))


def _tunnel(kind: str) -> Peer:
    def explain(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        tunnel = NoiseTunnel(CaptumSaliency(network))
        return tunnel.attribute(
            inputs,
            nt_type=kind,
            nt_samples=6,
            stdevs=1.0,  # the noise itself is put in its place
            target=targets,
            abs=False,
        )

    return explain


TABLE = (
    Row(
        "saliency",
        linear=lambda inputs, weights: weights,
        quadratic=lambda inputs, form: inputs @ form,
        peer=lambda network, inputs, targets: CaptumSaliency(network).attribute(
            inputs, target=targets, abs=False
        ),
    ),
    Row(
        "gradient_x_input",
        linear=lambda inputs, weights: inputs * weights,
        quadratic=lambda inputs, form: inputs * (inputs @ form),
        peer=lambda network, inputs, targets: InputXGradient(network).attribute(
            inputs, target=targets
        ),
    ),
    Row(
        "integrated_gradients",
        linear=lambda inputs, weights: inputs * weights,
        quadratic=lambda inputs, form: inputs * (inputs @ form) / 2,
        peer=lambda network, inputs, targets: IntegratedGradients(network).attribute(
            inputs, baselines=0.0, target=targets, n_steps=50, method="gausslegendre"
        ),
        agreeing={"points": 50, "rule": "gauss_legendre"},
        defaults={"baseline": "zero", "points": 50, "rule": "midpoint"},
        few={"points": 5},
        many="points",
    ),
    Row(
        "smoothgrad",
        linear=lambda inputs, weights: weights,
        quadratic=lambda inputs, form: inputs @ form,
        peer=_tunnel("smoothgrad"),
        agreeing={"copies": 6},
        defaults={"copies": 50, "noise_level": LEVEL},
        few={"copies": 5},
        many="copies",
        random=True,
    ),
    Row(
        "smoothgrad_squared",
        linear=lambda inputs, weights: weights**2,
        quadratic=lambda inputs, form: (
            (inputs @ form) ** 2 + spread(inputs) ** 2 * form.square().sum(0)
        ),
        peer=_tunnel("smoothgrad_sq"),
        agreeing={"copies": 6},
        defaults={"copies": 50, "noise_level": LEVEL},
        few={"copies": 5},
        many="copies",
        random=True,
        never_negative=True,
    ),
)

every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
random_rows = pytest.mark.parametrize(
    "row", [row for row in TABLE if row.random], ids=lambda row: row.name
)
averaging_rows = pytest.mark.parametrize(
    "row", [row for row in TABLE if row.many], ids=lambda row: row.name
)
every_network = pytest.mark.parametrize("name", SHAPES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def close(first: Tensor, second: Tensor, tolerance: float = 1e-9) -> bool:
    """Return whether maps agree, each to a fraction of its largest value."""
    scale = second.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return bool(((first - second).abs() <= tolerance * scale).all())
