"""Whether an evaluation by attacks can be relied on.

An attack that finds nothing may have been unable to look: gradients may be zero, steps too few.
Each sign of that is a warning with a name. The signs are those that AutoAttack warns of (Croce and
Hein 2020, section 7, and the notes of its reference implementation), and what Carlini et al. 2019,
"On Evaluating Adversarial Robustness", ask to be looked at.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from torch import Tensor

from pytest_triguard.attacks import Attack
from pytest_triguard.attacks.cascade import Cascaded
from pytest_triguard.engine.gradients import input_gradient
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.objectives import Objective, cross_entropy, margin
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.running import Run

_LOOKED_AT = 16
"""Samples whose logits and gradients are looked at before the attack."""

_VANISHED = 0.1
"""Share of samples with a vanishing gradient that is worth a warning."""

_STILL_RISING = 0.2
"""Share of standing samples whose loss was still rising that is worth a warning."""

_STRONGER = 0.002
"""Share of samples that only an attack without gradients broke that is worth a warning."""

_ROUNDING = 8
"""Multiple of the rounding error of its parts at which a gradient has vanished."""


class Sanity:
    """Collects the signs while an attack goes on.

    Args:
        run: The classifier and the samples.
        attack: The attack.
        targeted: Whether it aims at a class.
        sifted: Whether samples at which the goal is reached beforehand are left out.
    """

    def __init__(
        self, run: Run, attack: Attack, *, targeted: bool = False, sifted: bool = True
    ) -> None:
        self._attack = attack
        self._members = attack.members if isinstance(attack, Cascaded) else (attack,)
        self._classes = run.model.num_classes or 0
        self._targeted = targeted
        self._sifted = sifted
        self._fell: Counter[str] = Counter()
        self._stood = self._rising = self._free = 0
        self._warnings = self._before(run)

    def offer(self, outcome: Outcome) -> None:
        """Look through some outcomes."""
        radius = self._attack.radius(outcome.positions).tolist()
        looked = self._attack.needs_gradients
        for place, won in enumerate(outcome.success):
            if won:
                self._fell[outcome.by or self._attack.name] += 1
                self._free += self._sifted and radius[place] == 0
            else:
                self._stood += 1
                self._rising += looked and outcome.rising[place]

    def fell(self) -> dict[str, int]:
        """Return how many samples each attack broke, in the order of the attacks."""
        return {each.name: self._fell[each.name] for each in self._members}

    def warnings(self) -> dict[str, str]:
        """Return the warnings by name, each with what was seen and what to do."""
        found = dict(self._warnings)
        short = [each for each in self._members if not self._fits(each)]
        if short:
            names = ", ".join(each.name for each in short)
            found["too few classes"] = (
                f"{names} left out, which {_verb('needs', short)} "
                f"{max(each.classes_needed(targeted=self._targeted) for each in short)} classes "
                f"and the classifier has {self._classes}"
            )
        if self._free:
            found["success at eps = 0"] = (
                f"{self._free} samples fell in a ball of radius 0: the network is no function of "
                "its input"
            )
        if self._rising > _STILL_RISING * self._stood:
            several = any(getattr(each, "steps", 1) > 1 for each in self._members)
            last, more = ("last", "more steps") if several else ("only", "an attack of more steps")
            found["loss still rising"] = (
                f"at the {last} step of {self._rising} of {self._stood} standing samples: {more} "
                "may break them"
            )
        return found | self._black_box()

    def _fits(self, attack: Attack) -> bool:
        """Return whether an attack is defined for as many classes as there are."""
        return attack.classes_needed(targeted=self._targeted) <= self._classes

    def _black_box(self) -> dict[str, str]:
        fitting = [each for each in self._members if self._fits(each)]
        seeing = [each.needs_gradients for each in fitting]
        first = seeing.index(True) if any(seeing) else len(fitting)
        # What fell before an attack with gradients looked at it says nothing of gradients.
        blind = {each.name for each in fitting[first:] if not each.needs_gradients}
        blind -= {each.name for each in fitting[:first]}
        alone = sum(count for name, count in self._fell.items() if name in blind)
        total = self._stood + self._fell.total()
        if alone <= _STRONGER * total:
            return {}
        return {
            "black box beats white box": (
                f"{', '.join(sorted(blind))} broke {alone} of {total} samples without gradients "
                "that attacks with gradients left standing: gradients are masked"
            )
        }

    def _before(self, run: Run) -> dict[str, str]:
        """Look at a few samples before the attack; the passes are not counted."""
        found = run.doubts()
        if not self._attack.needs_gradients:
            return found
        points = run.like[:_LOOKED_AT].detach().to(run.model.device)
        with run.model.passes.uncounted():
            with torch.no_grad():
                logits = run.model.chunk.map(run.model.logits, points)
            return found | self._gradients(run.model, points, logits.argmax(1))

    def _gradients(self, model: Model, points: Tensor, classes: Tensor) -> dict[str, str]:
        def largest(part: slice, objective: Objective) -> Tensor:
            gradient, _ = input_gradient(model, points[part], classes[part], objective)
            return gradient.abs().amax((1, 2, 3))

        sizes = [
            torch.cat(model.chunk.attempt(partial(largest, objective=objective), len(points)))
            for objective in (cross_entropy, margin)
        ]
        entropy, lead = torch.stack(sizes).tolist()
        negligible = _ROUNDING * torch.finfo(points.dtype).eps
        zero = sum(max(pair) == 0 for pair in zip(entropy, lead, strict=True))
        gone = sum(
            own <= negligible * other and other > 0
            for own, other in zip(entropy, lead, strict=True)
        )
        of_all, found = f"of the first {len(points)} samples", {}
        if zero:
            found["zero gradients"] = (
                f"at {zero} {of_all}: an attack that follows them stands still; run 'square' too"
            )
        followed = {_followed(each) for each in self._members if each.needs_gradients}
        if followed <= self._saturating and gone > _VANISHED * len(points):
            losses = " and the ".join(sorted(followed)).replace("_", "-")
            found["vanishing gradients"] = (
                f"of the {losses} at {gone} {of_all}: they are below rounding; use "
                "loss='margin' or an attack on the logits"
            )
        return found

    @property
    def _saturating(self) -> set[str]:
        """The losses whose gradient vanishes where the softmax is certain of the prediction.

        The cross-entropy of a target is steepest there.
        """
        return {"probability"} if self._targeted else {"cross_entropy", "probability"}


def _followed(attack: Attack) -> str:
    """Return the loss whose gradient at the iterates an attack follows, or nothing."""
    along_a_line = hasattr(attack, "points")  # that of a darker image does not vanish
    return "" if along_a_line else getattr(attack, "loss", "")


def _verb(verb: str, subjects: list[Attack]) -> str:
    return verb if len(subjects) == 1 else verb.removesuffix("s")
