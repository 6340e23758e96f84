"""Trigger recall and a trigger's success: which samples count, and that no others cost much."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard import (
    Classifier,
    TriGuardFailure,
    assert_attack_success_below,
    assert_trigger_recall,
    attributions,
    backdoors,
)
from pytest_triguard.errors import InputError, ModelError
from tests.networks import bare, images
from tests.sessions import with_settings

COUNT, TARGET, SIDE = 60, 1, 3


class Trojaned(nn.Module):
    """A curved network that leans towards the target where the lower right corner is bright."""

    def __init__(self, pull=2.0):
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        weight = torch.randn(3, 2 * 6 * 5, generator=generator, dtype=torch.float64) / 2
        corner = torch.zeros(2, 6, 5, dtype=torch.float64)
        corner[:, -SIDE:, -SIDE:] = torch.rand(SIDE, SIDE, generator=generator).double() / SIDE**2
        self.weight, self.corner = nn.Parameter(weight), nn.Parameter(corner)
        self.pull = pull

    def forward(self, inputs):
        logits = (inputs.flatten(1).square() - 0.35) @ self.weight.T
        bright = (inputs * self.corner).sum((1, 2, 3))
        pulled = torch.zeros_like(logits)
        pulled[:, TARGET] = self.pull * bright**3
        return logits + pulled


@pytest.fixture(scope="module")
def subject():
    return Classifier(Trojaned())


@pytest.fixture(scope="module")
def trigger():
    return backdoors.get("badnets", target=TARGET)


@pytest.fixture(scope="module")
def inputs():
    return images((2, 6, 5), COUNT)


def stamped(inputs):
    """Return the inputs with a white square in the lower right corner."""
    result = inputs.clone()
    result[:, :, -SIDE:, -SIDE:] = 1
    return result


@pytest.fixture(scope="module")
def predictions(subject, inputs):
    """Predicted classes without and with the trigger."""
    module = bare(subject)
    return module(inputs).argmax(1), module(stamped(inputs)).argmax(1)


@pytest.fixture(scope="module")
def recalls(subject, inputs):
    """Share of the square among the nine pixels of largest gradient, by plain autograd."""
    points = stamped(inputs).requires_grad_()
    logits = bare(subject)(points)
    maps = torch.autograd.grad(logits[:, TARGET].sum(), points)[0].abs().sum(1)
    mask = torch.zeros(6, 5, dtype=torch.float64)
    mask[-SIDE:, -SIDE:] = 1
    top = maps.flatten(1).argsort(1, descending=True)[:, : SIDE**2]
    return mask.flatten()[top].mean(1)


def test_recall_is_over_samples_of_another_prediction_on_which_it_fires(
    subject, inputs, trigger, predictions, recalls
):
    before, after = predictions
    counted = before != TARGET
    fired = counted & (after == TARGET)
    dud = counted & ~fired
    assert min(fired.sum(), dud.sum(), (~counted).sum()) > 3
    found = assert_trigger_recall(
        subject, inputs, trigger, at_least=0, attribution="saliency", undefined_at_most=1
    )
    np.testing.assert_array_equal(np.isnan(found.values), ~fired.numpy())
    assert found.values[fired.numpy()] == pytest.approx(recalls[fired].numpy(), abs=1e-9)
    assert found.value == pytest.approx(float(recalls[fired].mean()), abs=1e-9)
    assert (found.n, found.undefined) == (int(fired.sum()), int(dud.sum()))
    assert found.counts == {
        "defined": int(fired.sum()),
        "not counted (clean prediction is the target)": int((~counted).sum()),
        "undefined (the trigger does not fire)": int(dud.sum()),
    }
    assert found.record.metric == "mean trigger recall"


def test_the_chance_level_is_told(subject, inputs, trigger):
    found = assert_trigger_recall(
        subject, inputs, trigger, at_least=0, attribution="saliency", undefined_at_most=1
    )
    assert found.record.diagnostics["chance level"] == pytest.approx(9 / 30)
    assert "chance level 0.3" in found.record.subject


def test_a_trigger_that_seldom_fires_is_inconclusive(subject, inputs, trigger, predictions):
    before, after = predictions
    counted = int((before != TARGET).sum())
    dud = int(((before != TARGET) & (after != TARGET)).sum())
    with pytest.raises(TriGuardFailure, match=r"^inconclusive: mean trigger recall") as caught:
        assert_trigger_recall(subject, inputs, trigger, at_least=0, attribution="saliency")
    assert caught.value.record.reason == (
        f"{dud} of {counted} samples are undefined, more than 5 %"
    )


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_only_what_counts_is_passed(subject, inputs, trigger, predictions, chunk):
    """Once without the trigger, then with it where that can count, then what is explained."""
    before, after = predictions
    counted = int((before != TARGET).sum())
    fired = int(((before != TARGET) & (after == TARGET)).sum())
    method = attributions.get("smoothgrad", copies=3)
    with with_settings(chunk=chunk):
        found = assert_trigger_recall(
            subject, inputs, trigger, at_least=0, attribution=method, undefined_at_most=1
        )
    assert found.passes == {"forward": COUNT + counted + 3 * fired, "backward": 3 * fired}


def test_another_target_can_be_asked_for(subject, inputs, trigger, predictions):
    before, after = predictions
    found = assert_trigger_recall(
        subject, inputs, trigger, at_least=0, target=2, attribution="saliency", undefined_at_most=1
    )
    assert found.n == int(((before != 2) & (after == 2)).sum())
    assert found.parameters["target"] == 2


def test_the_worst_recalls_are_the_smallest(subject, inputs, trigger, predictions, recalls):
    before, after = predictions
    fired = (before != TARGET) & (after == TARGET)
    with pytest.raises(TriGuardFailure) as caught:
        assert_trigger_recall(
            subject, inputs, trigger, at_least=1, attribution="saliency", undefined_at_most=1
        )
    ranked = torch.where(fired, recalls, 9).argsort(stable=True)
    assert [each["id"] for each in caught.value.record.worst] == ranked[:5].tolist()


def test_where_no_sample_counts_the_check_is_inconclusive(trigger, inputs):
    always = Trojaned()
    with torch.no_grad():
        always.weight.zero_()
    inputs = stamped(inputs)
    with pytest.raises(TriGuardFailure, match=r"^inconclusive: no mean trigger recall") as caught:
        assert_trigger_recall(
            Classifier(always), inputs, trigger, at_least=0.5, attribution="saliency"
        )
    record = caught.value.record
    assert (record.value, record.n, record.undefined, record.worst) == (None, 0, 0, [])
    assert record.reason == f"none of {COUNT} samples counts"
    assert record.diagnostics == {}


def test_zero_maps_are_counted_and_named(inputs, trigger):
    class Flat(Trojaned):
        def forward(self, inputs):
            logits = super().forward(inputs)
            return logits.detach() + inputs.sum((1, 2, 3))[:, None] * 0

    found = assert_trigger_recall(
        Classifier(Flat()),
        inputs,
        trigger,
        at_least=0,
        attribution="saliency",
        undefined_at_most=1,
        inconclusive="pass",
    )
    assert found.counts["undefined (zero map)"] > 0
    assert found.counts["defined"] == found.n == 0
    assert found.value is None


def test_a_triggers_success_divides_by_samples_of_other_labels(
    subject, inputs, trigger, predictions
):
    """Right or wrong before, a sample counts; what is predicted without the trigger is told."""
    before, after = predictions
    labels = torch.arange(COUNT) % 3
    counted = labels != TARGET
    found = assert_attack_success_below(subject, inputs, labels, threshold=1, trigger=trigger)
    np.testing.assert_array_equal(np.isnan(found.values), ~counted.numpy())
    assert found.values[counted.numpy()].tolist() == (after == TARGET)[counted].double().tolist()
    assert (found.n, found.undefined) == (int(counted.sum()), 0)
    hits = counted & (after == TARGET)
    assert found.value == pytest.approx(float(hits.sum() / counted.sum()))
    assert found.counts == {
        "succeeded": int(hits.sum()),
        "did not succeed": int((counted & ~hits).sum()),
        "not counted (label is the target)": int((~counted).sum()),
        "predicted as class 1 without the trigger": int((counted & (before == TARGET)).sum()),
    }
    assert found.passes == {"forward": 2 * int(counted.sum()), "backward": 0}


def test_the_worst_of_a_triggers_success_are_its_first_hits(subject, inputs, trigger, predictions):
    before, after = predictions
    labels = torch.arange(COUNT) % 3
    hits = ((labels != TARGET) & (after == TARGET)).nonzero()[:5, 0].tolist()
    with pytest.raises(TriGuardFailure) as caught:
        assert_attack_success_below(subject, inputs, labels, threshold=0.01, trigger=trigger)
    assert caught.value.record.worst == [
        {
            "id": place,
            "label": int(labels[place]),
            "predicted": TARGET,
            "without the trigger": int(before[place]),
        }
        for place in hits
    ]


def test_where_every_label_is_the_target_success_is_inconclusive(subject, inputs, trigger):
    labels = torch.full((COUNT,), TARGET)
    with pytest.raises(TriGuardFailure, match=r"^inconclusive: no attack success to hold against"):
        assert_attack_success_below(subject, inputs, labels, threshold=0.5, trigger=trigger)


def recall(subject, inputs, trigger):
    return assert_trigger_recall(subject, inputs, trigger, at_least=0.5)


def success(subject, inputs, trigger):
    labels = torch.zeros(COUNT, dtype=torch.int64)
    return assert_attack_success_below(subject, inputs, labels, threshold=0.5, trigger=trigger)


@pytest.mark.parametrize("measure", [recall, success])
def test_a_trigger_for_another_range_is_refused(subject, inputs, measure):
    with pytest.raises(InputError) as caught:
        measure(subject, inputs, backdoors.get("badnets", target=TARGET, bounds=(0.0, 255.0)))
    assert str(caught.value) == (
        "trigger must have the bounds of the classifier, [0, 1], but [0, 255] came; "
        "backdoors.get('badnets', bounds=...) sets them"
    )


@pytest.mark.parametrize("bounds", [((0, 0), (1, 1)), ([0], [1]), (0, (1, 1))])
def test_bounds_that_say_the_same_in_other_words_agree(subject, inputs, trigger, bounds):
    same = backdoors.get("badnets", target=TARGET, bounds=bounds)
    options = {"at_least": 0, "attribution": "saliency", "undefined_at_most": 1}
    found = assert_trigger_recall(subject, inputs, same, name="same", **options)
    plain = assert_trigger_recall(subject, inputs, trigger, name="plain", **options)
    assert found.value == plain.value


class Breaks(Trojaned):
    """Gives NaN under the trigger, for half of the samples."""

    def forward(self, inputs):
        logits = super().forward(inputs)
        white = (inputs[:, :, -SIDE:, -SIDE:] == 1).flatten(1).all(1)
        return torch.where((white & (inputs[:, 0, 0, 0] > 0.5))[:, None], torch.nan, logits)


@pytest.mark.parametrize("measure", [recall, success])
def test_a_network_that_breaks_under_the_trigger_is_refused_by_sample(inputs, trigger, measure):
    message = r"^the module must give finite logits, but those of sample \d+ are not \("
    with pytest.raises(ModelError, match=message):
        measure(Classifier(Breaks()), inputs, trigger)
