"""Samples without a map: counted by the method's reason wherever maps are judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from pytest_triguard import (
    Classifier,
    assert_explanation_robust,
    assert_trigger_recall,
    attribution_attacks,
    attributions,
    backdoors,
    metrics,
)
from pytest_triguard.attributions.saliency import Saliency
from tests.networks import bare, images, problem

REASON = "no boundary found"


@dataclass(frozen=True, kw_only=True)
class Holes(Saliency):
    """The gradient of every other sample, and no map of the rest."""

    undefined_reason: ClassVar[str] = REASON

    def explain(self, model, batch):
        maps = super().explain(model, batch)
        even = torch.tensor([place % 2 == 0 for place in batch.positions], device=maps.device)
        return maps.masked_fill(even.view(-1, 1, 1, 1), math.nan)


def test_trigger_recall_tells_samples_without_a_map_from_duds_and_zero_maps():
    subject, inputs, _ = problem("smooth", 40)
    trigger = backdoors.get("badnets", target=2, size=2)
    network, stamped = bare(subject), trigger(inputs)
    counted = network(inputs).argmax(1) != 2
    fired = counted & (network(stamped).argmax(1) == 2)
    even = torch.arange(40) % 2 == 0
    defined = fired & ~even
    assert min(defined.sum(), (fired & even).sum(), (counted & ~fired & even).sum()) > 0
    found = assert_trigger_recall(
        subject, inputs, trigger, at_least=0.0, attribution=Holes(), undefined_at_most=1.0
    )
    np.testing.assert_array_equal(~np.isnan(found.values), defined.numpy())
    maps = attributions.get("saliency")(subject, stamped, 2)
    recall = metrics.get("trigger_recall")(maps, trigger.mask(inputs))
    assert found.value == pytest.approx(float(recall[defined].mean()))
    assert (found.n, found.undefined) == (int(defined.sum()), int((counted & ~defined).sum()))
    assert found.counts == {
        "defined": int(defined.sum()),
        "not counted (clean prediction is the target)": int((~counted).sum()),
        "undefined (the trigger does not fire)": int((counted & ~fired).sum()),
        f"undefined ({REASON})": int((fired & even).sum()),
    }


def test_an_attack_on_another_map_is_not_blamed_for_samples_without_a_map():
    subject, inputs, labels = problem("smooth", 8)
    attack = attribution_attacks.get(
        "topk", eps=0.1, steps=3, attribution=attributions.get("saliency")
    )
    options = {"eps": 0.1, "metric": "spearman", "at_least": -1.0, "undefined_at_most": 1.0}
    whole, found = (
        assert_explanation_robust(
            subject, inputs, labels, attack=attack, attribution=judged, **options
        )
        for judged in (attributions.get("saliency"), Holes())
    )
    assert whole.undefined == 0
    assert np.isnan(found.values).tolist() == [True, False] * 4
    assert found.values[1::2] == pytest.approx(whole.values[1::2])
    assert (found.n, found.undefined) == (4, 4)
    counts = {name: count for name, count in found.counts.items() if "moved" not in name}
    assert counts == {"defined": 4, f"undefined ({REASON})": 4}


def test_where_there_is_no_boundary_big_leaves_nothing_to_judge():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).double()
    torch.nn.init.zeros_(module[1].weight)
    subject, inputs = Classifier(module), images((1, 3, 4), 4)
    with torch.no_grad():
        module[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    attack = attribution_attacks.get(
        "topk", eps=0.1, steps=2, attribution=attributions.get("saliency")
    )
    big = attributions.get("big", eps=(0.1,), steps=2, cw_steps=0)
    found = assert_explanation_robust(
        subject,
        inputs,
        attack=attack,
        attribution=big,
        eps=0.1,
        metric="spearman",
        at_least=-1.0,
        undefined_at_most=1.0,
        inconclusive="pass",
    )
    assert (found.n, found.undefined) == (0, 4)
    assert np.isnan(found.values).all()
    assert sum(found.counts.values()) == 4
