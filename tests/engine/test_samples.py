"""Samples on their way: cut, joined, handed out in any number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard.engine.rows import Rows, joined
from pytest_triguard.engine.samples import Batch, Feed, join
from tests.simulated_accelerator import simulated_accelerator

few = settings(max_examples=20, deadline=None)
CPU = torch.device("cpu")


def batch(start, count, *, labels=True, targets=False):
    """Return samples that carry their position in every field."""
    places = torch.arange(start, start + count)
    return Batch(
        tuple(places.tolist()),
        tuple(f"id-{place}" for place in places.tolist()),
        places * 10,
        places.double().view(-1, 1, 1, 1).expand(-1, 2, 1, 1).contiguous(),
        places + 1 if labels else None,
        places + 2 if targets else None,
    )


def batches(sizes, **options):
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [batch(*each, **options) for each in zip(starts, sizes, strict=True)]


def check(found, places):
    """Assert that a batch holds exactly the samples at these places, everything in step."""
    assert len(found) == len(places)
    assert found.positions == tuple(places)
    assert found.ids == tuple(f"id-{place}" for place in places)
    assert found.keys.tolist() == [place * 10 for place in places]
    assert found.inputs[:, 0, 0, 0].tolist() == places
    if found.labels is not None:
        assert found.labels.tolist() == [place + 1 for place in places]
    if found.targets is not None:
        assert found.targets.tolist() == [place + 2 for place in places]


@pytest.mark.parametrize("options", [{}, {"labels": False}, {"targets": True}], ids=str)
def test_rows_and_picks_keep_everything_in_step(options):
    whole = batch(0, 6, **options)
    check(whole.rows(slice(2, 5)), [2, 3, 4])
    check(whole.rows(slice(4, 100)), [4, 5])
    check(whole.pick([5, 0, 3]), [5, 0, 3])
    check(whole.pick([]), [])


def test_rows_share_memory_and_picks_do_not():
    whole = batch(0, 4)
    whole.rows(slice(1, 2)).inputs.fill_(-1)
    assert whole.inputs[1].eq(-1).all()
    whole.pick([2]).inputs.fill_(-1)
    assert whole.inputs[2].eq(2).all()


@few
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    size=st.integers(1, 20),
    targets=st.booleans(),
)
def test_a_feed_hands_out_every_sample_once_and_in_order(sizes, size, targets):
    blocks = list(Feed(batches(sizes, targets=targets), CPU).blocks(size))
    total, start = sum(sizes), 0
    for block in blocks:
        check(block, list(range(start, min(start + size, total))))
        start += len(block)
    assert start == total


def test_a_feed_reads_no_further_than_it_must():
    read = []

    def reading():
        for each in batches([3, 3, 3]):
            read.append(each)
            yield each

    feed = Feed(reading(), CPU)
    assert feed.take(0) == []
    assert read == []
    check(join(feed.take(2)), [0, 1])
    assert len(read) == 1
    check(join(feed.take(1)), [2])
    assert len(read) == 1
    check(join(feed.take(4)), [3, 4, 5, 6])
    assert len(read) == 3
    check(join(feed.take(100)), [7, 8])
    assert feed.take(1) == []


def test_an_empty_batch_is_passed_over():
    feed = Feed([batch(0, 0), batch(0, 2), batch(2, 0), batch(2, 1)], CPU)
    check(join(feed.take(10)), [0, 1, 2])


@pytest.mark.parametrize("options", [{}, {"labels": False}, {"targets": True}], ids=str)
def test_pieces_are_joined_with_everything_they_carry(options):
    whole = join(batches([2, 1, 3], **options))
    check(whole, list(range(6)))
    assert (whole.labels is None) is ("labels" in options)
    assert (whole.targets is None) is ("targets" not in options)


def test_samples_are_moved_as_they_are_handed_out_and_not_before():
    with simulated_accelerator() as sim:
        device = torch.device("sim", 0)
        feed = Feed(batches([4, 4], targets=True), device)
        (piece,) = feed.take(3)
        assert {each.shape[0] for each in sim.uploads if each.shape} == {3}
        moved = (piece.keys, piece.inputs, piece.labels, piece.targets)
        assert {each.device.type for each in moved} == {"sim"}


# --- rows of a search ---------------------------------------------------------------------------


def rows(*places):
    index = torch.tensor(places)
    return Rows(
        list(places),
        [f"id-{place}" for place in places],
        [place + 1 for place in places],
        [place + 2 for place in places],
        [place + 3 for place in places],
        {"first": index * 1.0, "second": index.view(-1, 1).expand(-1, 2).contiguous()},
    )


def check_rows(found, *places):
    assert len(found) == len(places)
    assert found.positions == list(places)
    assert found.ids == [f"id-{place}" for place in places]
    assert found.steps == [place + 1 for place in places]
    assert found.starts == [place + 2 for place in places]
    assert found.spent == [place + 3 for place in places]
    assert found["first"].tolist() == list(places)
    assert found["second"].tolist() == [[place, place] for place in places]


def test_parts_picks_and_joins_of_rows_keep_everything_in_step():
    whole = rows(0, 1, 2, 3, 4)
    check_rows(whole.part(slice(1, 3)), 1, 2)
    check_rows(whole.part(slice(0, 9)), 0, 1, 2, 3, 4)
    check_rows(whole.pick([4, 1]), 4, 1)
    check_rows(joined([rows(7), rows(8, 9), rows(3)]), 7, 8, 9, 3)


def test_rows_are_put_into_places():
    whole = rows(0, 1, 2, 3)
    whole.put([3, 1], rows(8, 9))
    check_rows(whole, 0, 9, 2, 8)


def test_rows_hold_tensors_by_name():
    whole = rows(1, 2)
    assert "first" in whole
    assert "third" not in whole
    assert whole.get("third") is None
    whole["third"] = torch.ones(2)
    assert whole.get("third") is whole["third"]
