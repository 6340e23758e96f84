"""Robust accuracy and attack success: what falls, what counts, and what it costs.

For a linear network of two classes every step of an attack in L-inf is known: each pixel moves by
the sign of its weight until it meets the ball or the range. So everything is recomputed here.
"""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard import (
    Classifier,
    TriGuardFailure,
    assert_attack_success_below,
    assert_robust,
    attacks,
)
from pytest_triguard.settings import current_session
from tests.networks import bare, images, problem
from tests.sessions import with_settings

EPS, STEPS, COUNT = 0.06, 4, 40


@pytest.fixture(scope="module")
def subject():
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(24, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 24, generator=generator, dtype=torch.float64))
        layer.bias.zero_()
    classifier = Classifier(nn.Sequential(nn.Flatten(), layer))
    with torch.no_grad():
        logits = bare(classifier)(images((2, 3, 4), COUNT))
        layer.bias[1] -= (logits[:, 1] - logits[:, 0]).median() + 1e-3  # the median is no tie
    return classifier


@pytest.fixture(scope="module")
def data(subject):
    """Inputs, and labels of which every fifth is wrong."""
    inputs = images((2, 3, 4), COUNT)
    labels = bare(subject)(inputs).argmax(1)
    labels[::5] = 1 - labels[::5]
    return inputs, labels


def steps_to(subject, inputs, goal, *, eps=EPS, steps=STEPS):
    """Return after how many steps towards the goal it is predicted, 99 where never."""
    module = bare(subject)
    weight = module[1].weight
    sign = torch.where((goal == 1)[:, None], 1.0, -1.0) * (weight[1] - weight[0]).sign()
    taken = torch.full((len(inputs),), 99)
    for step in range(steps, -1, -1):
        moved = (inputs.flatten(1) + sign * eps * step / steps).clamp(0, 1)
        taken[module[1](moved).argmax(1) == goal] = step
    return taken


def bim(**changes):
    return attacks.get("bim", eps=EPS, steps=STEPS, **changes)


def spent(taken, steps=STEPS):
    """Return gradient passes, and final predictions, of samples that fell after some steps.

    What fell is seen in the pass after its last step; who takes all steps is predicted at the end.
    """
    seen = taken < steps
    return int(torch.where(seen, taken + 1, steps).sum()), int((~seen).sum())


def test_robust_accuracy_counts_misclassified_samples_against(subject, data):
    inputs, labels = data
    right = bare(subject)(inputs).argmax(1) == labels
    fell = steps_to(subject, inputs, 1 - labels) <= STEPS
    found = assert_robust(subject, inputs, labels, eps=EPS, at_least=0, attack=bim())
    stands = right & ~fell
    assert 0 < stands.sum() < right.sum() < COUNT
    assert found.values.tolist() == stands.double().tolist()
    assert found.value == pytest.approx(float(stands.double().mean()), abs=1e-15)
    assert (found.n, found.undefined) == (COUNT, 0)
    assert found.counts == {
        "not falsified by bim": int(stands.sum()),
        "falsified by bim": int((right & fell).sum()),
        "misclassified before the attack": int((~right).sum()),
    }


def test_attack_success_divides_by_samples_that_were_right(subject, data):
    inputs, labels = data
    right = bare(subject)(inputs).argmax(1) == labels
    fell = (steps_to(subject, inputs, 1 - labels) <= STEPS)[right]
    found = assert_attack_success_below(subject, inputs, labels, threshold=1, attack=bim())
    np.testing.assert_array_equal(np.isnan(found.values), ~right.numpy())
    assert found.values[right.numpy()].tolist() == fell.double().tolist()
    assert found.value == pytest.approx(float(fell.double().mean()), abs=1e-15)
    assert (found.n, found.undefined) == (int(right.sum()), 0)
    assert found.counts == {
        "succeeded": int(fell.sum()),
        "did not succeed": int((~fell).sum()),
        "not counted (misclassified before the attack)": int((~right).sum()),
    }


