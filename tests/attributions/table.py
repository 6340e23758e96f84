"""The attributions as the tests see them: a new attribution is one row in `TABLE`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from captum.attr import (
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    NoiseTunnel,
)
from captum.attr import Occlusion as CaptumOcclusion
from captum.attr import Saliency as CaptumSaliency
from torch import Tensor, nn

from pytest_triguard import attacks, attributions
from pytest_triguard.classifier import Classifier
from tests.networks import SHAPES, TRANSFORMER, problem

Known = Callable[[Tensor, Tensor], Tensor]
Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]


SPATIAL = tuple(name for name in SHAPES if name != "linear")
"""Networks with features that have places."""


@dataclass(frozen=True)
class Row:
    """One attribution, as the table tests it.

    Attributes:
        name: Its name in the family.
        linear: Its map where the output is `w . x + b`, from inputs and `w`, or None.
        quadratic: Its expected map where the output is `x' Q x / 2`, from flat inputs and `Q`, or
            None.
        peer: The same map by Captum, or None.
        missing: Why one of these is None, by its name.
        agreeing: Hyperparameters that make it comparable with the peer.
        defaults: Hyperparameters it must have unless told otherwise, beside the common ones.
        few: Hyperparameters that make it fast enough for a test.
        many: Name of the hyperparameter that says how many gradients are averaged, or None.
        random: Whether it draws.
        never_negative: Whether its maps have no sign, or None where that depends.
        finite: Whether its maps are finite even where the gradient is not.
        invariant: Whether its maps depend on what the network computes and not on how.
        normalised: Whether normalisation may as well be written into the network.
        degree: Power of the output's scale that its maps scale with, or None where they do not.
        networks: Networks it is tested on, of those in `SHAPES` or `TRANSFORMER`.
        targeted: Whether its maps depend on the class.
        looks: How often the host may ask which samples are done.
    """

    name: str
    linear: Known | None
    quadratic: Known | None
    peer: Peer | None
    missing: dict[str, str] = field(default_factory=dict)
    agreeing: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    few: dict[str, Any] = field(default_factory=dict)
    many: str | None = None
    random: bool = False
    never_negative: bool | None = False
    finite: bool = False
    invariant: bool = True
    normalised: bool = True
    degree: int | None = 1
    networks: tuple[str, ...] = tuple(SHAPES)
    targeted: bool = True
    looks: int = 0

    @property
    def home(self) -> str:
        """The network that most tests take."""
        return "conv" if "conv" in self.networks else self.networks[0]

    @property
    def smallest(self) -> str:
        """The smallest network it is tested on."""
        return "linear" if self.anywhere else self.home

    @property
    def anywhere(self) -> bool:
        """Whether it asks nothing of the network."""
        return "linear" in self.networks

    def problem(
        self, count: int = 8, dtype: torch.dtype = torch.float64
    ) -> tuple[Classifier, Tensor, Tensor]:
        """Return a classifier, images and labels, as `tests.networks.problem` does."""
        return problem(self.home, count, dtype)

    def method(self, **changed: Any) -> attributions.Attribution:
        """Return the attribution, fast, with changed hyperparameters."""
        return attributions.get(self.name, **(self.few | changed))


LEVEL = 0.15
"""Noise of SmoothGrad, as a fraction of the range of a sample."""


def spread(inputs: Tensor) -> Tensor:
    """Return the standard deviation of the noise of each flat sample, `(N, 1)`."""
    return LEVEL * (inputs.amax(1, keepdim=True) - inputs.amin(1, keepdim=True))


def _tunnel(kind: str, *, times_input: bool = False) -> Peer:
    def explain(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        tunnel = NoiseTunnel(CaptumSaliency(network))
        gradients = tunnel.attribute(
            inputs,
            nt_type=kind,
            nt_samples=6,
            stdevs=1.0,  # the noise itself is put in its place
            target=targets,
            abs=False,
        )
        return inputs * gradients if times_input else gradients

    return explain


def pixel_products(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return weight times input, summed over channels and spread over them."""
    products = inputs * weights
    return products.mean(1, keepdim=True).expand_as(products)


