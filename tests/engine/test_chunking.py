"""Rows per pass: pinned, found by timing, halved when memory runs out."""

from __future__ import annotations

import math
import time
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import attacks
from pytest_triguard.engine import chunking
from pytest_triguard.engine.chunking import UNTIMED, ChunkSize, out_of_memory
from pytest_triguard.engine.passes import Passes
from pytest_triguard.errors import TriGuardWarning
from pytest_triguard.running import running
from tests.assertions import TABLE, gate_problem
from tests.networks import problem
from tests.sessions import with_settings

few = settings(max_examples=20, deadline=None)
ROW = torch.zeros(3, 1, 2, 2)
PLENTY = 10**9


class Device:
    """A device that takes a known time, and at most so many rows."""

    def __init__(self, cost, most=math.inf):
        self.now = 0.0
        self.cost = cost
        self.most = most
        self.rows = []

    def __call__(self, rows):
        if len(rows) > self.most:
            raise torch.OutOfMemoryError("no room")
        self.rows.append(len(rows))
        self.now += self.cost(len(rows))


@pytest.fixture
def timed_device(monkeypatch):
    def make(cost, most=math.inf):
        device = Device(cost, most)
        monkeypatch.setattr(chunking, "now", lambda _: device.now)
        return device

    return make


def per_row(fastest):
    """Return a cost per pass: a row is cheapest in passes of `fastest` rows."""
    return lambda rows: rows * (1 + abs(math.log2(rows / fastest)))


# --- timing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fastest", [16, 32, 64, 128, 256])
def test_timing_finds_the_fastest_size(timed_device, fastest):
    chunk = ChunkSize()
    chunk.tune(timed_device(per_row(fastest)), ROW, work=PLENTY)
    assert chunk.used == chunk.rows == fastest


@pytest.mark.parametrize(("most", "expected"), [(100, 64), (63, 32), (20, 16), (3, 16)])
def test_timing_goes_on_with_half_where_memory_runs_out(timed_device, most, expected):
    chunk = ChunkSize()
    chunk.tune(timed_device(lambda rows: 1.0, most), ROW, work=PLENTY)
    assert chunk.used == expected


def test_of_sizes_that_are_as_fast_the_usual_one_is_taken(timed_device):
    chunk = ChunkSize()
    chunk.tune(timed_device(lambda rows: rows), ROW, work=PLENTY)
    assert chunk.used == UNTIMED


@pytest.mark.parametrize(("side", "expected"), [(32, 64), (112, 64), (224, 16), (1024, 1)])
def test_large_rows_go_in_smaller_chunks_on_a_host(timed_device, side, expected):
    row, chunk = torch.zeros(1, 1, 1, 1).expand(1, 3, side, side), ChunkSize()
    chunk.tune(timed_device(lambda rows: rows), row, work=100)
    assert chunk.used == expected


def test_one_thread_is_timed_by_its_own_share_of_the_processor():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        start = chunking.now(torch.device("cpu"))
        time.sleep(0.05)
        assert chunking.now(torch.device("cpu")) - start < 0.04
    finally:
        torch.set_num_threads(threads)


def test_a_constant_overhead_asks_for_large_chunks(timed_device):
    chunk = ChunkSize()
    chunk.tune(timed_device(lambda rows: 1000 + rows), ROW, work=PLENTY)
    assert chunk.used == 256


def test_a_pinned_chunk_is_not_timed(timed_device):
    device, chunk = timed_device(per_row(64)), ChunkSize(7)
    chunk.tune(device, ROW, work=PLENTY)
    assert (chunk.used, chunk.rows, device.rows) == (7, 7, [])


@pytest.mark.parametrize("work", [0, 1, 1000])
def test_little_work_is_not_timed(timed_device, work):
    device, chunk = timed_device(per_row(512)), ChunkSize()
    chunk.tune(device, ROW, work=work)
    assert (chunk.used, device.rows) == (UNTIMED, [])


@few
@given(work=st.integers(0, 10**6), fastest=st.sampled_from([16, 64, 256]))
def test_timing_costs_little_beside_the_job(work, fastest):
    device, chunk = Device(per_row(fastest)), ChunkSize()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "now", lambda _: device.now)
        chunk.tune(device, ROW, work=work)
    assert sum(device.rows) <= 0.07 * work + 1


def test_checks_of_one_classifier_share_what_was_found(timed_device):
    timings = {}
    first, second = ChunkSize(timings=timings), ChunkSize(timings=timings)
    first.tune(timed_device(per_row(64)), ROW, work=PLENTY)
    device = timed_device(per_row(256))
    second.tune(device, ROW, work=1)
    assert (second.used, device.rows) == (64, [])
    second.tune(device, ROW.double(), work=PLENTY)
    assert second.used == 256


def test_timing_stops_where_memory_ends(timed_device):
    chunk = ChunkSize()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunk.tune(timed_device(lambda rows: 1000 + rows, most=100), ROW, work=PLENTY)
    assert chunk.used == 64


def test_another_error_while_timing_is_not_hidden(timed_device):
    def broken(rows):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"):
        ChunkSize().tune(broken, ROW, work=PLENTY)


def test_timing_is_not_counted_as_passes():
    subject, inputs, _ = problem("linear", 4)
    rows = []
    subject.module.register_forward_hook(lambda module, given, logits: rows.append(len(logits)))
    with running(subject, inputs) as run:
        rows.clear()
        run.tune(10**6)
        assert sum(rows) > 100
        assert run.model.passes == Passes(forward=0, backward=0)


# --- memory -------------------------------------------------------------------------------------