@pytest.mark.parametrize("target", [0, 1])
def test_targeted_success_divides_by_samples_of_other_labels(subject, data, target):
    """A misclassified sample counts too, and so does one that is taken for the target already."""
    inputs, labels = data
    counted = labels != target
    goal = torch.full_like(labels, target)
    reached = (steps_to(subject, inputs, goal) <= STEPS)[counted]
    already = bare(subject)(inputs).argmax(1)[counted] == target
    assert 0 < already.sum() < reached.sum() < counted.sum()
    found = assert_attack_success_below(
        subject, inputs, labels, threshold=1, target=target, attack=bim()
    )
    np.testing.assert_array_equal(np.isnan(found.values), ~counted.numpy())
    assert found.values[counted.numpy()].tolist() == reached.double().tolist()
    assert found.n == int(counted.sum())
    assert found.counts["not counted (label is the target)"] == int((~counted).sum())
    assert found.parameters["target"] == target


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("measure", ["robust", "success"])
def test_no_pass_is_made_twice(subject, data, measure, chunk):
    inputs, labels = data
    right = bare(subject)(inputs).argmax(1) == labels
    gradients, final = spent(steps_to(subject, inputs, 1 - labels)[right])
    with with_settings(chunk=chunk):
        if measure == "robust":
            found = assert_robust(subject, inputs, labels, eps=EPS, at_least=0, attack=bim())
        else:
            found = assert_attack_success_below(subject, inputs, labels, threshold=1, attack=bim())
    assert found.passes == {"forward": COUNT + gradients + final, "backward": gradients}


def test_a_target_needs_no_clean_predictions(subject, data):
    inputs, labels = data
    goal = torch.zeros_like(labels)
    gradients, final = spent(steps_to(subject, inputs, goal)[labels != 0])
    found = assert_attack_success_below(
        subject, inputs, labels, threshold=1, target=0, attack=bim()
    )
    assert found.passes == {"forward": gradients + final, "backward": gradients}


def test_the_radius_can_be_given_per_sample(subject, data):
    inputs, labels = data
    eps = torch.linspace(0, 0.15, COUNT, dtype=torch.float64)
    right = bare(subject)(inputs).argmax(1) == labels
    fell = [
        int(steps_to(subject, inputs[i : i + 1], 1 - labels[i : i + 1], eps=float(eps[i]))) <= STEPS
        for i in range(COUNT)
    ]
    attack = attacks.get("bim", eps=eps, steps=STEPS)
    found = assert_robust(subject, inputs, labels, eps=eps, at_least=0, attack=attack)
    assert found.values.tolist() == (right & ~torch.tensor(fell)).double().tolist()


def test_without_a_ball_robust_accuracy_is_accuracy(subject, data):
    inputs, labels = data
    found = assert_robust(subject, inputs, labels, eps=0, at_least=0)
    right = bare(subject)(inputs).argmax(1) == labels
    assert found.values.tolist() == right.double().tolist()


def test_the_worst_are_those_that_fell_first(subject, data):
    inputs, labels = data
    taken = steps_to(subject, inputs, 1 - labels)
    right = bare(subject)(inputs).argmax(1) == labels
    needed = torch.where(right & (taken <= STEPS), (taken + 1).clamp_max(STEPS), 99)
    with pytest.raises(TriGuardFailure) as caught:
        assert_robust(subject, inputs, labels, eps=EPS, at_least=1, attack=bim())
    worst = caught.value.record.worst
    assert [each["id"] for each in worst] == needed.argsort(stable=True)[:5].tolist()
    for each in worst:
        assert each["passes"] == needed[each["id"]]
        assert each["label"] == labels[each["id"]]
        assert each["predicted"] == 1 - each["label"]
        assert each["logit lead"] > 0


def test_a_logit_lead_is_that_of_the_broken_sample(subject, data):
    inputs, labels = data
    attack = attacks.get("fgsm", eps=EPS)
    broken = attack(subject, inputs, labels).adversarial
    logits = bare(subject)(broken)
    with pytest.raises(TriGuardFailure) as caught:
        assert_robust(subject, inputs, labels, eps=EPS, at_least=1, attack=attack)
    for each in caught.value.record.worst:
        row, label = logits[each["id"]], each["label"]
        assert each["logit lead"] == pytest.approx(float(row[1 - label] - row[label]), rel=1e-12)


def test_where_nothing_fell_misclassified_samples_are_the_worst(subject, data):
    inputs, labels = data
    with pytest.raises(TriGuardFailure) as caught:
        assert_robust(subject, inputs, labels, eps=0, at_least=1, attack="bim")
    assert caught.value.record.worst == [
        {"id": place, "misclassified": "before the attack"} for place in (0, 5, 10, 15, 20)
    ]


