"""The stages of a verifier, cheapest first, each on the samples still open.

First the samples themselves are predicted and bounded: three forward passes, one look at the
outcome. What is neither misclassified nor proven is attacked: up to twenty forward and backward
passes. To attack before bounding would decide the same samples, and cost twenty passes for each
one that three can prove. Nothing that survives an attack is called proven.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_triguard import attacks
from pytest_triguard.attacks import Attack
from pytest_triguard.engine.devices import synchronize
from pytest_triguard.engine.geometry import NORMS
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.samples import Batch, Feed, join
from pytest_triguard.verification.methods import BOUNDS, Plan
from pytest_triguard.verification.network import Network, outside, refuse_unfaithful
from pytest_triguard.verification.operators import Unsupported
from pytest_triguard.verification.regions import Region, holds
from pytest_triguard.verification.result import Decision, SampleVerdict, Stage, Status
from pytest_triguard.verification.specification import Rows, Specification

SLACK: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float64: 1e-13}
"""What a margin has to exceed for a proof, by the module's dtype and relative to the largest
magnitude of a logit (at least 1): the module that runs rounds, the bound is on the one that does
not."""

ATTACK_STEPS = 20
"""Steps of the attack that tries to falsify."""

_CLEAN = "clean"
_OPEN, _PROVEN, _FALSIFIED, _NOT_FINITE, _STRAY, _UNSUPPORTED = range(6)
_STATUS: dict[int, Status] = {
    _OPEN: "unknown",
    _PROVEN: "proven",
    _FALSIFIED: "falsified",
    _NOT_FINITE: "unknown",
    _STRAY: "unsupported",
    _UNSUPPORTED: "unsupported",
}
_REASONS = {
    _OPEN: "the bound is not above the slack",
    _NOT_FINITE: "the bound is not finite",
    _STRAY: "the module's own logits are outside their bounds: the graph is not the module",
}
_HELD = 4
"""Chunks of open samples that wait for the attack at most."""
_CHECKED = 4
"""Samples at which the captured graph is held against the module."""


@dataclass(frozen=True)
class _Open:
    """Samples that are neither proven nor falsified yet, and what is known about each."""

    batch: Batch
    verdicts: list[SampleVerdict]


class Cascade:
    """Runs the stages of a plan over batches.

    Args:
        model: The network.
        plan: The stages.
        region: Where each sample is verified.
        specification: What is to be proven.
        budget: Seconds per sample, looked at between the stages, or None.
        seed: Seed of the attack.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        region: Region,
        specification: Specification,
        budget: float | None,
        seed: int,
    ) -> None:
        self.model = model
        self.region = region
        self.specification = specification
        self.budget = budget
        self.bound = BOUNDS.get(plan.bound)
        self.attack, self.without = _falsifier(plan, region, specification, seed)
        self.network: Network | None = None
        self.refusal = ""

    def decide(self, batches: Iterable[Batch]) -> Iterator[Decision]:
        """Hand out decisions, a few samples at a time, in the order in which they are reached.

        Memory is bounded by the chunk: what is left open waits until there is enough of it for
        the attack, at most a few chunks.
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
                yield self._second(waiting)
                waiting = []
        if waiting:
            yield self._second(waiting)

    def _targeted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield replace(batch, targets=self.specification.targeted(batch))

    def _capture(self, block: Batch) -> None:
        """Capture the module, and hold the graph against it on a few samples and their corners."""
        try:
            network = Network(self.model, block.inputs.dtype)
            region = self.region.around(self.model, block, network.dtype)
            ends = [end.to(block.inputs.dtype) for end in (region.lower, region.upper)]
            refuse_unfaithful(network, self.model, torch.cat([block.inputs, *ends]))
        except Unsupported as refusal:
            self.refusal = str(refusal)
        else:
            self.network = network

    # --- first stages: prediction and bound -----------------------------------------------------

    def _first(self, block: Batch) -> tuple[Decision, _Open | None]:
        """Predict and bound a block; return what that decides, and what is left to the attack."""
        stages = [Stage(_CLEAN, len(block))]
        if self.network is not None:
            stages.append(Stage(self.bound.name, len(block)))
        parts = self.model.chunk.attempt(
            lambda part: self._judged(block.rows(part), stages), len(block)
        )
        verdicts = self._verdicts(block, torch.cat(parts, dim=1).tolist())
        for stage in stages:
            stage.count(verdicts)
        spent = sum(stage.seconds for stage in stages) / len(block)
        left = [place for place, each in enumerate(verdicts) if each.status == "unknown"]
        if not left or self.attack is None:
            return Decision(verdicts, stages), None
        if self.budget is not None and spent >= self.budget:
            told = [_because(each, "the budget was spent before the attack") for each in verdicts]
            return Decision(told, stages), None
        decided = [each for each in verdicts if each.status != "unknown"]
        return Decision(decided, stages), _Open(block.pick(left), [verdicts[i] for i in left])

    @torch.no_grad()
    def _judged(self, block: Batch, stages: list[Stage]) -> Tensor:
        """Return code, margin, slack and label of each sample, `(4, n)`, in one host read."""
        with self._spending(stages[0]):
            logits = self.model.logits(block.inputs)
            dtype = logits.dtype if self.network is None else self.network.dtype
            rows = self.specification.of(block, logits.shape[1], dtype)
            broken = rows.violated(logits)
        if self.network is None:
            code = torch.full_like(logits[:, 0], _UNSUPPORTED, dtype=torch.float32)
            margin, slack = torch.full_like(code, -torch.inf), torch.full_like(code, torch.inf)
        else:
            with self._spending(stages[1]):
                code, margin, slack = self._bounded(self.network, block, rows, logits)
                self.model.passes.forward += self.bound.forwards * len(block)
        code = torch.where(broken, _FALSIFIED, code)
        labels = code if block.labels is None else block.labels.to(code.dtype)
        return torch.stack([code, margin, slack, labels]).cpu()

    def _bounded(
        self, network: Network, block: Batch, rows: Rows, logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return code, margin and slack of each sample; not finite comes before everything."""
        found = self.bound.margins(
            network, self.region.around(self.model, block, network.dtype), rows
        )
        largest = torch.maximum(found.logits.lower.abs(), found.logits.upper.abs()).amax(1)
        slack = largest.clamp_min(1) * (SLACK[logits.dtype] * max(1.0, rows.size / 2))
        finite = torch.isfinite(found.margin) & torch.isfinite(slack)
        stray = outside(found.logits, logits)
        code = torch.where(found.margin > slack, _PROVEN, _OPEN)
        code = torch.where(stray, _STRAY, torch.where(finite, code, _NOT_FINITE))
        known = finite & ~stray
        return (
            code.to(network.dtype),
            torch.where(known, found.margin, -torch.inf),
            torch.where(known, slack, torch.inf),
        )

    def _verdicts(self, block: Batch, columns: list[list[float]]) -> list[SampleVerdict]:
        """Return what the first stages found, sample by sample."""
        codes = [int(code) for code in columns[0]]
        broken = [place for place, code in enumerate(codes) if code == _FALSIFIED]
        clean = dict(zip(broken, block.pick(broken).inputs if broken else (), strict=True))
        return [
            SampleVerdict(
                position=block.positions[place],
                id=block.ids[place],
                label=None if block.labels is None else int(columns[3][place]),
                status=_STATUS[code],
                stage={_PROVEN: self.bound.name, _FALSIFIED: _CLEAN}.get(code),
                reason=self._reason(code),
                margin=columns[1][place],
                slack=columns[2][place],
                clean=clean.get(place),
                counterexample=clean.get(place),
            )
            for place, code in enumerate(codes)
        ]

    def _reason(self, code: int) -> str | None:
        if code == _UNSUPPORTED:
            return self.refusal
        if code in (_OPEN, _NOT_FINITE) and self.without:
            return f"{_REASONS[code]}; {self.without}"
        return _REASONS.get(code)

    # --- last stage: attack ---------------------------------------------------------------------

    def _second(self, waiting: list[_Open]) -> Decision:
        """Attack what is open; a success is predicted again before it is believed."""
        attack = self.attack
        batch = join([each.batch for each in waiting])
        verdicts = {each.position: each for part in waiting for each in part.verdicts}
        if attack is None:
            return Decision(list(verdicts.values()), [])
        stage = Stage(attack.name, len(batch))
        with self._spending(stage):
            points = {
                position: outcome.points[place]
                for outcome in attack.stream(self.model, [batch])
                for place, position in enumerate(outcome.positions)
                if outcome.success[place]
            }
            confirmed = self._confirmed(batch, points)
        for position, verdict in verdicts.items():
            if position in confirmed:
                verdicts[position] = replace(
                    verdict,
                    status="falsified",
                    stage=attack.name,
                    reason=None,
                    clean=confirmed[position],
                    counterexample=points[position],
                )
            else:
                verdicts[position] = _because(verdict, f"{attack.name} found no counterexample")
        stage.count(verdicts.values())
        return Decision(list(verdicts.values()), [stage])

    @torch.no_grad()
    def _confirmed(self, batch: Batch, points: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the samples by position whose point is in the region and breaks the property."""
        places = [place for place, position in enumerate(batch.positions) if position in points]
        if not places or self.network is None:
            return {}
        broken = batch.pick(places)
        found = torch.stack([points[position] for position in broken.positions])
        logits = self.model.chunk.map(self.model.logits, found)
        rows = self.specification.of(broken, logits.shape[1], self.network.dtype)
        inside = holds(self.region.around(self.model, broken, self.network.dtype), found)
        kept = (rows.violated(logits) & inside).tolist()
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


def _because(verdict: SampleVerdict, why: str) -> SampleVerdict:
    """Return the verdict with one more reason, where it is unknown."""
    if verdict.status != "unknown":
        return verdict
    return replace(verdict, reason=f"{verdict.reason}; {why}")


def _falsifier(
    plan: Plan, region: Region, specification: Specification, seed: int
) -> tuple[Attack | None, str]:
    """Return the attack of a plan, or None and why it cannot be used here."""
    if plan.falsifier is None:
        return None, ""
    if specification.rows is not None:
        return None, f"{plan.falsifier} does not attack rows on the logits"
    if region.ball is None:
        return None, f"{plan.falsifier} does not attack boxes"
    eps, norm = region.ball
    if norm not in NORMS:
        return None, f"{plan.falsifier} does not attack in {norm}"
    return attacks.get(plan.falsifier, eps=eps, norm=norm, steps=ATTACK_STEPS, seed=seed), ""
