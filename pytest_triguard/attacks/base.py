"""What every attack on predictions shares: arguments, goal, result."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard.engine.equality import hyperparameters
from pytest_triguard.engine.geometry import NORMS, Norm
from pytest_triguard.engine.iteration import PATH
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.samples import Batch
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.facts import Facts
from pytest_triguard.running import Run, running
from pytest_triguard.settings import current_settings
from pytest_triguard.validation import beyond, describe, number, one_of, whole


@dataclass(frozen=True)
class Trajectory:
    """Where an attack went, step by step.

    Attributes:
        points: `(N, T + 1, C, H, W)` iterates, the start first.
        gradients: `(N, T, C, H, W)` the estimator's output at each iterate, before momentum and
            normalisation.
        directions: `(N, T, C, H, W)` the direction each step took.
        lengths: `(N,)` int64, steps each sample took; what lies beyond them is padding.
    """

    points: Tensor
    gradients: Tensor
    directions: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Attributes:
        adversarial: `(N, C, H, W)` inside ball and bounds, on the device of the inputs.
        success: `(N,)` bool, whether the prediction at `adversarial` reaches the goal: another
            class than the label, or the target.
        trajectory: The way there, or None unless `trajectory=True` was asked for.
        passes: Passes each sample needed, `(N,)` int64: gradients, or queries without them.
        cost: Forward and backward passes in all, counted in samples.
        broken_by: Name of the attack that reached the goal for each sample, or None.
        costs: The same passes for each attack that took part.
    """

    adversarial: Tensor
    success: Tensor
    trajectory: Trajectory | None
    passes: Tensor
    cost: dict[str, int]
    broken_by: tuple[str | None, ...]
    costs: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack on predictions inside a ball around each sample.

    Args:
        eps: Radius of the ball in input units, one for all samples or one each, `(N,)`.
        norm: `"linf"` or `"l2"`.
        seed: Seed of random draws, or None for the session's.
    """

    eps: float | Tensor = 8 / 255
    norm: Norm = "linf"
    seed: int | None = None

    name: ClassVar[str]
    facts: ClassVar[Facts]
    with_fewer_classes: ClassVar[str] = "use attack='apgd_ce'"

    def __post_init__(self) -> None:
        check_eps(self.eps)
        if isinstance(self.eps, Tensor):  # read in the midst of a search, whatever became of it
            object.__setattr__(self, "eps", self.eps.detach().to("cpu", copy=True))
        one_of("norm", self.norm, NORMS)
        if self.seed is not None:
            whole("seed", self.seed)

    @property
    def takes_targets(self) -> bool:
        """Whether it can aim at a class."""
        return True

    @property
    def needs_gradients(self) -> bool:
        """Whether it follows gradients of the network."""
        return True

    @property
    def averages(self) -> bool:
        """Whether it averages over passes, and so is made for networks that draw at random."""
        return False

    @property
    @abstractmethod
    def passes_per_sample(self) -> int:
        """Most gradient passes a sample can take; the chunk is chosen by it."""

    @abstractmethod
    def stream(self, model: Model, batches: Iterable[Batch]) -> Iterator[Outcome]:
        """Attack labelled batches and hand out outcomes in the order in which they finish."""

    @property
    def drawn_seed(self) -> int:
        """The seed in force: the attack's own, else the session's."""
        return current_settings().seed if self.seed is None else self.seed

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        values = hyperparameters(self)
        if not isinstance(self.eps, Tensor):
            values["eps"] = float(self.eps)
        return {"attack": self.name} | values | {"seed": self.drawn_seed}

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        return f"{self.name}, {self.most_passes()}, seed {self.drawn_seed}"

    def most_passes(self) -> str:
        """Return in words how many passes a sample takes at most."""
        passes = self.passes_per_sample
        return "1 pass at most" if passes == 1 else f"{passes} passes at most"

    def __call__(
        self,
        classifier: Any,
        inputs: Any,
        labels: Any = None,
        *,
        targets: Any = None,
        ids: Sequence[Hashable] | None = None,
    ) -> AttackResult:
        """Attack every sample.

        Args:
            classifier: The `Classifier` under attack.
            inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
            labels: `(N,)` int64; brought by the loader where `inputs` is one.
            targets: Class to reach, one for all or `(N,)`; None for any class but the label.
            ids: One unique id per sample, which random draws are keyed with; default: its place.

        Returns:
            The adversarial inputs, and whether each reached its goal.

        Raises:
            InputTypeError: If something has the wrong type.
            InputError: If a value is refused.
            ModelError: If the module breaks what a classifier promises.
        """
        with running(
            classifier,
            inputs,
            labels,
            ids=ids,
            targets=targets,
            seed=self.drawn_seed,
            needs_labels=True,
            may_draw=self.averages,
        ) as run:
            self.check_for(run, targeted=targets is not None)
            run.tune(self.passes_per_sample, gradients=self.needs_gradients)
            outcomes = self.stream(run.model, run.samples)
            return _gathered(self.name, outcomes, run.like.device, run.model)

    def radius(self, positions: list[int]) -> Tensor:
        """Return the radius of each sample's ball, `(n,)`, on the host."""
        return radii(self.eps, positions)

    def classes_needed(self, *, targeted: bool) -> int:
        """Return the fewest classes the attack is defined for."""
        return 2

    def check_for(self, run: Run, *, targeted: bool = False) -> None:
        """Refuse a classifier, samples or a goal that the attack is not made for.

        Raises:
            InputError: If there is not one radius per sample, if one exceeds the range of the
                inputs, if there are too few classes, or if the attack takes no targets.
            ModelError: If the attack follows gradients and the module gives none.
        """
        check_reach(self.eps, self.norm, run)
        if targeted and not self.takes_targets:
            raise InputError(
                f"targets must be left out for {self.name!r}, whose goal is any class but the "
                "label; 'apgd_ce', 'apgd_dlr', 'square' and 'cw' take them"
            )
        classes, needed = run.model.num_classes or 2, self.classes_needed(targeted=targeted)
        if classes < needed:
            raise InputError(
                f"the attack {self.name!r} needs at least {needed} classes, but the classifier has "
                f"{classes}; {self.with_fewer_classes}"
            )
        if self.needs_gradients:
            run.require_gradients(f"attack {self.name!r}", "attack='square'")


