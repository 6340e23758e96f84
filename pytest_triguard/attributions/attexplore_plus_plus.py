"""Gradients along the trajectory of any attack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from pytest_triguard import attacks
from pytest_triguard.attacks import Attack
from pytest_triguard.attacks.gradient_steps import GradientSteps
from pytest_triguard.attributions.lines import MODES
from pytest_triguard.attributions.trajectories import LOSS_OF, AlongTrajectory
from pytest_triguard.engine.path_integral import (
    Integrand,
    step_times_gradient,
    step_times_momentum,
)
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import PASSES, Facts
from pytest_triguard.validation import describe, one_of

PRESETS = {
    "inception_v3": "mig",
    "maxvit_t": "gra",
    "resnet50": "gra",
    "vgg16": "gra",
    "vit_b_16": "mig",
}
"""The attack that the paper found best, by architecture."""

_DEFAULT = "gra"
_OUTPUT_OF = {loss: output for output, loss in LOSS_OF.items()}


@dataclass(frozen=True, kw_only=True)
class AttEXplorePlusPlus(AlongTrajectory):
    """Steps of any attack times the gradients they are estimated from.

    Nothing is guessed from the classifier: the attack is GRA unless another one or a preset is
    named. With a bare gradient, as of `bim` and `mim`, the map sums to the fall of the output to
    first order, and with sign steps and no momentum it is never negative. With an estimate, as of
    `gra`, it does not sum to anything in particular. `mig` leaves elements that equal its baseline
    where they are: they have no attribution.

    Args:
        output: What is explained, descended and differentiated: see `Attribution`; or `"own"` for
            what the loss of the attack is made of.
        attack: An attack that steps along gradients, or its name, or None for the preset's. One
            start; where it stops at its first success, as `bim` does unless told otherwise, a
            sample whose prediction is not the explained class has a zero map.
        preset: Architecture whose best attack is taken: `"inception_v3"` or `"vit_b_16"` (`mig`),
            `"resnet50"`, `"vgg16"` or `"maxvit_t"` (`gra`); or None.
        mode: `"canonical"` multiplies steps with the estimated gradients; `"reference"` with the
            accumulated ones that the steps follow, so that maps are never negative and have no
            unit.

    References:
        Zhu et al. 2024, "Attribution for Enhanced Explanation with Transferable Adversarial
        eXploration", arXiv:2412.19523, equation 5; presets: section 4.
    """

    name: ClassVar[str] = "attexplore_plus_plus"
    facts: ClassVar[Facts] = Facts(
        cost=f"at most {PASSES} with gra",
        sign="hardly ever negative; never in mode reference",
        axioms=("with bim, pgd and mim sums, to first order, to the fall of the output",),
    )

    output: str = "own"
    attack: str | Attack | None = None
    preset: str | None = None
    mode: str = "canonical"

    def __post_init__(self) -> None:
        attack = self._read()
        output = self.output
        if output == "own":
            output = _OUTPUT_OF.get(attack.loss, "")
            if not output:
                raise InputError(
                    f"attack must ascend a loss made of an output ({', '.join(_OUTPUT_OF)}), but "
                    f"loss={attack.loss!r} came; output='logit' puts another one in its place"
                )
        object.__setattr__(self, "output", output)
        super().__post_init__()
        one_of("mode", self.mode, MODES)
        attack = replace(attack, loss=LOSS_OF[output], trajectory=False)
        object.__setattr__(self, "attack", attack)

    def _read(self) -> GradientSteps:
        """Return the attack that is named, given, or preset.

        Raises:
            InputTypeError: If it is neither a name nor an attack.
            InputError: If it cannot be integrated, or is not that of the preset.
        """
        named: Any = self.attack
        if self.preset is not None:
            preset = PRESETS[one_of("preset", self.preset, PRESETS)]
            named = preset if named is None else named
        attack = attacks.get(named or _DEFAULT) if isinstance(named, str | None) else named
        if not isinstance(attack, Attack):
            raise InputTypeError(
                f"attack must be an attack or its name, but {describe(named)} came"
            )
        if self.preset is not None and attack.name != preset:
            raise InputError(
                f"attack must be left out or be {preset!r} for preset={self.preset!r}, but "
                f"{attack.name!r} came"
            )
        if not isinstance(attack, GradientSteps):
            raise InputError(
                f"attack must step along gradients, as bim and gra do, but {attack.name!r} came"
            )
        if attack.restarts > 1:
            raise InputError(f"attack must have one start, but restarts={attack.restarts} came")
        if isinstance(attack.eps, Tensor):
            raise InputError(
                f"attack must have one eps for all samples, but {describe(attack.eps)} came"
            )
        return attack

    @property
    def exploration(self) -> GradientSteps:
        """The attack, with the seed of the attribution unless it has its own."""
        attack = self.attack
        if not isinstance(attack, GradientSteps):
            raise TypeError("the attack has been read")
        return attack if attack.seed is not None else replace(attack, seed=self.drawn_seed)

    @property
    def integrand(self) -> Integrand:
        """What a step adds."""
        return step_times_gradient if self.mode == "canonical" else step_times_momentum

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values; the loss of the attack is the output's."""
        attack = self.exploration.parameters()
        del attack["loss"]
        return super().parameters() | {"attack": attack}

    def describe(self) -> str:
        """Return the method, its attack and its budget in words, for reports."""
        return f"{super().describe()}, along {self.exploration.describe()}"
