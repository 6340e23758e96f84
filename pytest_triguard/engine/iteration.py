"""Iterative search from a sample, step by step, with samples coming and going.

A chunk of samples is stepped together. Those that are done leave and the chunk is refilled from
those waiting, so that every pass works on samples that still need it. Each row knows its own
step and restart; nothing depends on its neighbours.

On a host the outcome of every step is looked at. On an accelerator it is looked at every
`LOOK_EVERY` steps, in one read, and rows that were done in between stand still.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from pytest_triguard.engine.best import forget, keep, no_loss
from pytest_triguard.engine.devices import is_host
from pytest_triguard.engine.geometry import per_row
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.path_integral import Integrand, add_term
from pytest_triguard.engine.rows import Rows, joined
from pytest_triguard.engine.samples import Batch, Feed, join
from pytest_triguard.errors import ModelError

LOOK_EVERY = 8
"""Steps between two looks at the outcome on an accelerator."""

Stop = Literal["success", "never"]
STOPS: tuple[Stop, ...] = ("success", "never")
PATH = ("points", "gradients", "directions")
"""What a recorded trajectory holds."""

_WON, _BROKEN, _RISING = 1, 2, 4
"""What the read at the end of a start tells of a row: its goal reached, a NaN met, a loss that was
still rising."""

_LATE, _MUCH = 0.8, 0.1
"""A loss still rises if the steps beyond this share of them bring more than this share of all."""


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

    @property
    def best(self) -> bool:
        """Whether the best point of a start is what it found, or its last one.

        The best is the one that wins, and of equals the one of highest loss; `clean` where no
        loss is above minus infinity. Rows then carry `best_points`, `best_loss` and `better`,
        whether the points are the best yet.
        """

    def radius(self, positions: list[int]) -> Tensor:
        """Return the radius of each sample's ball, `(n,)`, on the host."""

    def passes(self, steps: int) -> int:
        """Return the gradient passes that a start and so many estimates take."""

    def begin(self, model: Model, rows: Rows) -> None:
        """Set `points` for the start number `restart`, and what the method carries along."""

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the estimated gradient, and the logits at the points if they came with it.

        A search without gradients returns the logits as both.
        """

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next points and the direction stepped; update what the method carries.

        The points come in a tensor of their own: where a row stands still, they are overwritten.
        """

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return what the search ascends, `(n,)`."""

    def won(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return whether the goal is reached, `(n,)` bool."""


def search(
    model: Model,
    batches: Iterable[Batch],
    method: Search,
    *,
    tells: bool = False,
    integrand: Integrand | None = None,
) -> Iterator[Outcome]:
    """Search from every sample and hand out the outcomes as they come.

    Memory is bounded by the chunk, whatever the number of samples.

    Args:
        model: The network.
        batches: Labelled samples, read as they are needed.
        method: What the search does.
        tells: Whether a search that meets a NaN is told as broken in place of being refused.
        integrand: What each step adds to the integral along the path of a start, or None. With
            one, a single start is not judged where it ends: its integral is what is asked for.

    Yields:
        Outcomes of a few samples at a time, in the order in which they finish.

    Raises:
        ModelError: If a search meets a NaN and that is not to be told.
    """
    yield from _Run(model, batches, method, tells, integrand).outcomes()


