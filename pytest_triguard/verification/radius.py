"""The certified radius: how far around each sample a proof reaches, and where it cannot reach.

A proof at one radius holds at every smaller one, and a counterexample at every larger one, so both
are searched for by bisection, for all samples together, each at a radius of its own. Cheap bounds
come first; a dearer one only narrows what they left between a proof and a counterexample.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.running import running
from pytest_triguard.settings import current_settings
from pytest_triguard.validation import describe, number, one_of
from pytest_triguard.verification.budget import Budget, Clock
from pytest_triguard.verification.budget import parse as parse_budget
from pytest_triguard.verification.cascade import Cascade
from pytest_triguard.verification.curve import CertifiedAccuracy, curve
from pytest_triguard.verification.falsifier import ATTACK_STEPS
from pytest_triguard.verification.intervals import BALL_NORMS, BallNorm, lengths
from pytest_triguard.verification.ladder import Among, Anywhere, Bracket, Ladder
from pytest_triguard.verification.methods import FALSIFIERS, stages
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.regions import BallRegion
from pytest_triguard.verification.result import SampleVerdict, Stage, Tally
from pytest_triguard.verification.specification import Specification, check_classes, parse

SECONDS = 4.0
"""Seconds per sample where a search with several stages is given no budget."""

_SMALLEST = 1e-6
"""Smallest radius that is tried, as a share of the largest."""
_HELD = 4
"""Chunks of samples that are searched together."""
_SEARCHES = ("branch_and_bound",)
"""Stages that take what time there is, and less where the radius is smaller."""
_SHARE = 0.25
"""Share of what is left of a sample's time that one radius may take in a search: to fail takes all
of it."""
_REACH = 2.0
"""A dear bound tries at most this multiple of what is proven: failures cost more than proofs."""
_CHEAP = ("ibp", *FALSIFIERS)
"""Stages that fail as fast as they succeed."""
_SPENT = "the budget was spent"
_LENGTH = 1 + 1e-9
"""Pays for the rounding of a length."""


@dataclass(frozen=True)
class CertifiedRadius:
    """How far around each sample a proof reaches, in the order of the data.

    The largest radius at which a sample keeps its label lies between `radius` and `upper`.

    Attributes:
        radius: `(N,)` the largest radius that was proven; 0 where none was. In float64, on the
            host.
        upper: `(N,)` the smallest radius with a known counterexample; infinite where none is
            known, 0 where the sample itself is one. Likewise.
        counterexample: `(N, C, H, W)` an input within `upper`, up to the rounding of its own
            dtype, that breaks the property; NaN where none is known.
        correct: Whether each sample itself has the property: without one, that it is classified
            as its label.
        stage: Name of the stage that proved each radius; None where not even the sample itself
            is proven.
        broken_by: Name of the stage that found each counterexample, or None.
        margin: `(N,)` lower bound of the margin at `radius`; -inf without a proof.
        reason: What keeps `radius` from the largest or from `upper`, or None where nothing does.
        stages: What each stage did, every radius that it tried counted, and at what cost.
        norm: Norm of the balls.
        method: Name of the method.
        largest: The largest radius that was asked about.
        arithmetic: The arithmetic that the proofs hold for.
    """

    radius: Tensor
    upper: Tensor
    counterexample: Tensor
    correct: tuple[bool, ...]
    stage: tuple[str | None, ...]
    broken_by: tuple[str | None, ...]
    margin: Tensor
    reason: tuple[str | None, ...]
    stages: tuple[Stage, ...]
    norm: str
    method: str
    largest: float
    arithmetic: str

    def accuracy(self, eps: Iterable[float], *, confidence: float = 0.95) -> CertifiedAccuracy:
        """Return the accuracy that is certified, and that is not falsified, at some radii.

        Args:
            eps: Radii, none beyond `largest`.
            confidence: Two-sided confidence of the intervals.

        Raises:
            InputTypeError: If a radius is no number.
            InputError: If a radius is out of range, or the confidence is.
        """
        proven = [
            radius if stage is not None else -1.0
            for radius, stage in zip(self.radius.tolist(), self.stage, strict=True)
        ]
        return curve(proven, self.upper.tolist(), eps, self.largest, confidence)


def certified_radius(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    norm: str = "linf",
    method: str = "auto",
    largest: float | None = None,
    tolerance: float = 0.02,
    specification: Any = None,
    arithmetic: str = "real",
    budget: float | Budget | None = None,
) -> CertifiedRadius:
    """Search for the largest radius around each sample for which a proof is found.

    Args:
        classifier: The `Classifier`; its exact module is verified.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        norm: `"linf"`, `"l2"` or `"l1"`. The balls are cut by the classifier's bounds.
        method: A method of `verify`; its stages narrow the search one after the other.
        largest: The largest radius of interest, in input units; None for one that reaches all
            valid inputs.
        tolerance: Relative width, above 0 and below 1, at which a search ends. Radii below
            1e-6 of the largest are not told from 0.
        specification: What is to be positive, as in `verify`.
        arithmetic: `"real"` or `"float32"`, as in `verify`.
        budget: Seconds per sample for the whole search, a `Budget`, or None for the session's.
            Branch and bound may spend a quarter of what is left on one radius.

    Returns:
        Radii, counterexamples and reasons, sample by sample.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module breaks what a classifier promises.
    """
    number("tolerance", tolerance, low=0, low_open=True)
    if tolerance >= 1:
        raise InputError(f"tolerance must be below 1, but {tolerance:g} came")
    return _searched(
        classifier,
        inputs,
        labels,
        _Question(norm, method, largest, specification, arithmetic, budget, tolerance=tolerance),
    )


def certified_accuracy(
    classifier: Any,
    inputs: Any,
    labels: Any = None,
    *,
    eps: Iterable[float],
    norm: str = "linf",
    method: str = "auto",
    arithmetic: str = "real",
    budget: float | Budget | None = None,
    confidence: float = 0.95,
) -> CertifiedAccuracy:
    """Measure certified accuracy over eps; only the radii that are asked about are tried.

    `CertifiedRadius.accuracy` makes a curve of radii that are already known.

    Args:
        classifier: The `Classifier`; its exact module is verified.
        inputs: `(N, C, H, W)` floating tensor inside the bounds, or a Dataset or DataLoader.
        labels: `(N,)` int64; brought by the loader where `inputs` is one.
        eps: Radii in input units, in any order.
        norm: `"linf"`, `"l2"` or `"l1"`.
        method: A method of `verify`.
        arithmetic: `"real"` or `"float32"`, as in `verify`.
        budget: Seconds per sample for all radii together, a `Budget`, or None for the session's.
        confidence: Two-sided confidence of the intervals.

    Returns:
        How many samples are proven and falsified at each radius, with both rates.

    Raises:
        InputTypeError: If something has the wrong type.
        InputError: If a value is refused.
        ModelError: If the module breaks what a classifier promises.
    """
    radii = _radii(eps)
    question = _Question(norm, method, max(radii), None, arithmetic, budget, among=radii)
    return _searched(classifier, inputs, labels, question).accuracy(radii, confidence=confidence)


def _radii(eps: Any) -> list[float]:
    if isinstance(eps, Tensor):
        eps = eps.detach().flatten().tolist()
    if isinstance(eps, str) or not isinstance(eps, Iterable):
        raise InputTypeError(f"eps must be several radii, but {describe(eps)} came")
    radii = sorted({number("eps", each, low=0) for each in eps})
    if not radii:
        raise InputError("eps must be several radii, but none came")
    return radii


@dataclass(frozen=True)
class _Question:
    """The arguments of a search."""

    norm: str
    method: str
    largest: float | None
    specification: Any
    arithmetic: str
    budget: float | Budget | None
    tolerance: float = 0.0
    among: Sequence[float] | None = None


@dataclass
class _Known:
    """What is known about one sample."""

    radius: float = 0.0
    upper: float = math.inf
    example: Tensor | None = None
    stage: str | None = None
    broken_by: str | None = None
    margin: float = -math.inf
    reason: str | None = None
    spent: float = 0.0


@dataclass
class _Search:
    """Searches radii for groups of samples.

    Attributes:
        model: The network.
        stages: Names of the stages, cheapest first.
        norm: Norm of the balls.
        specification: What is to be proven.
        largest: The largest radius.
        ladder: Which radii may be tried.
        budget: What may be spent.
        seed: Seed of the attacks.
        rounded: Whether proofs are to hold for the module that rounds.
        tally: What was spent so far, by stage.
    """

    model: Model
    stages: tuple[str, ...]
    norm: BallNorm
    specification: Specification
    largest: float
    ladder: Ladder
    budget: Budget
    seed: int
    rounded: bool
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.whole = Clock.of(self.budget.total)
        self.network: Network | None = None

    def run(self, batch: Batch) -> list[_Known]:
        """Return what is known about samples after every stage looked at what is open."""
        known = [_Known() for _ in range(len(batch))]
        bounds = [name for name in self.stages if name not in FALSIFIERS]
        self._tried(bounds[0], batch, known, dict.fromkeys(range(len(batch)), 0.0))
        for name in self.stages:
            self._narrow(name, batch, known)
        for each in known:
            if self._settled(each):
                each.reason = None
        return known

    def _settled(self, known: _Known) -> bool:
        """Return whether no radius is left that could be tried."""
        end = min(known.upper, self.largest)
        tested = known.upper <= self.largest
        proven = known.stage is not None
        return proven and self.ladder.next(Bracket(known.radius, end, tested), math.inf) is None

    def _narrow(self, name: str, batch: Batch, known: list[_Known]) -> None:
        """Let one stage narrow what is between proof and counterexample."""
        reach = math.inf if name in _CHEAP else _REACH
        brackets = {
            place: Bracket(
                each.radius, min(each.upper, self.largest), tested=each.upper <= self.largest
            )
            for place, each in enumerate(known)
            if each.upper > 0
        }
        while brackets:
            wanted = {}
            for place, bracket in brackets.items():
                radius = self.ladder.next(bracket, reach)
                if radius is not None and not self._spent(known[place], name):
                    wanted[place] = radius
            brackets = {place: brackets[place] for place in wanted}
            if not wanted:
                return
            for place, verdict in self._tried(name, batch, known, wanted).items():
                _moved(brackets[place], verdict, wanted[place], known[place], name)
                # To bound a smaller radius takes as long, but for a search.
                late = _SPENT in (verdict.reason or "") and name not in _SEARCHES
                if late or verdict.status == "unsupported":
                    del brackets[place]

    def _spent(self, known: _Known, name: str) -> bool:
        """Return whether a sample's budget is spent, and note it."""
        seconds = self.budget.seconds
        over = self.whole.over or (seconds is not None and known.spent >= seconds)
        if over and _SPENT not in (known.reason or ""):
            known.reason = f"{_SPENT} in {name}"
        return over

    def _tried(
        self, name: str, batch: Batch, known: list[_Known], wanted: dict[int, float]
    ) -> dict[int, SampleVerdict]:
        """Ask one stage about samples at radii, by place; note what it says."""
        places = list(wanted)
        part = batch.pick(places)
        radii = torch.zeros(max(part.positions) + 1, dtype=torch.float64)
        for place, position in zip(places, part.positions, strict=True):
            radii[position] = wanted[place]
        spent = [known[place].spent for place in places]
        found = self._verified(name, part, radii, spent)
        verdicts = {}
        for place, position in zip(places, part.positions, strict=True):
            verdict = verdicts[place] = found[position]
            known[place].spent += verdict.seconds
            self._note(known[place], verdict, batch.inputs[place], wanted[place])
            if verdict.status in ("unknown", "unsupported"):
                told = verdict.reason or "nothing is decided"
                known[place].reason = told if name in told else f"{name}: {told}"
        return verdicts

    def _verified(
        self, name: str, part: Batch, radii: Tensor, spent: list[float]
    ) -> dict[int, SampleVerdict]:
        """Return verdicts by position, with what each sample was charged."""
        left, charged = None, dict.fromkeys(part.positions, 0.0)
        if self.budget.seconds is not None:
            share = _SHARE if name in _SEARCHES else 1.0
            left = max(share * (self.budget.seconds - min(spent)), 1e-9)
            charged = {
                position: share * (each - min(spent))
                for position, each in zip(part.positions, spent, strict=True)
            }
        total = None
        if self.whole.until is not None:
            total = max(self.whole.until - time.perf_counter(), 1e-9)
        cascade = Cascade(
            self.model,
            (name,),
            BallRegion(radii, self.norm),
            self.specification,
            Budget(seconds=left, total=total, domains=self.budget.domains, steps=self.budget.steps),
            self.seed,
            rounded=self.rounded,
            charged=charged,
        )
        cascade.network = self.network
        verdicts = {}
        for decision in cascade.decide([part]):
            self.tally.add(decision)
            for each in decision.verdicts:
                own = each.seconds - charged[each.position]
                verdicts[each.position] = replace(each, seconds=own)
        self.network = cascade.network
        return verdicts

    def _note(self, known: _Known, verdict: SampleVerdict, clean: Tensor, radius: float) -> None:
        """Keep what a verdict adds to what is known."""
        if verdict.status == "proven" and (known.stage is None or radius > known.radius):
            known.radius, known.stage, known.margin = radius, verdict.stage, verdict.margin
        elif verdict.status == "falsified" and verdict.counterexample is not None:
            length = min(radius, self._length(verdict.counterexample, clean))
            if length < known.upper:
                known.upper, known.broken_by = length, verdict.stage
                known.example = verdict.counterexample

    def _length(self, point: Tensor, clean: Tensor) -> float:
        """Return how far a point is from a sample, rounded up."""
        offset = (point.cpu().double() - clean.cpu().double()).unsqueeze(0)
        return float(lengths(offset, self.norm)) * _LENGTH


