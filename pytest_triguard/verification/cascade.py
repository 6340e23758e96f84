"""The stages of a verifier, cheapest first, each on the samples still open.

First the samples themselves are predicted and bounded by intervals: three forward passes, one look
at the outcome. What is neither misclassified nor proven is attacked: up to twenty forward and
backward passes. To attack before bounding would decide the same samples, and cost twenty passes for
each one that three can prove. Then come ever tighter and dearer bounds. Nothing that survives an
attack is called proven, and time that runs out leaves open what it leaves open.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_triguard.engine.devices import synchronize
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed, join
from pytest_triguard.errors import NotDifferentiable
from pytest_triguard.verification import judging
from pytest_triguard.verification.budget import Budget, BudgetSpent, Clock
from pytest_triguard.verification.domains import Domains
from pytest_triguard.verification.faithful import refuse_unfaithful
from pytest_triguard.verification.falsifier import falsifier
from pytest_triguard.verification.float32 import is_ieee
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import BOUNDS, FALSIFIERS, Bound, Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators import Unsupported
from pytest_triguard.verification.proof_tree import trees
from pytest_triguard.verification.regions import Region, holds
from pytest_triguard.verification.result import Decision, SampleVerdict, Stage
from pytest_triguard.verification.specification import Rows, Specification

_FIRST = "ibp"
"""The bound that is cheap enough to be run on every sample, whatever is predicted."""
_HELD = 4
"""Chunks of open samples that wait for the later stages at most."""
_CHECKED = 4
"""Samples at which the captured graph is held against the module."""


@dataclass(frozen=True)
class _Open:
    """Samples that are neither proven nor falsified yet.

    Attributes:
        batch: The samples.
        verdicts: What is known about each, and what each was charged so far.
    """

    batch: Batch
    verdicts: list[SampleVerdict]

    def pick(self, places: list[int]) -> _Open | None:
        """Return some of the samples, or None where there are none."""
        if not places:
            return None
        return _Open(self.batch.pick(places), [self.verdicts[place] for place in places])

    def left(self, verdicts: list[SampleVerdict]) -> _Open | None:
        """Return what is still open, after more is known."""
        places = [place for place, each in enumerate(verdicts) if each.status == "unknown"]
        return replace(self, verdicts=verdicts).pick(places)


class Cascade:
    """Runs stages over batches.

    Args:
        model: The network.
        stages: Names of the stages, after the prediction of the samples themselves.
        region: Where each sample is verified.
        specification: What is to be proven.
        budget: What may be spent.
        seed: Seed of what is drawn.
        rounded: Whether proofs are to hold for the module that rounds.
        keep: Whether the trees of proofs by search are kept.
        charged: Seconds that samples were charged before, by position.
    """

    def __init__(
        self,
        model: Model,
        stages: tuple[str, ...],
        region: Region,
        specification: Specification,
        budget: Budget,
        seed: int,
        *,
        rounded: bool = False,
        keep: bool = False,
        charged: Mapping[int, float] | None = None,
    ) -> None:
        self.model = model
        self.region = region
        self.specification = specification
        self.budget = budget
        self.seed = seed
        self.rounded = rounded
        self.keep = keep
        self.charged = charged or {}
        self.whole = Clock.of(budget.total)
        self.first = BOUNDS.get(_FIRST) if stages[:1] == (_FIRST,) else None
        self.later = stages if self.first is None else stages[1:]
        self.network: Network | None = None
        self.own_dtype = False
        self.refusal = ""

    def decide(self, batches: Iterable[Batch]) -> Iterator[Decision]:
        """Hand out decisions, a few samples at a time, in the order in which they are reached.

        Memory is bounded by the chunk: what is left open waits until there is enough of it for
        the later stages, at most a few chunks.
        """
        rows = self.model.chunk.rows
        waiting: list[_Open] = []
        for block in Feed(self._targeted(batches), self.model.device).blocks(rows):
            if self.network is None and not self.refusal:
                self._capture(block.rows(slice(0, _CHECKED)))
            decision, left = self._first(block)
            yield decision
            if left is not None:
                waiting.append(left)
            if sum(len(each.batch) for each in waiting) >= _HELD * rows:
                yield from self._rest(waiting)
                waiting = []
        if waiting:
            yield from self._rest(waiting)

    def _targeted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield replace(batch, targets=self.specification.targeted(batch))

    def _capture(self, block: Batch) -> None:
        """Capture the module, and hold the graph against it on a few samples and their corners."""
        try:
            network = Network(self.model, block.inputs.dtype, rounded=self.rounded)
            region = self.region.around(self.model, block, network.dtype)
            ends = [end.to(block.inputs.dtype) for end in (region.lower, region.upper)]
            refuse_unfaithful(network, self.model, torch.cat([block.inputs, *ends]))
        except Unsupported as refusal:
            self.refusal = str(refusal)
        else:
            self.network = network
            ieee = network.given != torch.float32 or is_ieee(self.model.device)
            self.own_dtype = ieee and self.specification.fits(network.given)

    # --- first stages: prediction and intervals -------------------------------------------------

    def _first(self, block: Batch) -> tuple[Decision, _Open | None]:
        """Predict and bound a block; return what that decides, and what is left open."""
        stages = [Stage("clean", len(block))]
        if self.network is not None and self.first is not None:
            stages.append(Stage(self.first.name, len(block)))
        parts = self.model.chunk.attempt(
            lambda part: self._judged(block.rows(part), stages), len(block)
        )
        *columns, again = torch.cat(parts, dim=1).tolist()
        name = "" if self.first is None else self.first.name
        verdicts = [
            replace(each, seconds=self.charged.get(each.position, 0.0))
            for each in judging.verdicts(block, columns, name, self.refusal)
        ]
        verdicts = _charged(verdicts, sum(stage.seconds for stage in stages))
        left_open = [each.status == "unknown" for each in verdicts]
        places = [place for place, each in enumerate(left_open) if each and again[place]]
        if places:
            verdicts = self._again(block, verdicts, places, stages[1])
        for stage in stages:
            stage.count(verdicts)
        left = _Open(block, verdicts).left(verdicts)
        if left is None or not self.later:
            return Decision(verdicts, stages), None
        return Decision([each for each in verdicts if each.status != "unknown"], stages), left

    @torch.no_grad()
    def _judged(self, block: Batch, stages: list[Stage]) -> Tensor:
        """Return code, margin, slack, label and whether to bound again, `(5, n)`, in one read."""
        with self._spending(stages[0]):
            logits = self.model.logits(block.inputs)
            rows = self._rows(block, logits)
            broken = rows.violated(logits)
        code = torch.zeros_like(logits[:, 0], dtype=rows_dtype(self.network, logits))
        if self.network is None:
            code = code + judging.UNSUPPORTED
        margin, slack = torch.full_like(code, -torch.inf), torch.full_like(code, torch.inf)
        again = torch.zeros_like(code)
        if self.network is not None and self.first is not None:
            network = self.network.own if self.own_dtype else self.network
            with self._spending(stages[1]):
                region = self.region.around(self.model, block, self.network.dtype)
                region = region.converted(network.dtype)
                own = self.specification.of(block, logits.shape[1], network.dtype)
                found = self.first.margins(network, region, own, Effort())
                code, margin, slack = judging.judge(network, found, own, logits)
                if network is not self.network:
                    again = judging.worth_retrying(network, found, region, margin, slack)
                self.model.passes.forward += found.forward
        code = torch.where(broken, judging.FALSIFIED, code)
        labels = code if block.labels is None else block.labels
        columns = [code, margin, slack, labels, again]
        return torch.stack([each.to(margin.dtype) for each in columns]).cpu()

    def _again(
        self, block: Batch, known: list[SampleVerdict], places: list[int], stage: Stage
    ) -> list[SampleVerdict]:
        """Return verdicts after some samples were bounded again, in float64."""
        stage.retried += len(places)
        before = stage.seconds
        with self._spending(stage):
            parts = self.model.chunk.attempt(
                lambda part: self._exactly(block.pick(places[part])), len(places)
            )
        after = list(known)
        retried = _charged([known[place] for place in places], stage.seconds - before)
        columns = torch.cat(parts, dim=1).tolist()
        for place, each, code, margin, slack in zip(places, retried, *columns, strict=True):
            after[place] = judging.updated(each, int(code), margin, slack, stage.name)
        return after

    @torch.no_grad()
    def _exactly(self, block: Batch) -> Tensor:
        """Return code, margin and slack of each sample by the first bound in float64, `(3, n)`."""
        if self.network is None or self.first is None:
            raise TypeError("only what was bounded is bounded again")
        logits = self.model.logits(block.inputs)
        rows = self._rows(block, logits)
        region = self.region.around(self.model, block, self.network.dtype)
        found = self.first.margins(self.network, region, rows, Effort())
        self.model.passes.forward += found.forward
        return torch.stack(judging.judge(self.network, found, rows, logits)).cpu()

    def _rows(self, block: Batch, logits: Tensor) -> Rows:
        return self.specification.of(block, logits.shape[1], rows_dtype(self.network, logits))

    # --- later stages ---------------------------------------------------------------------------

    def _rest(self, waiting: list[_Open]) -> Iterator[Decision]:
        """Take open samples through the later stages, each as long as its budget lasts."""
        left: _Open | None = _Open(
            join([each.batch for each in waiting]),
            [verdict for each in waiting for verdict in each.verdicts],
        )
        for name in self.later:
            if left is None:
                return
            over = [place for place, each in enumerate(left.verdicts) if self._over(each)]
            if over:
                why = f"the budget was spent before {name}"
                yield Decision([judging.because(left.verdicts[place], why) for place in over], [])
                left = left.pick(sorted(set(range(len(left.verdicts))) - set(over)))
            if left is None:
                return
            stage = Stage(name, len(left.batch))
            verdicts = (self._attacked if name in FALSIFIERS else self._bounded)(name, left, stage)
            stage.count(verdicts)
            left = left.left(verdicts)
            ran = [stage] if stage.samples else []
            yield Decision([each for each in verdicts if each.status != "unknown"], ran)
        if left is not None:
            yield Decision(left.verdicts, [])

    def _over(self, verdict: SampleVerdict) -> bool:
        seconds = self.budget.seconds
        return self.whole.over or (seconds is not None and verdict.seconds >= seconds)

    def _bounded(self, name: str, open_: _Open, stage: Stage) -> list[SampleVerdict]:
        """Bound what is open, a few samples at a time."""
        network, bound = self.network, BOUNDS.get(name)
        if network is None:
            raise TypeError("only what is captured can be bounded")
        found: list[SampleVerdict] = []
        step = min(bound.samples(network), self.model.chunk.rows)
        for start in range(0, len(open_.batch), step):
            part, before = slice(start, start + step), stage.seconds
            block, known = open_.batch.rows(part), open_.verdicts[part]
            with self._spending(stage):
                verdicts, shares = self._bounded_part(bound, network, block, known)
            found += _charged(verdicts, stage.seconds - before, shares)
        return found

    def _bounded_part(
        self,
        bound: Bound,
        network: Network,
        block: Batch,
        known: list[SampleVerdict],
    ) -> tuple[list[SampleVerdict], Sequence[float] | None]:
        """Bound some samples; time that runs out, or an operator without rule, leaves them open.

        Returns:
            Verdicts, and what each is to be charged by, if not equally.
        """
        effort, late = self._effort(known), f"the budget was spent in {bound.name}"
        try:
            effort.clock.check()
            with torch.no_grad():
                logits = self.model.logits(block.inputs)
                rows = self._rows(block, logits)
                region = self.region.around(self.model, block, network.dtype)
                found = bound.margins(network, region, rows, effort)
                self.model.passes.forward += found.forward
                self.model.passes.backward += found.backward
                columns = torch.stack(judging.judge(network, found, rows, logits)).tolist()
        except BudgetSpent:
            return [judging.because(each, late) for each in known], None
        except Unsupported as refusal:
            return [_uncovered(each, f"{bound.name}: {refusal}") for each in known], None
        after = [
            judging.updated(each, int(code), margin, slack, bound.name)
            for each, code, margin, slack in zip(known, *columns, strict=True)
        ]
        if found.cut is not None:
            after = [
                judging.because(each, late) if cut else each
                for each, cut in zip(after, found.cut, strict=True)
            ]
        if found.leaves is not None:
            after = _with_trees(after, found.leaves, bound.name)
        if found.points is not None:
            after = self._believed(
                block, after, _candidates(block, region, found.points), bound.name
            )
        return after, found.seconds

    def _effort(self, known: list[SampleVerdict]) -> Effort:
        """Return what may be spent on a group: what its own budgets and the whole one leave."""
        seconds = self.budget.seconds
        if seconds is None:
            return Effort(self.whole, self.budget, self.keep)
        left = tuple(max(0.0, seconds - each.seconds) for each in known)
        ends = [each.until for each in (Clock.of(sum(left)), self.whole) if each.until is not None]
        return Effort(Clock(min(ends)), self.budget, self.keep, left)

    def _attacked(self, name: str, open_: _Open, stage: Stage) -> list[SampleVerdict]:
        """Attack what is open; a success is predicted again before it is believed."""
        attack, without = falsifier(name, self.region, self.specification, self.seed)
        if attack is None:
            stage.samples = 0
            return [judging.because(each, without) for each in open_.verdicts]
        points, broken = {}, set()
        passes = dict.fromkeys(open_.batch.positions, 0)
        refusal = ""
        with self._spending(stage):
            try:
                for outcome in attack.stream(self.model, [open_.batch]):
                    for place, position in enumerate(outcome.positions):
                        passes[position] = outcome.passes[place]
                        if outcome.success[place]:
                            points[position] = outcome.points[place]
                        if outcome.broken[place]:
                            broken.add(position)
            except NotDifferentiable as error:  # bounds need no gradient of the module
                refusal = f": {error}"
            verdicts = self._believed(open_.batch, open_.verdicts, points, attack.name)
        shares = [passes[position] for position in open_.batch.positions]
        verdicts = _charged(verdicts, stage.seconds, shares)
        told = {
            False: f"found no counterexample{refusal}",
            True: "met a NaN, which decides nothing",
        }
        return [
            judging.because(each, f"{attack.name} {told[each.position in broken]}")
            for each in verdicts
        ]

    def _believed(
        self, batch: Batch, known: list[SampleVerdict], points: dict[int, Tensor], name: str
    ) -> list[SampleVerdict]:
        """Return verdicts after points, by position, were predicted again."""
        confirmed = self._confirmed(batch, points)
        return [
            replace(
                each,
                status="falsified",
                stage=name,
                reason=None,
                clean=confirmed[each.position],
                counterexample=points[each.position],
            )
            if each.position in confirmed and each.status == "unknown"
            else each
            for each in known
        ]

    @torch.no_grad()
    def _confirmed(self, batch: Batch, points: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the samples by position whose point is in the region and breaks the property."""
        places = [place for place, position in enumerate(batch.positions) if position in points]
        if not places or self.network is None:
            return {}
        broken = batch.pick(places)
        found = torch.stack([points[position] for position in broken.positions])
        logits = self.model.chunk.map(self.model.logits, found)
        inside = holds(self.region.around(self.model, broken, self.network.dtype), found)
        kept = (self._rows(broken, logits).violated(logits) & inside).tolist()
        return {
            position: broken.inputs[place]
            for place, position in enumerate(broken.positions)
            if kept[place]
        }

    @contextmanager
    def _spending(self, stage: Stage) -> Iterator[None]:
        """Book time and passes on a stage."""
        passes, start = self.model.passes.copy(), time.perf_counter()
        yield
        synchronize(self.model.device)
        stage.seconds += time.perf_counter() - start
        stage.forward += self.model.passes.forward - passes.forward
        stage.backward += self.model.passes.backward - passes.backward