class _Run:
    """One search: the rows being stepped, those waiting, and those whose last point is unjudged."""

    def __init__(
        self,
        model: Model,
        batches: Iterable[Batch],
        method: Search,
        tells: bool,
        integrand: Integrand | None,
    ) -> None:
        self.model = model
        self.tells = tells
        self.integrand = integrand
        self.method = method
        self.feed = Feed(batches, model.device)
        self.look_every = 1 if is_host(model.device) else LOOK_EVERY
        self.judges = integrand is None or method.best or method.restarts > 1
        self.active: Rows | None = None
        self.ready: list[tuple[Rows, int]] = []  # rows at their start, and how many are taken
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
            rows, taken = self.ready.pop()
            some = rows.part(slice(taken, taken + count))
            if taken + len(some) < len(rows):
                self.ready.append((rows, taken + len(some)))
            parts.append(some)
            count -= len(some)
        return joined(parts) if parts else None

    def stock(self, count: int) -> bool:
        """Make new samples ready; return whether there were any.

        Half a chunk at least: places fall free few by few, and a start has its fixed cost.
        """
        pieces = self.feed.take(max(count, self.model.chunk.rows // 2))
        if pieces:
            self.ready.append((self.fresh(join(pieces)), 0))
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
            forget(rows, "kept")
        return self.started(rows)

    def started(self, rows: Rows) -> Rows:
        """Put rows at the beginning of their current start."""
        rows.steps = [0] * len(rows)
        rows["step"] = torch.zeros_like(rows["restart"])
        rows["live"] = torch.ones_like(rows["restart"], dtype=torch.bool)
        rows["highest"] = rows["clean"].new_full((len(rows),), -torch.inf)
        rows["first_loss"], rows["late_loss"] = no_loss(rows), no_loss(rows)
        if self.method.best:
            forget(rows, "best")
        if self.integrand is not None:
            rows["integral"] = torch.zeros_like(rows["clean"])
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
        highest = gradient.flatten(1).amax(1).to(rows["highest"].dtype)
        rows["highest"] = torch.maximum(rows["highest"], highest)
        all_live = self.note(logits, rows)
        before = rows["points"]
        points, direction = self.method.move(self.model, rows, gradient)
        rows["points"] = points if all_live else self.held(rows, before, points)
        if self.integrand is not None:
            add_term(rows, self.integrand(rows, before, gradient), all_live=all_live)
        if self.method.record:
            self.keep(rows, gradient, direction)
        rows["step"] = rows["step"] + rows["live"]
        rows.steps = [taken + 1 for taken in rows.steps]
        if self.look_every > 1:  # else those at their end leave at once
            rows["live"] = rows["live"] & (rows["step"] < self.method.steps)

    def held(self, rows: Rows, before: Tensor, points: Tensor) -> Tensor:
        """Return the points, but of rows that do not live those before."""
        live = rows["live"]
        if self.look_every > 1:
            return torch.where(per_row(live, points), points, before)
        # A host may ask which rows they are, and they are few.
        done = live.logical_not().nonzero().squeeze(1)
        return points.index_copy_(0, done, before.index_select(0, done))

    def note(self, logits: Tensor | None, rows: Rows) -> bool:
        """Note what has come so far; return whether all rows live, as far as it is known here."""
        on_host, stops = self.look_every == 1, self.method.stop == "success"
        if logits is None:
            return on_host
        if not stops and not self.method.best:
            self.note_loss(logits, rows)
            return on_host
        won = self.method.won(logits, rows)
        if self.method.best:
            keep(rows, "best", won & _defined(logits), self.method.loss(logits, rows))
        self.note_loss(logits, rows)
        # A host is asked for nothing, and mostly none has won.
        if not stops or (on_host and not bool(won.any())):
            return on_host
        rows["live"] = rows["live"] & ~(won & _defined(logits))
        return False

    def note_loss(self, logits: Tensor, rows: Rows) -> None:
        """Note the loss at the start, and where most of the steps are taken."""
        for name, step in (("first_loss", 0), ("late_loss", int(_LATE * self.method.steps))):
            if step in rows.steps:
                loss = rows["best_loss"] if self.method.best else self.method.loss(logits, rows)
                rows[name] = torch.where(rows["step"] == step, loss.to(rows[name]), rows[name])

    def estimate(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return the gradients, and the logits at the points where they came or are needed."""
        parts = self.model.chunk.attempt(
            lambda part: self.method.estimate(self.model, rows.part(part)), len(rows)
        )
        gradient = torch.cat([each for each, _ in parts]) if len(parts) > 1 else parts[0][0]
        known = [logits for _, logits in parts if logits is not None]
        if known:
            return gradient, torch.cat(known) if len(known) > 1 else known[0]
        needed = self.method.best or self.method.stop == "success"
        return gradient, self.logits(rows["points"]) if needed else None

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
            if not self.tells:
                self.refuse_broken(rows, flags)
            yield from self.settle(rows, flags)
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
        both = enumerate(zip(steps, rows.steps, strict=True))
        done = [place for place, (taken, been) in both if taken < been and taken < last]
        if done:
            left = rows.pick(done, _handed_out("points"))
            left.steps = [steps[place] for place in done]
            # The pass that saw the success counts, though no step followed it.
            left.spent = [
                before + self.method.passes(taken + 1)
                for before, taken in zip(left.spent, left.steps, strict=True)
            ]
            yield _outcome(left, "points", [_WON] * len(done))
        if ended:
            left = rows.pick(ended)
            left.steps = [last] * len(ended)
            left.spent = [before + self.method.passes(last) for before in left.spent]
            self.ended.append(left)
        if done or ended or (self.ready and len(rows) < self.model.chunk.rows):
            self.refill(sorted(done + ended))

    @torch.no_grad()
    def judge(self) -> tuple[Rows, Tensor]:
        """Judge up to a chunk of rows by the prediction at their last points; it is read later."""
        rows = joined(self.ended)
        size = self.model.chunk.rows
        self.ended = [rows.part(slice(size, None))] if len(rows) > size else []
        rows = rows.part(slice(0, size))
        if not self.judges:
            return rows, _BROKEN * rows["highest"].isnan()
        logits = self.logits(rows["points"])
        won, loss = self.method.won(logits, rows) & _defined(logits), self.method.loss(logits, rows)
        if self.method.best:
            keep(rows, "best", won, loss)
            rows["points"], won, loss = (rows[f"best_{name}"] for name in ("points", "won", "loss"))
        broken = rows["highest"].isnan() | ~_defined(logits)
        gained = loss - rows["late_loss"]
        rising = gained > _MUCH * (loss - rows["first_loss"])
        if self.method.restarts > 1:
            keep(rows, "kept", won, loss)
            won = rows["kept_won"]
        return rows, _WON * won + _BROKEN * broken + _RISING * rising

    def refuse_broken(self, rows: Rows, seen: list[int]) -> None:
        """Raise a ModelError if a search met a NaN."""
        for place, flag in enumerate(seen):
            if flag & _BROKEN:
                raise ModelError(
                    f"the module {type(self.model.module).__name__} must give finite logits and "
                    f"gradients inside the bounds, but the search from sample "
                    f"{rows.ids[place]!r} led to NaN"
                )

    def settle(self, rows: Rows, seen: list[int]) -> Iterator[Outcome]:
        """Hand out judged rows, or start them again."""
        last = self.method.restarts - 1
        stops = self.method.stop == "success"
        over = [
            place
            for place in range(len(rows))
            if rows.starts[place] == last or (stops and seen[place] & _WON)
        ]
        if over:
            source = "kept_points" if self.method.restarts > 1 else "points"
            left = rows.pick(over, _handed_out(source))
            yield _outcome(left, source, [seen[place] for place in over])
        if len(over) < len(rows):
            gone = set(over)
            rows = rows.pick([place for place in range(len(rows)) if place not in gone])
            rows.starts = [before + 1 for before in rows.starts]
            rows["restart"] = rows["restart"] + 1
            self.ready.append((self.started(rows), 0))


def _defined(logits: Tensor) -> Tensor:
    """Return whether there is a prediction, `(n,)` bool; without one, no goal is reached."""
    return ~logits.isnan().any(1)


def _handed_out(points: str) -> set[str]:
    """Return the names of the tensors an outcome is made of."""
    path = (f"path_{name}" for name in PATH)
    return {points, "clean", "labels", "keys", "targets", "integral", *path}


def _outcome(rows: Rows, points: str, seen: list[int]) -> Outcome:
    return Outcome(
        rows.positions,
        rows.ids,
        rows[points],
        rows["clean"],
        rows["labels"],
        rows["keys"],
        [bool(each & _WON) for each in seen],
        rows.spent,
        rows.steps,
        {name: rows[f"path_{name}"] for name in PATH if f"path_{name}" in rows},
        [bool(each & _BROKEN) for each in seen],
        rows.get("targets"),
        [bool(each & _RISING) and not each & _WON for each in seen],
        integral=rows.get("integral"),
    )