def test_looking_at_the_worst_is_not_counted_as_cost(subject, data):
    inputs, labels = data
    passed = assert_robust(subject, inputs, labels, eps=EPS, at_least=0, attack=bim())
    with pytest.raises(TriGuardFailure) as caught:
        assert_robust(subject, inputs, labels, eps=EPS, at_least=1, attack=bim())
    assert caught.value.record.passes == passed.passes


def test_saved_counterexamples_are_the_worst_samples(tmp_path, subject, data):
    inputs, labels = data
    with with_settings(artifacts=tmp_path), pytest.raises(TriGuardFailure) as caught:
        assert_robust(subject, inputs, labels, eps=EPS, at_least=1, attack=bim())
    (path,) = caught.value.record.artifacts
    with np.load(path, allow_pickle=False) as saved:
        ids = [int(each) for each in saved["ids"]]
        assert ids == [each["id"] for each in caught.value.record.worst]
        assert torch.equal(torch.from_numpy(saved["clean"]), inputs[ids])
        broken = torch.from_numpy(saved["broken"])
        assert saved["eps"].tolist() == [EPS] * 5
        assert saved["targets"].tolist() == [-1] * 5
    assert (bare(subject)(broken).argmax(1) != labels[ids]).all()
    assert (broken - inputs[ids]).abs().max() <= EPS + 1e-12


def test_saved_counterexamples_of_a_target_reach_it(tmp_path, subject, data):
    inputs, labels = data
    with with_settings(artifacts=tmp_path), pytest.raises(TriGuardFailure) as caught:
        assert_attack_success_below(
            subject, inputs, labels, threshold=0.1, target=1, attack="pgd", eps=EPS
        )
    (path,) = caught.value.record.artifacts
    with np.load(path, allow_pickle=False) as saved:
        assert saved["targets"].tolist() == [1] * 5
        assert (bare(subject)(torch.from_numpy(saved["broken"])).argmax(1) == 1).all()


@pytest.mark.parametrize("passes", [True, False])
def test_files_are_saved_for_failures_alone(tmp_path, subject, data, passes):
    inputs, labels = data
    folder = tmp_path / "artifacts"
    with with_settings(artifacts=folder) as session:
        if passes:
            assert_robust(subject, inputs, labels, eps=EPS, at_least=0, attack=bim())
        else:
            with pytest.raises(TriGuardFailure):
                assert_robust(subject, inputs, labels, eps=0, at_least=1, attack="bim")
        (record,) = session.records.values()
    assert record.artifacts == []
    assert not folder.exists()


def test_a_loop_keeps_the_file_of_its_worst_evaluation(tmp_path, subject, data):
    inputs, labels = data
    with with_settings(artifacts=tmp_path) as session:
        for eps in (0.05, 0.1, 0.04):
            with pytest.raises(TriGuardFailure):
                assert_robust(subject, inputs, labels, eps=eps, at_least=0.99)
        (record,) = session.records.values()
    assert record.evaluations == 3
    (path,) = record.artifacts
    with np.load(path) as saved:
        assert set(saved["eps"].tolist()) == {0.1}


def test_a_named_attack_draws_with_the_seed_of_the_check():
    subject, inputs, labels = problem("conv", count=8)

    def measured(**options):
        with pytest.raises(TriGuardFailure) as caught:
            assert_robust(subject, inputs, labels, eps=0.2, at_least=1, attack="pgd", **options)
        return caught.value.record

    first, again, other = measured(seed=3), measured(seed=3), measured(seed=4)
    assert first.worst == again.worst
    assert [each["logit lead"] for each in first.worst] != [
        each["logit lead"] for each in other.worst
    ]
    assert (first.seed, first.parameters["seed"], other.parameters["seed"]) == (3, 3, 4)
    assert current_session().settings.seed == 0


def test_an_attack_keeps_the_seed_it_brings():
    subject, inputs, labels = problem("conv", count=8)
    attack = attacks.get("pgd", eps=0.1, seed=9)
    found = assert_robust(subject, inputs, labels, eps=0.1, at_least=0, attack=attack, seed=3)
    assert found.parameters["seed"] == 9
    assert found.record.seed == 3