def _charged(
    verdicts: list[SampleVerdict], seconds: float, shares: Sequence[float] | None = None
) -> list[SampleVerdict]:
    """Return verdicts of samples that share some seconds, equally or by what each took."""
    parts = shares if shares and sum(shares) > 0 else [1.0] * len(verdicts)
    unit = seconds / sum(parts) if parts else 0.0
    return [
        replace(each, seconds=each.seconds + unit * part)
        for each, part in zip(verdicts, parts, strict=True)
    ]


def _uncovered(verdict: SampleVerdict, refusal: str) -> SampleVerdict:
    """Return the verdict after a bound that does not know an operator: unknown if another does."""
    if verdict.reason is None:
        return replace(verdict, status="unsupported", reason=refusal)
    return judging.because(verdict, refusal)


def _with_trees(
    verdicts: list[SampleVerdict], leaves: list[Domains], name: str
) -> list[SampleVerdict]:
    """Return verdicts with the proof trees of what a search proved."""
    return [
        replace(each, trees=trees(leaves, place)) if each.stage == name else each
        for place, each in enumerate(verdicts)
    ]


def rows_dtype(network: Network | None, logits: Tensor) -> torch.dtype:
    """Return the dtype that margins are computed in."""
    return logits.dtype if network is None else network.dtype


def _candidates(block: Batch, region: Interval, points: Tensor) -> dict[int, Tensor]:
    """Return points in the dtype of the samples by position, without those that are NaN.

    The nearest number of that dtype may be outside a box that the point is at the end of.
    """
    there = (~points.isnan().flatten(1).any(1)).tolist()
    rounded = torch.minimum(
        torch.maximum(points.to(block.inputs.dtype), _inward(region.lower, block.inputs)),
        _inward(region.upper, block.inputs),
    )
    return {
        position: rounded[place] for place, position in enumerate(block.positions) if there[place]
    }


def _inward(end: Tensor, clean: Tensor) -> Tensor:
    """Return the ends of boxes around samples in the dtype of these, rounded to their side."""
    near = end.to(clean.dtype)
    beyond = (near.to(end.dtype) - end) * (end - clean) > 0
    return torch.where(beyond, torch.nextafter(near, clean), near)