def _moved(
    bracket: Bracket, verdict: SampleVerdict, radius: float, known: _Known, name: str
) -> None:
    """Narrow a bracket after a verdict; what survives an attack is where the attack ends."""
    if verdict.status == "proven" or (name in FALSIFIERS and verdict.status == "unknown"):
        bracket.low = radius
    else:
        bracket.high, bracket.tested = min(radius, known.upper), True


def _searched(classifier: Any, inputs: Any, labels: Any, asked: _Question) -> CertifiedRadius:
    """Search for all samples, a few chunks at a time."""
    settings = current_settings()
    wanted, chosen = parse(asked.specification), stages(asked.method)
    one_of("norm", asked.norm, BALL_NORMS)
    one_of("arithmetic", asked.arithmetic, ("real", "float32"))
    given = settings.budget if asked.budget is None else asked.budget
    limits = parse_budget(given, SECONDS if len(chosen) > 1 else None)
    known: list[_Known] = []
    with running(classifier, inputs, labels, needs_labels=wanted.needs_labels) as run:
        run.require_one_each("specification", wanted.targets)
        if run.model.num_classes is not None:
            check_classes(wanted, run.model.num_classes)
        largest = _largest(asked, run.model, run.like)
        ladder: Ladder = Anywhere(asked.tolerance, _SMALLEST * largest)
        if asked.among is not None:
            ladder = Among([each for each in asked.among if each > 0])
        run.tune(ATTACK_STEPS if set(FALSIFIERS) & set(chosen) else 2)
        search = _Search(
            run.model,
            chosen,
            asked.norm,  # type: ignore[arg-type]
            wanted,
            largest,
            ladder,
            limits,
            settings.seed,
            asked.arithmetic == "float32",
        )
        for group in Feed(run.samples, run.model.device).blocks(_HELD * run.model.chunk.rows):
            known += search.run(group)
        return _gathered(known, search, run.like, asked)


