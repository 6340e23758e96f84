"""Faithfulness: one sweep for both directions, a check for each, and honest counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_triguard import Classifier, TriGuardFailure, assert_faithful, attributions, metrics
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from tests.networks import problem
from tests.sessions import with_settings

SALIENCY = attributions.get("saliency", seed=0)


def both(*given, **options):
    with with_settings() as session:
        failure = None
        try:
            assert_faithful(*given, attribution=SALIENCY, steps=6, baseline="midpoint", **options)
        except TriGuardFailure as error:
            failure = error
        return dict(session.records), failure


def test_the_values_are_those_of_the_metrics():
    given = problem("conv")
    maps = SALIENCY(*given)
    with with_settings() as session:
        found = assert_faithful(
            *given, attribution="saliency", insertion_at_least=0.0, deletion_at_most=1.0
        )
    assert torch.allclose(
        torch.from_numpy(found.values), metrics.get("insertion")(maps, *given), rtol=1e-9
    )
    insertion, deletion = session.records.values()
    assert insertion.name == "assert_faithful, insertion"
    assert deletion.name == "assert_faithful, deletion"
    expected = float(metrics.get("deletion")(maps, *given).mean())
    assert deletion.value == pytest.approx(expected)
    assert (deletion.relation, deletion.metric) == (
        "<=",
        "mean area under the deletion curve of the probability",
    )


def test_both_directions_cost_one_map_and_share_their_ends():
    records, _ = both(*problem("conv", 8), insertion_at_least=0.0, deletion_at_most=1.0)
    (passes,) = {tuple(each.passes.items()) for each in records.values()}
    # A map, two ends, and five states in each direction.
    assert dict(passes) == {"forward": 8 * (1 + 2 + 2 * 5), "backward": 8}


def test_both_are_judged_and_the_failure_names_both():
    records, failure = both(*problem("conv"), insertion_at_least=1.0, deletion_at_most=0.0)
    assert [each.verdict for each in records.values()] == ["failed", "failed"]
    lines = str(failure).splitlines()
    assert lines[0].startswith("mean area under the insertion curve")
    assert lines[-1].startswith("  also      mean area under the deletion curve")
    assert lines[-1].endswith("is not <= 0")
    assert len(lines) < 20


def test_one_of_both_can_fail_alone():
    records, failure = both(*problem("conv"), insertion_at_least=0.0, deletion_at_most=0.0)
    assert [each.verdict for each in records.values()] == ["passed", "failed"]
    assert str(failure).startswith("mean area under the deletion curve")


def test_the_worst_are_the_smallest_insertions_and_the_largest_deletions():
    records, _ = both(*problem("conv"), insertion_at_least=1.0, deletion_at_most=0.0)
    insertion, deletion = ([each["value"] for each in found.worst] for found in records.values())
    assert insertion == sorted(insertion)
    assert deletion == sorted(deletion, reverse=True)


def test_a_zero_map_is_undefined_and_counted():
    subject, inputs, labels = problem("bias_free", 20)
    inputs[3] = 0  # a dead network: no gradient anywhere
    with with_settings():
        found = assert_faithful(
            subject,
            inputs,
            labels,
            attribution="gradient_x_input",
            insertion_at_least=0.0,
        )
    assert math.isnan(found.values[3])
    assert found.counts == {"defined": 19, "undefined (zero map)": 1}


def test_wrong_arguments_are_refused():
    given = problem("linear")
    with pytest.raises(InputError, match="insertion_at_least or deletion_at_most must be given"):
        assert_faithful(*given, attribution="saliency")
    with pytest.raises(InputError, match=r"insertion_at_least must be .*at most 1, got 1\.5"):
        assert_faithful(*given, attribution="saliency", insertion_at_least=1.5)
    with pytest.raises(InputTypeError, match="attribution must be a name or an attribution"):
        assert_faithful(*given, attribution=3, insertion_at_least=0.5)
    with pytest.raises(InputError, match="steps must be at least 1, but 0 came"):
        assert_faithful(*given, attribution="saliency", insertion_at_least=0.5, steps=0)


class Unit(nn.Module):
    """Divides each image by its length, which a black image has not."""

    def forward(self, inputs):
        return inputs / inputs.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def test_outputs_that_are_not_finite_are_no_zero_maps():
    _, inputs, labels = problem("linear", 4)
    module = nn.Sequential(Unit(), nn.Flatten(), nn.Linear(inputs[0].numel(), 4)).double()
    subject, named = Classifier(module), ["a", "b", "c", "d"]
    message = "finite outputs while pixels are exchanged, but those of sample {} are not .4 of 4"
    with pytest.raises(ModelError, match=message.format("a")):
        assert_faithful(
            subject, inputs, labels, attribution=SALIENCY, insertion_at_least=0.1, ids=named
        )
    maps = SALIENCY(subject, inputs, labels)
    maps[2] = 0  # is undefined in any case
    insertion = metrics.get("insertion", steps=4)
    with pytest.raises(ModelError, match=message.format(0).replace("4 of", "3 of")):
        insertion(maps, subject, inputs, labels)
    with pytest.raises(ModelError, match=message.format(0).replace("4 of", "3 of")):
        insertion.curve(maps, subject, inputs, labels)
    assert insertion(0 * maps, subject, inputs, labels).isnan().all()
