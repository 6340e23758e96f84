"""Iterative search from a sample, step by step, with samples coming and going.

A chunk of samples is stepped together. Those that are done leave and the chunk is refilled from
those waiting, so that every pass works on samples that still need it. Each row knows its own
step and restart; nothing depends on its neighbours.

On a host the outcome of every step is looked at. On an accelerator it is looked at every
`LOOK_EVERY` steps, in one read, and rows that were done in between stand still.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.rows import Rows, joined
from pytest_triguard.engine.samples import Batch, Feed, join
from pytest_triguard.errors import ModelError

LOOK_EVERY = 8
"""Steps between two looks at the outcome on an accelerator."""

Stop = Literal["success", "never"]
STOPS: tuple[Stop, ...] = ("success", "never")
PATH = ("points", "gradients", "directions")
"""What a recorded trajectory holds."""

_BROKEN = 2
"""Marks NaN in the read that tells who won."""


class Search(Protocol):
    """What a method brings to the iteration.

    Rows carry `clean`, `labels`, `keys`, `eps`, `restart`, `step`, `points`, and `targets` where
    the data has them; a method may add tensors of its own, such as `momentum`.
    """

    @property
    def steps(self) -> int:
        """Steps per start."""

    @property
    def restarts(self) -> int:
        """Number of starts."""

    @property
    def stop(self) -> Stop:
        """Whether a row leaves at its first success or goes through all steps."""

    @property
    def record(self) -> bool:
        """Whether the trajectory is kept."""

    def radius(self, positions: list[int]) -> Tensor:
        """Return the radius of each sample's ball, `(n,)`, on the host."""

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""

    def begin(self, model: Model, rows: Rows) -> None:
        """Set `points` for the start number `restart`, and what the method carries along."""

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the estimated gradient, and the logits at the points if they came with it."""

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next points and the direction stepped; update what the method carries."""

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return what the search ascends, `(n,)`."""

    def won(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return whether the goal is reached, `(n,)` bool."""


@dataclass(frozen=True)
class Outcome:
    """Samples whose search is over.

    Attributes:
        positions: Place of each sample in the data.
        ids: Sample ids.
        points: `(n, C, H, W)` where the search ended, on the model's device.
        clean: `(n, C, H, W)` where it began.
        labels: `(n,)` int64 labels.
        keys: `(n,)` int64 keys of the samples, for random draws.
        success: Whether the goal is reached at `points`, judged by the prediction there.
        passes: Gradient passes each sample needed, all starts together.
        steps: Steps taken since the last start.
        path: Recorded tensors by name, `(n, steps + 1, C, H, W)`; empty where none is kept.
        broken: Whether the search met a NaN, which leaves open what it did not find; all False
            unless that is to be told.
    """

    positions: list[int]
    ids: list[Hashable]
    points: Tensor
    clean: Tensor
    labels: Tensor
    keys: Tensor
    success: list[bool]
    passes: list[int]
    steps: list[int]
    path: dict[str, Tensor]
    broken: list[bool]


def search(
    model: Model, batches: Iterable[Batch], method: Search, *, tells: bool = False
) -> Iterator[Outcome]:
    """Search from every sample and hand out the outcomes as they come.

    Memory is bounded by the chunk, whatever the number of samples.

    Args:
        model: The network.
        batches: Labelled samples, read as they are needed.
        method: What the search does.
        tells: Whether a search that meets a NaN is told as broken in place of being refused.

    Yields:
        Outcomes of a few samples at a time, in the order in which they finish.

    Raises:
        ModelError: If a search meets a NaN and that is not to be told.
    """
    yield from _Run(model, batches, method, tells=tells).outcomes()


