"""The iteration itself, driven by a search whose points are written down beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_triguard.engine import iteration
from pytest_triguard.engine.iteration import search
from pytest_triguard.engine.model import Model
from pytest_triguard.engine.outcome import Outcome
from pytest_triguard.engine.rows import Rows
from pytest_triguard.engine.samples import Batch
from tests.engine.models import ready

few = settings(max_examples=20, deadline=None)


class Score(nn.Module):
    """Logits 0 and the pixel: class 1 where it is positive."""

    def forward(self, inputs: Tensor) -> Tensor:
        score = inputs.flatten(1)
        return torch.cat([torch.zeros_like(score), score], 1)


@dataclass
class Scripted:
    """Stands at `script[sample, start, step]`, and wins where that is positive.

    The last column is where the search ends, after its last step.
    """

    script: Tensor
    stop: str = "success"
    record: bool = False
    best: bool = False
    logits_come_along: bool = True

    @property
    def restarts(self) -> int:
        return self.script.shape[1]

    @property
    def steps(self) -> int:
        return self.script.shape[2] - 1

    def radius(self, positions: list[int]) -> Tensor:
        return torch.ones(len(positions), dtype=torch.float64)

    def _at(self, rows: Rows, step: Tensor) -> Tensor:
        script = self.script.to(step.device)
        return script[rows["keys"], rows["restart"], step].view(-1, 1, 1, 1)

    def passes(self, steps: int) -> int:
        return steps

    def begin(self, model: Model, rows: Rows) -> None:
        rows["points"] = self._at(rows, torch.zeros_like(rows["keys"]))

    def estimate(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            logits = model.logits(rows["points"])
        model.passes.backward += len(rows)
        return rows["points"] * 10, logits if self.logits_come_along else None

    def move(self, model: Model, rows: Rows, gradient: Tensor) -> tuple[Tensor, Tensor]:
        after = (rows["step"] + 1).clamp_max(self.steps)
        return self._at(rows, after), gradient * 10

    def loss(self, logits: Tensor, rows: Rows) -> Tensor:
        return logits[:, 1]

    def won(self, logits: Tensor, rows: Rows) -> Tensor:
        return logits.argmax(1) == 1


def samples(count: int, size: int = 3) -> list[Batch]:
    places = torch.arange(count)
    inputs = torch.full((count, 1, 1, 1), -0.5, dtype=torch.float64)
    whole = Batch(
        tuple(range(count)), tuple(f"id-{i}" for i in range(count)), places, inputs, places * 0
    )
    return [whole.rows(slice(start, start + size)) for start in range(0, count, size)]


def run(method: Scripted, chunk: int) -> list[dict]:
    """Return what became of each sample, in the order of the data."""
    found: dict[int, dict] = {}
    for outcome in search(ready(Score(), chunk), samples(len(method.script)), method):
        found |= told(outcome)
    assert sorted(found) == list(range(len(method.script)))
    return [found[place] for place in sorted(found)]


def told(outcome: Outcome) -> dict[int, dict]:
    columns = zip(
        outcome.positions,
        outcome.ids,
        outcome.points.flatten().tolist(),
        outcome.success,
        outcome.passes,
        outcome.steps,
        outcome.clean.flatten().tolist(),
        outcome.keys.tolist(),
        strict=True,
    )
    facts = {}
    for position, name, point, success, passes, steps, clean, key in columns:
        assert name == f"id-{position}"
        assert key == position
        assert clean == -0.5
        facts[position] = {"point": point, "success": success, "passes": passes, "steps": steps}
    return facts


def expected(script: Tensor, stop: str, *, best: bool = False) -> list[dict]:
    """Return what has to become of each sample, one after the other and step by step."""
    return [_expected(sample.tolist(), stop, best) for sample in script]


def _expected(starts: list[list[float]], stop: str, best: bool) -> dict:
    steps, passes = len(starts[0]) - 1, 0
    ends: list[float] = []
    for path in starts:
        for step, point in enumerate(path[:-1]):
            if stop == "success" and point > 0:
                return {"point": point, "success": True, "passes": passes + step + 1, "steps": step}
        passes += steps
        ends.append(max(path) if best else path[-1])
        if stop == "success" and path[-1] > 0:
            break
    return {"point": max(ends), "success": max(ends) > 0, "passes": passes, "steps": steps}


def scripts(count: int, restarts: int, steps: int, seed: int, luck: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, restarts, steps + 1)
    values = -torch.rand(shape, generator=generator, dtype=torch.float64)
    return values + (torch.rand(shape, generator=generator) < luck)


@few
@given(
    count=st.integers(1, 12),
    restarts=st.integers(1, 4),
    steps=st.integers(1, 6),
    chunk=st.integers(1, 14),
    seed=st.integers(0, 10**6),
    luck=st.sampled_from([0.0, 0.05, 0.3]),
    stop=st.sampled_from(["success", "never"]),
    logits_come_along=st.booleans(),
    best=st.booleans(),
    look_every=st.sampled_from([1, 2, 8]),
)
def test_every_sample_ends_as_it_would_alone(
    count, restarts, steps, chunk, seed, luck, stop, logits_come_along, best, look_every
):
    script = scripts(count, restarts, steps, seed, luck)
    method = Scripted(script, stop, logits_come_along=logits_come_along, best=best)
    with pytest.MonkeyPatch.context() as patch:
        if look_every > 1:
            patch.setattr(iteration, "is_host", lambda device: False)
            patch.setattr(iteration, "LOOK_EVERY", look_every)
        assert run(method, chunk) == expected(script, stop, best=best)


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_a_loss_that_still_rises_at_the_end_is_told(chunk, best):
    rising = torch.linspace(-1, -0.5, 11)
    settled = (rising + 0.2).clamp_max(-0.6) - 0.2
    falling, won = -0.6 - rising, rising + 0.6
    script = torch.stack([rising, settled, falling, won]).unsqueeze(1).double()
    told = {}
    for outcome in search(ready(Score(), chunk), samples(4), Scripted(script, best=best)):
        told |= dict(zip(outcome.positions, outcome.rising, strict=True))
    assert told == {0: True, 1: False, 2: False, 3: False}


def test_the_first_start_that_wins_ends_the_search():
    script = torch.tensor([[[-1.0, -1.0], [-1.0, 0.25], [-1.0, 0.9]]]).double()
    assert run(Scripted(script), 4) == [{"point": 0.25, "success": True, "passes": 2, "steps": 1}]


def test_without_stopping_the_best_of_all_starts_is_kept():
    script = torch.tensor([[[-1, 0.2], [-1, 0.9], [-1, -1]], [[-1, -0.3], [-1, -0.1], [-1, -0.2]]])
    found = run(Scripted(script.double(), "never"), 4)
    assert found[0] == {"point": pytest.approx(0.9), "success": True, "passes": 3, "steps": 1}
    assert found[1] == {"point": pytest.approx(-0.1), "success": False, "passes": 3, "steps": 1}


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_paths_are_recorded_up_to_the_last_step(chunk):
    script = scripts(5, 1, 4, seed=3, luck=0.2)
    method = Scripted(script, record=True)
    for outcome in search(ready(Score(), chunk), samples(5), method):
        for row, place in enumerate(outcome.positions):
            taken = outcome.steps[row]
            points = outcome.path["points"][row].flatten()
            assert torch.equal(points[: taken + 1], script[place, 0, : taken + 1])
            gradients = outcome.path["gradients"][row].flatten()[:taken]
            assert torch.equal(gradients, points[:taken] * 10)
            directions = outcome.path["directions"][row].flatten()[:taken]
            assert torch.equal(directions, gradients * 10)


def test_no_path_is_kept_unless_asked_for():
    for outcome in search(ready(Score(), 3), samples(4), Scripted(scripts(4, 1, 2, 0, 0.0))):
        assert outcome.path == {}


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("restarts", [1, 3])
def test_samples_are_read_as_places_become_free(chunk, restarts):
    script = scripts(40, restarts, 3, seed=1, luck=0.2)
    read = finished = 0

    def reading():
        nonlocal read
        for each in samples(40, size=2):
            read += len(each)
            yield each

    for outcome in search(ready(Score(), chunk), reading(), Scripted(script)):
        finished += len(outcome.positions)
        # Those being stepped, those waiting for judgement, those just handed out, half a batch.
        assert read - finished <= 3 * chunk + 2
    assert finished == 40


def test_no_pass_has_more_rows_than_the_chunk_and_few_have_less():
    rows: list[int] = []
    module = Score()
    module.register_forward_hook(lambda module, given, logits: rows.append(len(given[0])))
    script = scripts(30, 2, 4, seed=5, luck=0.1)
    method = Scripted(script)
    outcomes = list(search(ready(module, 4), samples(30), method))
    assert sum(len(each.positions) for each in outcomes) == 30
    assert max(rows) == 4
    assert sum(count < 4 for count in rows) <= 2 * (method.steps + 1)


def test_nothing_to_search_is_nothing_found():
    assert list(search(ready(Score(), 3), [], Scripted(scripts(1, 1, 2, 0, 0.0)))) == []


def test_a_search_needs_labels():
    (batch,) = samples(2)
    unlabelled = Batch(batch.positions, batch.ids, batch.keys, batch.inputs)
    with pytest.raises(TypeError, match="labelled"):
        list(search(ready(Score(), 3), [unlabelled], Scripted(scripts(2, 1, 2, 0, 0.0))))
