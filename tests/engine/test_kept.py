"""Maps that are kept: found by what they depend on, and never more than there is room for."""

from __future__ import annotations

import torch

from pytest_triguard.engine.kept import Explained, KeptMaps, Witness, marks
from pytest_triguard.engine.samples import Batch

ROW = 8 * (12 + 4 + 1)
"""Bytes of one map in float64 with its logits and its class."""


def batch(count, *, offset=0.0, keys=0, places=0):
    positions = tuple(range(places, places + count))
    inputs = torch.arange(count * 12, dtype=torch.float64).view(count, 3, 2, 2) + offset
    return Batch(positions, positions, torch.arange(keys, keys + count), inputs)


def explained(some):
    count = len(some)
    targets = torch.zeros(count, dtype=torch.int64)
    return Explained(some.inputs * 2, some.inputs.flatten(1)[:, :4], targets)


WITNESS = Witness(torch.zeros(1, 3, 2, 2), torch.zeros(1), torch.zeros(1, 3, 2, 2))


def keep(kept, key, some):
    kept.keep(key, marks(some), explained(some), WITNESS)


def test_marks_tell_values_keys_places_and_kinds_apart():
    some = batch(2)
    assert marks(some) == marks(batch(2))
    others = [
        batch(2, offset=1.0),
        batch(2, keys=5),
        batch(2, places=5),
        Batch(some.positions, some.ids, some.keys, some.inputs.view(2, 3, 1, 4)),
        Batch(some.positions, some.ids, some.keys, some.inputs.view(torch.int64)),
    ]
    for other in others:
        assert not {*marks(some)} & {*marks(other)}


def test_what_is_kept_is_found_in_any_company():
    kept, some = KeptMaps(), batch(5)
    keep(kept, "key", some)
    part = some.pick([3, 1])
    found = kept.find("key", marks(part))
    assert found is not None
    assert torch.equal(found.maps, part.inputs * 2)
    assert kept.find("other", marks(part)) is None
    assert kept.find("key", marks(batch(2, offset=0.5))) is None
    kept.forget("key")
    assert kept.find("key", marks(part)) is None


def test_later_writing_does_not_reach_what_is_kept():
    kept, some = KeptMaps(), batch(2)
    made = explained(some)
    kept.keep("key", marks(some), made, WITNESS)
    made.maps.zero_()
    found = kept.find("key", marks(some))
    assert found is not None
    assert torch.equal(found.maps, some.inputs * 2)


def test_room_runs_out_for_the_last_samples_of_a_key_and_for_the_oldest_keys():
    kept = KeptMaps(limit=5 * ROW)
    first, second, late = batch(3), batch(2, places=3), batch(1, places=9)
    keep(kept, "a", first)
    keep(kept, "a", second)
    keep(kept, "a", late)
    assert kept.find("a", marks(second)) is not None
    assert kept.find("a", marks(late)) is None
    keep(kept, "b", late)
    assert kept.find("a", marks(first)) is None
    assert kept.find("b", marks(late)) is not None


def test_what_is_kept_twice_takes_its_room_once():
    kept = KeptMaps(limit=5 * ROW)
    for _ in range(3):
        keep(kept, "a", batch(3))
    keep(kept, "b", batch(2))
    assert kept.find("a", marks(batch(3))) is not None
