"""What every attack on explanations shares: arguments, goal, result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pytest_triguard import attributions, metrics
from pytest_triguard.attacks.base import check_eps, check_reach, radii, widest
from pytest_triguard.attribution_attacks.search import Aim, Outcome, Steps, attacked
from pytest_triguard.attributions import Attribution
from pytest_triguard.engine.equality import hyperparameters
from pytest_triguard.engine.geometry import NORMS, Norm
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.facts import Facts
from pytest_triguard.metrics import PairMetric
from pytest_triguard.running import Run, running
from pytest_triguard.settings import current_settings
from pytest_triguard.validation import describe, flag, number, one_of, whole


@dataclass(frozen=True)
class AttributionAttackResult:
    """What an attack on explanations found.

    Attributes:
        adversarial: `(N, C, H, W)` inside ball and bounds, on the device of the inputs: of all
            iterates that keep the prediction the one whose map is worst, or the sample itself.
        success: `(N,)` bool, whether the map there is worse than the sample's by the measure and
            by more than `least_change`, while the prediction is the same.
        measure: `(N,)` the measure between the maps of the sample and of `adversarial`; NaN where
            it is undefined.
        measured: What the measure is, in words.
        kept: `(N,)` bool, whether any iterate kept the prediction.
        flat: `(N,)` bool, whether the gradients of the network had no derivative at any iterate,
            so that the attack had nothing to go by; `manipulate` looks at the first of each start.
        distance: `(N,)` distance of `adversarial` from the sample in the norm of the attack.
        targets: `(N,)` int64, the class whose explanation was attacked.
        cost: Forward and backward passes in all, counted in samples; the derivative of a gradient
            counts as one more backward pass.
    """

    adversarial: Tensor
    success: Tensor
    measure: Tensor
    measured: str
    kept: Tensor
    flat: Tensor
    distance: Tensor
    targets: Tensor
    cost: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class AttributionAttack(ABC):
    """An attack on the explanation of a prediction, inside a ball around each sample.

    What is attacked is the share of each pixel in the map, `S = H W a / sum(a)` with `a` the
    absolute attribution summed over channels. Its derivative is taken on the network with softplus
    in place of ReLU; every iterate is judged on the network itself, and of those that keep the
    prediction the worst is returned.

    Args:
        attribution: Name of the attribution under attack, or the attribution itself, or None for
            `gradient_x_input`, and in an assertion for the one that is asserted about.
        eps: Radius of the ball in input units, one for all samples or one each, `(N,)`; None for
            no bound but the valid range.
        norm: `"linf"` or `"l2"`.
        steps: Number of steps per start.
        step_size: Length of a step in input units, or None for the method's own rule.
        restarts: Number of starts.
        random_start: Whether a start is drawn uniformly from the ball or is the sample itself.
        beta: Sharpness of the softplus; a pair grows geometrically from the first step to the
            last; None takes derivatives of the network as it is.
        criterion: Metric of two maps, or its name, by which the worst iterate is chosen; None for
            the attack's own measure, and in an assertion for the metric that is asserted about.
        least_change: Change of the measure against the sample's own that a success exceeds.
        seed: Seed of random draws, or None for the session's.
    """

    attribution: str | Attribution | None = None
    eps: float | Tensor | None = 8 / 255
    norm: Norm = "linf"
    steps: int = 100
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = False
    beta: float | tuple[float, float] | None = 10.0
    criterion: str | PairMetric | None = None
    least_change: float = 0.0
    seed: int | None = None

    name: ClassVar[str]
    facts: ClassVar[Facts]
    larger_is_worse: ClassVar[bool]
    """Whether the attack's own measure grows as the explanation gets worse."""
    weighs_outputs: ClassVar[bool] = False
    """Whether `on_outputs` is ascended beside the map."""

    def __post_init__(self) -> None:
        if self.eps is not None:
            check_eps(self.eps)
        if isinstance(self.eps, Tensor):
            object.__setattr__(self, "eps", self.eps.detach().to("cpu", copy=True))
        one_of("norm", self.norm, NORMS)
        whole("steps", self.steps, low=1)
        if self.step_size is not None:
            number("step_size", self.step_size, low=0)
        whole("restarts", self.restarts, low=1)
        if self.restarts > 1 and not flag("random_start", self.random_start):
            raise InputError(
                f"restarts={self.restarts} needs random_start=True: without it every start is alike"
            )
        flag("random_start", self.random_start)
        check_beta(self.beta)
        number("least_change", self.least_change, low=0)
        if self.seed is not None:
            whole("seed", self.seed)
        object.__setattr__(self, "attribution", _as_attribution(self.attribution))
        object.__setattr__(self, "criterion", _as_criterion(self.criterion))

    @abstractmethod
    def aim(self, maps: Tensor, batch: Batch) -> Aim:
        """Return what is fixed by the maps of the samples, `(n, C, H, W)`, each `(n, ...)`."""

    @abstractmethod
    def objective(self, shares: Tensor, aim: Aim) -> Tensor:
        """Return what is ascended, `(n,)`, from shares `(n, H, W)` of mean 1; differentiable."""

    @property
    @abstractmethod
    def measured(self) -> str:
        """What the attack's own measure is, in words."""

    @abstractmethod
    def own_measure(self, maps: Tensor, aim: Aim) -> Tensor:
        """Return the attack's own measure of maps `(n, C, H, W)`, `(n,)`, NaN where undefined."""

    @property
    def explained(self) -> Attribution:
        """The attribution under attack."""
        if isinstance(self.attribution, Attribution):
            return self.attribution
        return attributions.get("gradient_x_input", seed=self.seed)

    @property
    def drawn_seed(self) -> int:
        """The seed in force: the attack's own, else the session's."""
        return current_settings().seed if self.seed is None else self.seed

    @property
    def passes_per_sample(self) -> int:
        """Gradient passes per sample, derivatives of gradients counted once more."""
        return 3 * self.steps * self.restarts * self.explained.passes_per_sample

    def default_step(self, eps: Tensor) -> Tensor:
        """Return the step of each sample where the user named none: eps / 8."""
        return eps / 8

    def steps_of(self, model: Model, batch: Batch, eps: Tensor) -> Steps:
        """Return how the iterates of a block move: by steepest ascent."""
        size = self.step_size
        length = self.default_step(eps) if size is None else torch.full_like(eps, size)
        return Steps(batch.inputs, eps, self.norm, model.bounds(batch.inputs.dtype), length)

    def on_outputs(self, logits: Tensor, before: Tensor) -> Tensor:
        """Return what is ascended of the logits `(n, K)`, and of those of the samples, `(n,)`."""
        return logits.new_zeros(len(logits))

    def measure(self, maps: Tensor, aim: Aim) -> Tensor:
        """Return the criterion of maps `(n, C, H, W)`, `(n,)`, NaN where undefined."""
        if isinstance(self.criterion, PairMetric):
            return self.criterion(aim["maps"], maps)
        return self.own_measure(maps, aim)

    @property
    def worse_is_larger(self) -> bool:
        """Whether the criterion grows as the explanation gets worse."""
        if isinstance(self.criterion, PairMetric):
            return not self.criterion.similarity
        return self.larger_is_worse

    @property
    def criterion_in_words(self) -> str:
        """What the worst iterate is chosen by."""
        chosen = self.criterion
        return chosen.title if isinstance(chosen, PairMetric) else self.measured

    def beta_at(self, step: int) -> float | None:
        """Return the sharpness of the softplus at a step."""
        if not isinstance(self.beta, tuple):
            return self.beta
        first, last = self.beta
        return float(first * (last / first) ** (step / max(1, self.steps - 1)))

    def parameters(self) -> dict[str, Any]:
        """Return the hyperparameters as plain values, for records and messages."""
        values = hyperparameters(self)
        if isinstance(self.beta, tuple):
            values["beta"] = list(self.beta)
        if isinstance(self.criterion, PairMetric):
            values["criterion"] = self.criterion.parameters()
        values["attribution"] = self.explained.parameters()
        return {"attack": self.name} | values | {"seed": self.drawn_seed}

    def describe(self) -> str:
        """Return the method and its budget in words, for reports."""
        starts = "1 start" if self.restarts == 1 else f"{self.restarts} starts"
        if self.beta is None:
            smooth = "derivatives of the network as it is"
        else:
            sharp = self.beta if isinstance(self.beta, tuple) else (self.beta,)
            smooth = f"softplus of beta {' to '.join(f'{each:g}' for each in sharp)} for ReLU"
        return (
            f"{self.name}: {starts} of {self.steps} steps, {smooth}, the worst iterate by "
            f"{self.criterion_in_words} that keeps the prediction, seed {self.drawn_seed}"
        )

    def check_eps_for(self, run: Run) -> None:
        """Refuse an eps that does not go with the samples or the range of the inputs.

        Raises:
            InputError: If there is not one radius per sample, or one exceeds the range.
        """
        if self.eps is not None:
            check_reach(self.eps, self.norm, run)

    def stream(self, run: Run) -> Iterator[Outcome]:
        """Attack the samples of a run block by block; memory is bounded by the chunk."""
        eps = widest(run, self.norm) if self.eps is None else self.eps
        for block in Feed(run.samples, run.model.device).blocks(run.model.chunk.rows):
            radius = radii(eps, block.positions).to(run.model.device, block.inputs.dtype)
            yield attacked(run.model, block, self, radius)

    def __call__(
        self,
        classifier: Any,
        inputs: Any,
        targets: Any = None,
        *,
        ids: Sequence[Hashable] | None = None,
    ) -> AttributionAttackResult:
        """Attack the explanation of every sample.

        Args:
            classifier: The `Classifier` under attack.
            inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
            targets: Class explained, one for all or `(N,)`; None for the labels a loader brings,
                else the prediction. It is held fixed.
            ids: One unique id per sample, which random draws are keyed with; default: its place.

        Returns:
            The adversarial inputs, and how each of them changes the map.

        Raises:
            InputTypeError: If something has the wrong type.
            InputError: If a value is refused.
            ModelError: If the module breaks what a classifier promises, or cannot be
                differentiated twice.
        """
        with running(classifier, inputs, ids=ids, targets=targets) as run:
            self.check_eps_for(run)
            run.tune(self.passes_per_sample)
            return self._gathered(self.stream(run), run.like.device, run.model)

    def _gathered(
        self, outcomes: Iterator[Outcome], device: torch.device, model: Model
    ) -> AttributionAttackResult:
        names = ("points", "success", "measure", "kept", "flat", "distance", "targets")
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        broken = Broken()
        for outcome in outcomes:
            broken.add(outcome)
            for name, values in parts.items():
                values.append(getattr(outcome, name).to(device))
        broken.refuse(model)
        found = {name: torch.cat(values) for name, values in parts.items()}
        return AttributionAttackResult(
            adversarial=found.pop("points"),
            **found,
            measured=self.criterion_in_words,
            cost=model.passes.to_dict(),
        )