def limited(most, kind=torch.OutOfMemoryError):
    """Return a function that doubles rows and refuses more than `most`, and what it was given."""
    sizes = []

    def run(rows):
        sizes.append(len(rows))
        if len(rows) > most:
            raise kind("CUDA out of memory")
        return rows * 2

    return run, sizes


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("most", [1, 2, 3, 5, 11])
def test_rows_that_do_not_fit_go_in_halves(most, kind):
    run, sizes = limited(most, kind)
    chunk, rows = ChunkSize(16), torch.arange(40)
    with pytest.warns(TriGuardWarning, match=r"^memory ran out with 16 rows in a pass") as caught:
        assert torch.equal(chunk.map(run, rows), rows * 2)
    assert len(caught) == 1
    assert chunk.used == max(size for size in (8, 4, 2, 1) if size <= most)
    refused = [size for size in sizes if size > most]
    assert len(refused) == len(set(refused))


def test_the_warning_names_the_option_that_avoids_it():
    run, _ = limited(3)
    with pytest.warns(TriGuardWarning) as caught:
        ChunkSize(8).map(run, torch.arange(8))
    assert str(caught[0].message) == (
        "memory ran out with 8 rows in a pass; going on with 4. --triguard-chunk=4 avoids the retry"
    )


def test_what_was_learnt_holds_for_the_checks_to_come(timed_device):
    timings = {}
    chunk = ChunkSize(timings=timings)
    chunk.tune(timed_device(per_row(128)), ROW, work=PLENTY)
    run, _ = limited(40)
    with pytest.warns(TriGuardWarning):
        chunk.map(run, torch.arange(128))
    later = ChunkSize(timings=timings)
    later.tune(timed_device(per_row(128)), ROW, work=PLENTY)
    assert later.used == 32


def test_a_pass_begins_with_the_size_that_is_known_to_fit():
    run, sizes = limited(4)
    chunk = ChunkSize(8)
    with pytest.warns(TriGuardWarning):
        chunk.map(run, torch.arange(8))
    sizes.clear()
    rows = torch.arange(20)
    parts = chunk.attempt(lambda part: run(rows[part]), 20)
    assert torch.equal(torch.cat(parts), rows * 2)
    assert sizes == [4] * 5


def test_memory_that_runs_out_midway_costs_no_result_and_repeats_none():
    rows, room, done = torch.arange(24), iter([8, 8, 3, 3, 3, 3, 3, 3]), []

    def run(part):
        if len(rows[part]) > next(room):
            raise torch.OutOfMemoryError("no room")
        done.extend(rows[part].tolist())
        return rows[part] * 2

    with pytest.warns(TriGuardWarning, match=r"^memory ran out with 8 rows"):
        parts = ChunkSize(8).attempt(run, 24)
    assert done == rows.tolist()
    assert torch.equal(torch.cat(parts), rows * 2)


def test_one_row_that_does_not_fit_is_an_error():
    run, _ = limited(0)
    with pytest.warns(TriGuardWarning), pytest.raises(torch.OutOfMemoryError):
        ChunkSize(2).map(run, torch.arange(2))


def test_another_error_is_not_retried():
    calls = []

    def run(rows):
        calls.append(len(rows))
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match=r"^shapes"):
        ChunkSize(4).map(run, torch.arange(8))
    assert calls == [4]


@few
@given(rows=st.integers(1, 60), chunk=st.integers(1, 70))
def test_mapping_is_one_call_as_far_as_the_result_goes(rows, chunk):
    run, sizes = limited(chunk)
    values = torch.arange(rows)
    assert torch.equal(ChunkSize(chunk).map(run, values), values * 2)
    assert sizes == [min(chunk, rows - start) for start in range(0, rows, chunk)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("expected scalar type Float but found Double"), False),
        (ValueError("wrong"), False),
    ],
)
def test_the_errors_of_memory_are_known(error, expected):
    assert out_of_memory(error) is expected


# --- recorded -----------------------------------------------------------------------------------


def test_the_chunk_in_use_can_be_recorded():
    chunk = ChunkSize()
    assert (chunk.used, chunk.rows) == (None, UNTIMED)
    subject, _, _ = problem("linear")
    with subject.prepared(chunk=9) as model:
        assert model.chunk.used == 9
    with with_settings(chunk=11), subject.prepared() as model:
        assert model.chunk.used == 11


def test_an_attack_survives_running_out_of_memory():
    subject, inputs, labels = problem("conv", 16)
    attack = attacks.get("pgd", eps=0.04, steps=4)
    with with_settings(chunk=16):
        expected = attack(subject, inputs, labels)

        def refuse(module, given):
            if len(given[0]) > 5:
                raise torch.OutOfMemoryError("no room")

        subject.module.register_forward_pre_hook(refuse)
        with pytest.warns(TriGuardWarning, match=r"ran out with 16 rows") as caught:
            found = attack(subject, inputs, labels)
    assert len(caught) == 1
    assert torch.allclose(found.adversarial, expected.adversarial, rtol=0, atol=1e-9)
    assert torch.equal(found.success, expected.success)


# A hook makes a module one that cannot be verified.
@pytest.mark.parametrize(
    "case", [each for each in TABLE if each.title != "verified"], ids=lambda case: case.title
)
def test_a_check_survives_running_out_of_memory(case):
    subject, inputs, labels = gate_problem(20)
    expected = case(subject, inputs, labels)

    def refuse(module, given):
        if len(given[0]) > 5:
            raise torch.OutOfMemoryError("no room")

    handle = subject.module.register_forward_pre_hook(refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TriGuardWarning)
        found = case(subject, inputs, labels)
    handle.remove()
    assert found.counts == expected.counts
