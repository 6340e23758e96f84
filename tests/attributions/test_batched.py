"""Methods that go step by step take all samples of a chunk along in every pass."""

from __future__ import annotations

import pytest

from pytest_triguard import attacks, attributions
from tests.networks import problem
from tests.sessions import with_settings

STILL = 1e-9
"""Steps so short that no prediction changes: every sample takes all of them."""

METHODS = {
    "guided_ig": {"steps": 5},
    "agi": {"steps": 4, "classes": 2, "step_size": STILL},
    "mfaba": {"steps": 5, "step_size": STILL},
    "big": {"eps": (STILL, 2 * STILL), "steps": 3, "cw_steps": 2, "halvings": 2, "points": 4},
    "attexplore": {"steps": 2, "copies": 3, "eps": STILL},
    "attexplore_plus_plus": {"attack": attacks.get("bim", steps=3, eps=STILL)},
}


@pytest.mark.parametrize("name", METHODS)
def test_more_samples_of_a_chunk_need_no_more_passes(name):
    calls = []
    for count in (2, 16):
        subject, inputs, _ = problem("smooth", count)
        seen = []
        subject.module.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        with with_settings(chunk=64):
            attributions.get(name, **METHODS[name])(subject, inputs)
        calls.append(len(seen))
    assert calls[1] == calls[0]