def _largest(asked: _Question, model: Model, like: Tensor) -> float:
    """Return the largest radius: what was asked for, at most one that reaches all valid inputs.

    Raises:
        InputError: If it is not above 0 or, in the L-inf norm, beyond the range of the inputs.
    """
    low, high = (end.cpu() for end in model.bounds(torch.float64))
    widths = (high - low).expand(1, *like.shape[1:])
    everything = float(lengths(widths, asked.norm))  # type: ignore[arg-type]
    if asked.largest is None:
        return everything
    name = "largest" if asked.among is None else "eps"
    number(name, asked.largest, low=0, low_open=asked.among is None)
    if asked.largest > everything * (1 + 1e-6):
        raise InputError(
            f"{name} must not exceed {everything:g}, which reaches all valid inputs, but "
            f"{asked.largest:g} came; it is measured in the units of the inputs, before "
            "normalisation"
        )
    return float(asked.largest)


def _gathered(
    known: list[_Known], search: _Search, like: Tensor, asked: _Question
) -> CertifiedRadius:
    """Join what is known in the order of the data."""
    examples = like.new_full((len(known), *like.shape[1:]), torch.nan)
    for place, each in enumerate(known):
        if each.example is not None:
            examples[place] = each.example.to(like.device)
    broken = "misclassified" if asked.specification is None else "the sample breaks the property"

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(each, name) for each in known], dtype=torch.float64)

    return CertifiedRadius(
        radius=column("radius"),
        upper=column("upper"),
        counterexample=examples,
        correct=tuple(each.broken_by != "clean" for each in known),
        stage=tuple(each.stage for each in known),
        broken_by=tuple(each.broken_by for each in known),
        margin=column("margin"),
        reason=tuple(broken if each.broken_by == "clean" else each.reason for each in known),
        stages=search.tally.stages,
        norm=asked.norm,
        method=asked.method,
        largest=search.largest,
        arithmetic=asked.arithmetic,
    )