def without_each(inputs: Tensor, form: Tensor) -> Tensor:
    """Return by how much the quadratic output falls when each element is set to zero."""
    return inputs * (inputs @ form) - inputs**2 * form.diagonal() / 2


def from_uniform_references(inputs: Tensor, form: Tensor) -> Tensor:
    """Return the mean over uniform references of what the quadratic output gives on the lines."""
    mean = torch.full_like(inputs, 0.5)
    products = (inputs - mean) * ((inputs + mean) @ form)
    return (products - form.diagonal() / 12) / 2


def _features(network: nn.Module) -> nn.Module:
    """Return the last layer with places of one of the networks."""
    if not isinstance(network, nn.Sequential):
        return network.block
    layers = list(network)
    return layers[[type(each) for each in layers].index(nn.Flatten) - 1]


def _class_activation(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    found = LayerGradCam(network, _features(network)).attribute(
        inputs, targets, relu_attributions=True
    )
    maps = LayerAttribution.interpolate(found, inputs.shape[2:], "bilinear")
    return (maps / inputs.shape[1]).expand_as(inputs)


class _GuidedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return gradient * (values > 0) * (gradient > 0)


def _guided_residual(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the guided gradient of the residual network, of which Captum's loses the way around.

    Its hook on a ReLU clips whatever else comes back to the input of the ReLU.
    """
    hidden = network.stem(inputs)
    hidden = hidden + network.block[1](_GuidedRelu.apply(hidden))
    logits = network.head(_GuidedRelu.apply(hidden).amax((2, 3)))
    return torch.autograd.grad(logits.gather(1, targets.unsqueeze(1)).sum(), inputs)[0]


def _guided(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    if not isinstance(network, nn.Sequential):
        activation = _class_activation(network, inputs, targets) * inputs.shape[1]
        return _guided_residual(network, inputs, targets) * activation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = GuidedGradCam(network, _features(network))
        return method.attribute(inputs, targets, interpolate_mode="bilinear")


def _from_zero_to_one(parts: Tensor) -> Tensor:
    sizes = parts.abs() - parts.abs().amin((1, 2, 3), keepdim=True)
    sizes = sizes / sizes.amax((1, 2, 3), keepdim=True)
    return sizes.mean(1, keepdim=True).expand_as(parts)


NO_FEATURES = dict.fromkeys(("linear", "quadratic"), "such a network has no features with places")
NO_ATTENTION = {
    "linear": "such a network has no attention",
    "quadratic": "likewise",
    "peer": "Captum has no such method; a test of its own multiplies the matrices",
}
ON_LINES = {"keep": "all", "mode": "canonical"}
LINES_MISSING = {
    "linear": "it depends on the references, which a test of its own looks at",
    "peer": "Captum has no such method",
}


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return values without one of them."""
    return {each: value for each, value in values.items() if each != name}


ON_THE_WAY = {
    "linear": "the way ends at the range or the boundary; a test of its own follows it",
    "quadratic": "likewise",
    "peer": "Captum has no such method",
}

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
        defaults={"baseline": "zero", "points": 50, "rule": "midpoint"} | ON_LINES,
        few={"points": 5},
        many="points",
    ),
    Row(
        "fast_ig",
        linear=lambda inputs, weights: inputs * weights,
        quadratic=lambda inputs, form: inputs * (inputs @ form),
        peer=lambda network, inputs, targets: InputXGradient(network).attribute(
            inputs, target=targets
        ),
    ),
    Row(
        "unigrad",
        linear=lambda inputs, weights: inputs * weights,
        quadratic=lambda inputs, form: inputs * (inputs @ form),
        peer=_tunnel("smoothgrad", times_input=True),
        agreeing={"copies": 6},
        defaults={"copies": 50, "radius": 4 / 255, "mode": "canonical"},
        few={"copies": 5},
        many="copies",
        random=True,
    ),
    Row(
        "ig_uniform",
        linear=None,
        quadratic=from_uniform_references,
        peer=None,
        missing=LINES_MISSING,
        defaults={"references": 20, "points": 5} | ON_LINES,
        few={"references": 3, "points": 2},
        many="references",
        random=True,
    ),
    Row(
        "ig_sg",
        linear=None,
        quadratic=None,
        peer=None,
        missing=LINES_MISSING
        | {"quadratic": "its mean is far smaller than what single draws give"},
        defaults={"references": 20, "points": 5, "noise_level": LEVEL} | ON_LINES,
        few={"references": 3, "points": 2},
        many="references",
        random=True,
    ),
    Row(
        "ig_sq",
        linear=None,
        quadratic=None,
        peer=None,
        missing=LINES_MISSING
        | {"quadratic": "its mean is far smaller than what single draws give"},
        defaults={"references": 20, "points": 5, "noise_level": LEVEL} | ON_LINES,
        few={"references": 3, "points": 2},
        many="references",
        random=True,
        degree=2,
    ),
    Row(
        "expected_gradients",
        linear=None,
        quadratic=from_uniform_references,
        peer=None,
        missing=LINES_MISSING | {"peer": "GradientShap draws otherwise, and not for each sample"},
        defaults={"references": "uniform", "copies": None} | ON_LINES,
        few={"copies": 5},
        many="copies",
        random=True,
    ),
    Row(
        "deeplift",
        linear=lambda inputs, weights: inputs * weights,
        quadratic=lambda inputs, form: inputs * (inputs @ form) / 2,
        peer=None,
        missing={"peer": "Captum's is wrong behind max-pools; a test of its own says where"},
        defaults={"baseline": "zero", "reused": "refuse"},
        invariant=False,
    ),
    Row(
        "grad_cam",
        linear=None,
        quadratic=None,
        peer=_class_activation,
        missing=NO_FEATURES,
        defaults={"layer": None, "relu": True},
        never_negative=True,
        networks=SPATIAL,
    ),
    Row(
        "guided_grad_cam",
        linear=None,
        quadratic=None,
        peer=_guided,
        missing=NO_FEATURES,
        defaults={"layer": None, "relu": True},
        degree=2,
        networks=SPATIAL,
    ),
    Row(
        "fullgrad",
        linear=lambda inputs, weights: _from_zero_to_one(inputs * weights),
        quadratic=lambda inputs, form: _from_zero_to_one(
            (inputs * (inputs @ form)).view(-1, 1, 1, 6)
        ).flatten(1),
        peer=None,
        missing={"peer": "Captum has no such method; a test of its own adds up the parts"},
        defaults={"mode": "canonical"},
        never_negative=True,
        normalised=False,
        degree=0,
    ),
    Row(
        "attention_rollout",
        linear=None,
        quadratic=None,
        peer=None,
        missing=NO_ATTENTION,
        defaults={"patches": None},
        never_negative=True,
        finite=True,
        degree=0,
        networks=tuple(TRANSFORMER),
        targeted=False,
    ),
    Row(
        "attention_gradient",
        linear=None,
        quadratic=None,
        peer=None,
        missing=NO_ATTENTION,
        defaults={"patches": None},
        never_negative=True,
        degree=None,
        networks=tuple(TRANSFORMER),
    ),
    Row(
        "guided_ig",
        linear=lambda inputs, weights: inputs * weights,
        quadratic=None,
        peer=None,
        missing={
            "quadratic": "the path depends on the gradients",
            "peer": "Captum has no such method; a test of its own follows one image by hand",
        },
        defaults={
            "baseline": "zero",
            "steps": 200,
            "fraction": 0.25,
            "max_distance": 0.02,
            "mode": "canonical",
        },
        few={"steps": 5},
        many="steps",
    ),
    Row(
        "occlusion",
        linear=pixel_products,
        quadratic=without_each,
        peer=lambda network, inputs, targets: (
            CaptumOcclusion(network).attribute(
                inputs, (inputs.shape[1], 3, 3), (inputs.shape[1], 2, 2), target=targets
            )
            / inputs.shape[1]
        ),
        agreeing={"window": 3, "stride": 2},
        defaults={"baseline": "zero", "window": None, "stride": None},
        few={"window": 1},
        finite=True,
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
        degree=2,
    ),
    Row(
        "agi",
        linear=None,
        quadratic=None,
        peer=None,
        missing=ON_THE_WAY,
        defaults={
            "output": "probability",
            "step_size": 0.05,
            "steps": 50,
            "classes": 20,
            "mode": "canonical",
        },
        few={"output": "logit", "steps": 2},
        many="steps",
        looks=26,
    ),
    Row(
        "mfaba",
        linear=None,
        quadratic=None,
        peer=None,
        missing=ON_THE_WAY,
        defaults={
            "output": "probability",
            "norm": "linf",
            "eps": None,
            "step_size": None,
            "steps": 50,
        },
        few={"output": "logit", "steps": 3, "step_size": 0.01},
        many="steps",
        never_negative=True,
        looks=9,
    ),
    Row(
        "attexplore",
        linear=None,
        quadratic=None,
        peer=None,
        missing=ON_THE_WAY,
        defaults={
            "output": "log_probability",
            "eps": 16 / 255,
            "step_size": None,
            "steps": 10,
            "copies": 20,
            "rho": 0.5,
            "sigma": 16 / 255,
            "probability": 0.5,
            "rate": 1.15,
            "size": 7,
            "momentum": 1.0,
            "mode": "canonical",
        },
        few={"output": "logit", "steps": 2, "copies": 3, "rate": 1.5, "size": 3},
        many="steps",
        random=True,
        never_negative=None,
        looks=9,
    ),
    Row(
        "attexplore_plus_plus",
        linear=None,
        quadratic=None,
        peer=None,
        missing=ON_THE_WAY,
        defaults={
            "output": "log_probability",
            "attack": without(attacks.get("gra", seed=0).parameters(), "loss"),
            "preset": None,
            "mode": "canonical",
        },
        few={"output": "logit", "attack": attacks.get("gra", steps=2, copies=3)},
        random=True,
        never_negative=None,
        looks=9,
    ),
    Row(
        "big",
        linear=None,
        quadratic=None,
        peer=None,
        missing=ON_THE_WAY,
        defaults={
            "eps": [36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.1],
            "steps": 40,
            "loss": "margin",
            "cw_steps": 100,
            "halvings": 20,
            "points": 50,
            "rule": "midpoint",
        }
        | ON_LINES,
        few={"eps": (0.5, 9.0), "steps": 5, "cw_steps": 0, "halvings": 4, "points": 2},
        invariant=False,
        looks=26,
    ),
    Row(
        "lpi",
        linear=lambda inputs, weights: (inputs - 0.35) * weights,
        quadratic=None,
        peer=None,
        missing={
            "quadratic": "one point on each line is drawn",
            "peer": "Captum has no such method",
        },
        defaults={"references": None, "weights": None, "centers": None} | ON_LINES,
        few={"references": torch.tensor([0.0, 0.5, 1.0, 0.25, 0.0]).double().view(5, 1, 1, 1)},
        random=True,
    ),
)

every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
every_row_and_network = pytest.mark.parametrize(
    ("row", "name"),
    [pytest.param(row, name, id=f"{row.name}-{name}") for row in TABLE for name in row.networks],
)
noisy_rows = pytest.mark.parametrize(
    "row", [row for row in TABLE if row.name.startswith("smoothgrad")], ids=lambda row: row.name
)
invariant_rows = pytest.mark.parametrize(
    "row", [row for row in TABLE if row.invariant], ids=lambda row: row.name
)
random_rows = pytest.mark.parametrize(
    "row", [row for row in TABLE if row.random], ids=lambda row: row.name
)
averaging_rows = pytest.mark.parametrize(
    "row", [row for row in TABLE if row.many], ids=lambda row: row.name
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def close(first: Tensor, second: Tensor, tolerance: float = 1e-9) -> bool:
    """Return whether maps agree, each to a fraction of its largest value."""
    scale = second.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return bool(((first - second).abs() <= tolerance * scale).all())