def radii(eps: float | Tensor, positions: Sequence[int]) -> Tensor:
    """Return the radius of the ball around each sample, `(n,)`, on the host.

    Args:
        eps: One radius for all samples, or one each, on the host.
        positions: Place of each sample in the data.
    """
    if isinstance(eps, Tensor):
        return eps[torch.tensor(positions, dtype=torch.int64)]
    return torch.full((len(positions),), float(eps), dtype=torch.float64)


def check_reach(eps: float | Tensor, norm: Norm, run: Run) -> None:
    """Refuse an eps that does not go with the samples or the range of the inputs.

    Raises:
        InputError: If there is not one radius per sample, or one exceeds the range.
    """
    total = run.samples.total
    if isinstance(eps, Tensor) and eps.shape != (total,):
        wanted = "" if total is None else f" or a tensor of shape ({total},)"
        raise InputError(f"eps must be one number{wanted}, but {describe(eps)} came")
    width = widest(run, norm)
    largest = float(eps.max()) if isinstance(eps, Tensor) else float(eps)
    if beyond(largest, width):
        reach = "range of the inputs" if norm == "linf" else "diagonal of their range"
        raise InputError(
            f"eps must not exceed the {reach}, {width:g}, but {largest:g} came; "
            "eps is measured in the units of the inputs, before normalisation"
        )


def widest(run: Run, norm: Norm) -> float:
    """Return the greatest distance of two inputs: the range, or the diagonal of the ranges."""
    low, high = run.samples.bounds
    width = max(above - below for below, above in zip(low, high, strict=True))
    return width if norm == "linf" else width * math.sqrt(run.like[0].numel())


def check_radii(eps: Any, *, fewest: int = 1, positive: bool = False) -> tuple[float, ...]:
    """Return radii if there are enough and they rise.

    Args:
        eps: What came.
        fewest: How many are enough, 1 or 2.
        positive: Whether 0 is refused.

    Raises:
        InputTypeError: If it is no sequence of numbers.
        InputError: If they are too few, negative or do not rise.
    """
    if not isinstance(eps, Sequence) or isinstance(eps, str):
        raise InputTypeError(f"eps must be a sequence of numbers, but {describe(eps)} came")
    found = tuple(number("eps", each, low=0, low_open=positive) for each in eps)
    if len(found) < fewest or any(high <= low for low, high in itertools.pairwise(found)):
        wanted = "one number" if fewest == 1 else "two numbers"
        raise InputError(f"eps must be {wanted} or more that rise, but {describe(eps)} came")
    return found


def require_attack(attack: Any) -> Attack:
    """Return what must be an attack.

    Raises:
        InputTypeError: If it is none.
    """
    if not isinstance(attack, Attack):
        raise InputTypeError(
            f"attack must be an attack, such as attacks.get('mim'), but {describe(attack)} came"
        )
    return attack


def check_eps(eps: Any) -> None:
    """Refuse an eps that is negative or no number, or not a tensor of such.

    Raises:
        InputTypeError: If it is neither a number nor a floating tensor.
        InputError: If it is negative, NaN or infinite.
    """
    if not isinstance(eps, Tensor):
        number("eps", eps, low=0)
    elif eps.ndim != 1 or not eps.numel() or not eps.dtype.is_floating_point:
        raise InputError(
            f"eps must be one number or a floating (N,) tensor, but {describe(eps)} came"
        )
    elif not bool((torch.isfinite(eps) & (eps >= 0)).all()):
        raise InputError("eps must be finite and at least 0 for every sample")


def _gathered(
    name: str, outcomes: Iterator[Outcome], device: torch.device, model: Model
) -> AttackResult:
    """Join the outcomes of an attack in the order of the data."""
    found = list(outcomes)
    order = torch.tensor([place for each in found for place in each.positions]).argsort()

    def ordered(parts: list[Tensor]) -> Tensor:
        joined = torch.cat([part.to(device) for part in parts])
        return joined.index_select(0, order.to(device))

    def listed(name: str) -> Tensor:
        return torch.tensor([value for each in found for value in getattr(each, name)])[order]

    trajectory = None
    if found[0].path:
        points, gradients, directions = (
            ordered([each.path[name] for each in found]) for name in PATH
        )
        trajectory = Trajectory(points, gradients[:, :-1], directions[:, :-1], listed("steps"))
    breakers = [(each.by or name) if won else None for each in found for won in each.success]
    return AttackResult(
        adversarial=ordered([each.points for each in found]),
        success=listed("success").to(device),
        trajectory=trajectory,
        passes=listed("passes"),
        cost=model.passes.to_dict(),
        broken_by=tuple(breakers[place] for place in order.tolist()),
        costs={each: spent.to_dict() for each, spent in model.spent(name).items()},
    )