class Broken:
    """Notes which searches met NaN, and asks the device once."""

    def __init__(self) -> None:
        self._ids: list[Hashable] = []
        self._flags: list[Tensor] = []

    def add(self, outcome: Outcome) -> None:
        """Note the samples of a block."""
        self._ids += outcome.batch.ids
        self._flags.append(outcome.broken)

    def refuse(self, model: Model) -> None:
        """Raise if a search met NaN.

        Raises:
            ModelError: If one did; it names the sample.
        """
        for sample, flagged in zip(self._ids, torch.cat(self._flags).tolist(), strict=True):
            if flagged:
                raise ModelError(
                    f"the module {type(model.module).__name__} must give finite logits and "
                    "gradients inside the bounds, but the attack on the explanation of sample "
                    f"{sample!r} led to NaN"
                )


def check_beta(beta: Any) -> None:
    """Refuse a sharpness that is neither a positive number, nor a pair of them, nor None.

    Raises:
        InputTypeError: If it is of another type.
        InputError: If it is not positive.
    """
    if beta is None:
        return
    pair = beta if isinstance(beta, tuple) else (beta,)
    if isinstance(beta, tuple) and len(beta) != 2:
        raise InputTypeError(f"beta must be one number or a pair, but {describe(beta)} came")
    for each in pair:
        number("beta", each, low=0, low_open=True)


def _as_attribution(attribution: Any) -> Attribution | None:
    if attribution is None or isinstance(attribution, Attribution):
        return attribution
    if not isinstance(attribution, str):
        raise InputTypeError(
            f"attribution must be a name, an attribution or None, but {describe(attribution)} came"
        )
    return attributions.get(attribution)


def _as_criterion(criterion: Any) -> PairMetric | None:
    metric = metrics.get(criterion) if isinstance(criterion, str) else criterion
    if metric is None or isinstance(metric, PairMetric):
        return metric
    raise InputTypeError(
        f"criterion must be a metric of two maps, its name or None, but {describe(criterion)} came"
    )