class _Run:
    """One search: the rows being stepped, those waiting, and those whose last point is unjudged."""

    def __init__(
        self, model: Model, batches: Iterable[Batch], method: Search, *, tells: bool
    ) -> None:
        self.model = model
        self.tells = tells
        self.method = method
        self.feed = Feed(batches, model.device)
        self.look_every = 1 if is_host(model.device) else LOOK_EVERY
        self.active: Rows | None = None
        self.ready: list[Rows] = []
        self.ended: list[Rows] = []
        self.judged: tuple[Rows, Tensor] | None = None

    def outcomes(self) -> Iterator[Outcome]:
        self.refill([])
        while self.active is not None or self.ended or self.judged is not None:
            if self.active is not None:
                left = self.method.steps - min(self.active.steps)
                for _ in range(min(self.look_every, left)):
                    self.step(self.active)
            yield from self.look()

    # --- who is stepped -------------------------------------------------------------------------

    def refill(self, free: list[int]) -> None:
        """Give free places to rows that are ready; close the gaps that stay."""
        held = 0 if self.active is None else len(self.active) - len(free)
        ready = self.waiting(max(0, self.model.chunk.rows - held))
        if self.active is not None and ready is not None and len(ready) == len(free):
            self.active.put(free, ready)
            return
        parts = [] if ready is None else [ready]
        if self.active is not None and held:
            gone = set(free)
            stay = [place for place in range(len(self.active)) if place not in gone]
            parts.insert(0, self.active.pick(stay) if free else self.active)
        self.active = joined(parts) if parts else None

    def waiting(self, count: int) -> Rows | None:
        """Return up to `count` rows at their start: restarts first, then new samples."""
        parts: list[Rows] = []
        while count and (self.ready or self.stock(count)):
            rows = self.ready.pop()
            if len(rows) > count:
                self.ready.append(rows.part(slice(count, None)))
                rows = rows.part(slice(0, count))
            parts.append(rows)
            count -= len(rows)
        return joined(parts) if parts else None

    def stock(self, count: int) -> bool:
        """Make new samples ready; return whether there were any.

        Half a chunk at least: places fall free few by few, and a start has its fixed cost.
        """
        pieces = self.feed.take(max(count, self.model.chunk.rows // 2))
        if pieces:
            self.ready.append(self.fresh(join(pieces)))
        return bool(pieces)

    def fresh(self, batch: Batch) -> Rows:
        """Return new samples at the start of their search."""
        count, device = len(batch), self.model.device
        if batch.labels is None:
            raise TypeError("a search needs labelled samples")
        zeros = [0] * count
        rows = Rows(list(batch.positions), list(batch.ids), zeros[:], zeros[:], zeros)
        # Copies: rows are overwritten in place later, and these may be the user's own tensors.
        rows["clean"], rows["labels"] = batch.inputs.clone(), batch.labels.clone()
        rows["keys"] = batch.keys.clone()
        rows["eps"] = self.method.radius(rows.positions).to(device, batch.inputs.dtype)
        rows["restart"] = torch.zeros(count, dtype=torch.int64, device=device)
        if batch.targets is not None:
            rows["targets"] = batch.targets.clone()
        if self.method.restarts > 1:
            rows["best_points"] = rows["clean"].clone()
            rows["best_loss"] = rows["clean"].new_full((count,), -torch.inf)
            rows["best_won"] = torch.zeros(count, dtype=torch.bool, device=device)
        return self.started(rows)

    def started(self, rows: Rows) -> Rows:
        """Put rows at the beginning of their current start."""
        rows.steps = [0] * len(rows)
        rows["step"] = torch.zeros_like(rows["restart"])
        rows["live"] = torch.ones_like(rows["restart"], dtype=torch.bool)
        rows["highest"] = rows["clean"].new_full((len(rows),), -torch.inf)
        self.method.begin(self.model, rows)
        if self.method.record:
            clean = rows["clean"]
            for name in PATH:
                shape = (len(rows), self.method.steps + 1, *clean.shape[1:])
                rows[f"path_{name}"] = clean.new_zeros(shape)
            rows["path_points"][:, 0] = rows["points"]
        return rows

    # --- one step -------------------------------------------------------------------------------

    def step(self, rows: Rows) -> None:
        """Take one step with every row that lives: that is neither done nor at its end."""
        gradient, logits = self.estimate(rows)
        # The sign of NaN is 0, and a sample that stands still would pass for robust.
        rows["highest"] = torch.maximum(rows["highest"], gradient.amax((1, 2, 3)))
        all_live = self.note_done(logits, rows)
        points, direction = self.method.move(self.model, rows, gradient)
        if not all_live:
            points = torch.where(per_row(rows["live"], points), points, rows["points"])
        rows["points"] = points
        if self.method.record:
            self.keep(rows, gradient, direction)
        rows["step"] = rows["step"] + rows["live"]
        rows.steps = [taken + 1 for taken in rows.steps]
        if self.look_every > 1:  # else those at their end leave at once
            rows["live"] = rows["live"] & (rows["step"] < self.method.steps)

    def note_done(self, logits: Tensor | None, rows: Rows) -> bool:
        """Note the rows that have won; return whether all live, as far as it can be known here."""
        on_host = self.look_every == 1
        if logits is None:
            return on_host
        won = self.method.won(logits, rows)
        if on_host and not bool(won.any()):  # a host is asked for nothing, and mostly none has
            return True
        rows["live"] = rows["live"] & ~(won & _defined(logits))
        return False

    def estimate(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the gradients, and the logits at the points where success must be seen."""
        parts = self.model.chunk.attempt(
            lambda part: self.method.estimate(self.model, rows.part(part)), len(rows)
        )
        gradient = torch.cat([each for each, _ in parts]) if len(parts) > 1 else parts[0][0]
        if self.method.stop == "never":
            return gradient, None
        known = [logits for _, logits in parts if logits is not None]
        return gradient, torch.cat(known) if known else self.logits(rows["points"])

    @torch.no_grad()
    def logits(self, points: Tensor) -> Tensor:
        return self.model.chunk.map(self.model.logits, points)

    def keep(self, rows: Rows, gradient: Tensor, direction: Tensor) -> None:
        """Record a step under its number; a row at its end records its last point again."""
        row = torch.arange(len(rows), device=gradient.device)
        step = rows["step"]
        rows["path_gradients"][row, step] = gradient
        rows["path_directions"][row, step] = direction
        rows["path_points"][row, (step + 1).clamp_max(self.method.steps)] = rows["points"]

    # --- what came of it ------------------------------------------------------------------------

    def look(self) -> Iterator[Outcome]:
        """Read the outcome of the last steps, let rows go, and judge those at their end."""
        judged, active = self.judged, self.active
        read = [] if judged is None else [judged[1].to(torch.int64)]
        read += [] if active is None else [active["step"]]
        seen: list[int] = (read[0] if len(read) == 1 else torch.cat(read)).tolist()
        if judged is not None:
            rows, flags = judged[0], seen[: len(judged[0])]
            broken = [flag >= _BROKEN for flag in flags]
            if not self.tells:
                self.refuse_broken(rows, broken)
            yield from self.settle(rows, [bool(flag % _BROKEN) for flag in flags], broken)
        if active is not None:
            yield from self.leave(active, seen[-len(active) :])
        elif self.ready:
            self.refill([])
        waiting = sum(len(rows) for rows in self.ended)
        full = waiting >= self.model.chunk.rows
        self.judged = self.judge() if waiting and (full or self.active is None) else None

    def leave(self, rows: Rows, steps: list[int]) -> Iterator[Outcome]:
        """Let the rows go that are done or at their end, and fill their places.

        A row is done where its own steps lag behind those it has been through: it stood still.
        """
        last = self.method.steps
        ended = [place for place, taken in enumerate(steps) if taken == last]
        done = [place for place, taken in enumerate(steps) if taken < min(rows.steps[place], last)]
        if done:
            left = rows.pick(done, _handed_out("points"))
            left.steps = [steps[place] for place in done]
            # The pass that saw the success counts, though no step followed it.
            left.spent = [
                before + self.method.passes(taken + 1)
                for before, taken in zip(left.spent, left.steps, strict=True)
            ]
            yield _outcome(left, "points", [True] * len(done), [False] * len(done))
        if ended:
            left = rows.pick(ended)
            left.steps = [last] * len(ended)
            left.spent = [before + self.method.passes(last) for before in left.spent]
            self.ended.append(left)
        if done or ended or (self.ready and len(rows) < self.model.chunk.rows):
            self.refill(sorted(done + ended))

    @torch.no_grad()
    def judge(self) -> tuple[Rows, Tensor]:
        """Predict at the last points of up to a chunk of rows; the answer is read later."""
        rows = joined(self.ended)
        size = self.model.chunk.rows
        self.ended = [rows.part(slice(size, None))] if len(rows) > size else []
        rows = rows.part(slice(0, size))
        logits = self.logits(rows["points"])
        won = self.method.won(logits, rows) & _defined(logits)
        if self.method.restarts > 1:
            won = _keep_best(rows, won, self.method.loss(logits, rows))
        return rows, won + _BROKEN * (rows["highest"].isnan() | ~_defined(logits))

    def refuse_broken(self, rows: Rows, broken: list[bool]) -> None:
        """Raise a ModelError if a search met a NaN."""
        for place, flag in enumerate(broken):
            if flag:
                raise ModelError(
                    f"the module {type(self.model.module).__name__} must give finite logits and "
                    f"gradients inside the bounds, but the search from sample "
                    f"{rows.ids[place]!r} led to NaN"
                )

    def settle(self, rows: Rows, won: list[bool], broken: list[bool]) -> Iterator[Outcome]:
        """Hand out judged rows, or start them again."""
        last = self.method.restarts - 1
        stops = self.method.stop == "success"
        over = [
            place
            for place in range(len(rows))
            if rows.starts[place] == last or (stops and won[place])
        ]
        if over:
            source = "best_points" if self.method.restarts > 1 else "points"
            left = rows.pick(over, _handed_out(source))
            flags = ([each[place] for place in over] for each in (won, broken))
            yield _outcome(left, source, *flags)
        if len(over) < len(rows):
            gone = set(over)
            rows = rows.pick([place for place in range(len(rows)) if place not in gone])
            rows.starts = [before + 1 for before in rows.starts]
            rows["restart"] = rows["restart"] + 1
            self.ready.append(self.started(rows))


def _defined(logits: Tensor) -> Tensor:
    """Return whether there is a prediction, `(n,)` bool; without one, no goal is reached."""
    return ~logits.isnan().any(1)


def _keep_best(rows: Rows, won: Tensor, loss: Tensor) -> Tensor:
    """Keep the point that won, or else the one of highest loss; return whether any start won."""
    best_won, points = rows["best_won"], rows["points"]
    better = (won & ~best_won) | ((won == best_won) & (loss > rows["best_loss"]))
    rows["best_points"] = torch.where(per_row(better, points), points, rows["best_points"])
    rows["best_loss"] = torch.where(better, loss, rows["best_loss"])
    rows["best_won"] = won | best_won
    return rows["best_won"]


def _handed_out(points: str) -> set[str]:
    """Return the names of the tensors an outcome is made of."""
    return {points, "clean", "labels", "keys", *(f"path_{name}" for name in PATH)}


def _outcome(rows: Rows, points: str, success: list[bool], broken: list[bool]) -> Outcome:
    return Outcome(
        rows.positions,
        rows.ids,
        rows[points],
        rows["clean"],
        rows["labels"],
        rows["keys"],
        success,
        rows.spent,
        rows.steps,
        {name: rows[f"path_{name}"] for name in PATH if f"path_{name}" in rows},
        broken,
    )
