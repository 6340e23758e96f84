"""Makes the map look like another one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.attribution_attacks.base import AttributionAttack
from pytest_triguard.attribution_attacks.search import Adam, Aim, Steps, shares
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import describe, number

FARTHEST = "farthest"
_PUBLISHED_PIXELS = 224 * 224
"""Size of the maps that the published weights were chosen for."""


@dataclass(frozen=True, kw_only=True)
class Manipulate(AttributionAttack):
    """Makes the map of a sample that of something else, and keeps its outputs.

    Minimises `map_weight * MSE(h, h_target) + output_weight * MSE(f, f_0)` by Adam, with `h` the
    shares scaled to sum to one as they would be at 224 x 224 pixels, and `f` the logits. Its
    measure is the root mean square distance of the shares from those of the target.

    The published attack has no bound but the valid range, and neither has this one by default;
    `distance` in the result says how far it went.

    Args:
        target: Map to reach: `(H, W)` floating for all samples or `(N, H, W)`, one each, of which
            the absolute values count; or `"farthest"` for the one farthest from the sample's own
            map among its mirror images and its half-turn.
        eps: Radius of the ball in input units, or None for no bound but the valid range.
        steps: Number of steps per start.
        beta: Sharpness of the softplus; a pair grows geometrically.
        map_weight: Weight of the distance of the maps.
        output_weight: Weight of the distance of the logits.

    References:
        Dombrowski et al. 2019, "Explanations Can Be Manipulated and Geometry Is to Blame",
        arXiv:1906.07983, section 2 and appendix.
    """

    name: ClassVar[str] = "manipulate"
    facts: ClassVar[Facts] = Facts(cost=f"at most {PASSES} with saliency")
    larger_is_worse: ClassVar[bool] = False
    weighs_outputs: ClassVar[bool] = True

    target: str | Tensor = FARTHEST
    eps: float | Tensor | None = None
    steps: int = 1500
    beta: float | tuple[float, float] | None = (10.0, 100.0)
    map_weight: float = 1e11
    output_weight: float = 1e6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_target(self.target)
        number("map_weight", self.map_weight, low=0, low_open=True)
        number("output_weight", self.output_weight, low=0)

    def default_step(self, eps: Tensor) -> Tensor:
        """Return the learning rate where the user named none: 2e-4."""
        return torch.full_like(eps, 2e-4)

    def steps_of(self, model: Model, batch: Batch, eps: Tensor) -> Steps:
        """Return how the iterates of a block move: by Adam."""
        return Adam(**vars(super().steps_of(model, batch, eps)))

    def aim(self, maps: Tensor, batch: Batch) -> Aim:
        """Return the shares of the target of each sample.

        Raises:
            InputError: If the target does not go with the samples.
        """
        if isinstance(self.target, Tensor):
            return {"target": shares(_given(self.target, maps, batch).unsqueeze(1))}
        return {"target": _farthest(shares(maps))}

    def objective(self, shares: Tensor, aim: Aim) -> Tensor:
        """Return the negative weighted distance of the maps."""
        distance = (shares - aim["target"]).square().mean((1, 2))
        return -self.map_weight / _PUBLISHED_PIXELS**2 * distance

    def on_outputs(self, logits: Tensor, before: Tensor) -> Tensor:
        """Return the negative weighted distance of the logits."""
        return -self.output_weight * (logits - before).square().mean(1)

    @property
    def measured(self) -> str:
        """What the attack's own measure is, in words."""
        return "root mean square distance of the shares from the target's"

    def own_measure(self, maps: Tensor, aim: Aim) -> Tensor:
        """Return the distance of the shares from the target's."""
        found = shares(maps)
        distance = (found - aim["target"]).square().mean((1, 2)).sqrt()
        return distance.masked_fill(~(found.amax((1, 2)) > 0), math.nan)


def check_target(target: Any) -> None:
    """Refuse what is neither `"farthest"` nor a floating tensor of a map.

    Raises:
        InputTypeError: If it is of another type.
        InputError: If it has another shape, or is zero or not finite.
    """
    if isinstance(target, str) and target == FARTHEST:
        return
    expected = f"target must be a floating tensor (H, W) or (N, H, W), or {FARTHEST!r}"
    if not isinstance(target, Tensor) or not target.dtype.is_floating_point:
        raise InputTypeError(f"{expected}, but {describe(target)} came")
    if target.ndim not in (2, 3) or not target.numel():
        raise InputError(f"{expected}, but {describe(target)} came")
    if not bool(target.isfinite().all() & target.abs().flatten(-2).any(-1).all()):
        raise InputError("target must be finite and not zero everywhere")


def _given(target: Tensor, maps: Tensor, batch: Batch) -> Tensor:
    if target.shape[-2:] != maps.shape[-2:]:
        raise InputError(
            f"target must have {maps.shape[-2]} x {maps.shape[-1]} pixels like the maps, but "
            f"{describe(target)} came"
        )
    if target.ndim == 2:
        return target.to(maps.device, maps.dtype).expand(len(maps), -1, -1)
    if max(batch.positions) >= len(target):
        raise InputError(f"target must be one per sample, but only {len(target)} came")
    chosen = target[torch.tensor(batch.positions, device=target.device)]
    return chosen.to(maps.device, maps.dtype)


def _farthest(own: Tensor) -> Tensor:
    """Return the mirror image or half-turn of each map that is farthest from it, `(n, H, W)`."""
    candidates = torch.stack([own.flip(2), own.flip(1), own.flip((1, 2))])
    distances = (candidates - own).square().mean((2, 3))
    best = distances.argmax(0).view(1, -1, 1, 1).expand(1, *own.shape)
    return candidates.gather(0, best).squeeze(0)
