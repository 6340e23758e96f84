"""Robust accuracy at several radii: the counts of separate attacks, for fewer passes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import Classifier, attacks
from pytest_triguard.attacks import Cascade, robust_curve
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from pytest_triguard.statistics import clopper_pearson
from tests.networks import bare, problem
from tests.sessions import with_settings

RADII = [0.0, 0.01, 0.02, 0.04, 0.08]
COUNT = 24
BIM = attacks.get("bim", steps=4)
ATTACKS = {
    "bim": BIM,
    "random starts": attacks.get("pgd", steps=3, restarts=2),
    "L2": attacks.get("pgd", steps=3, norm="l2"),
    "a step of its own": attacks.get("bim", steps=3, step_size=0.02),
    "all steps": attacks.get("mim", steps=3),
    "cascade": Cascade(attacks=(BIM, attacks.get("square", queries=10))),
}


def data():
    """Return a classifier, samples, and labels of which every sixth is wrong."""
    subject, inputs, _ = problem("conv", COUNT)
    labels = bare(subject)(inputs).argmax(1)
    labels[::6] = (labels[::6] + 1) % 4
    return subject, inputs, labels


def fallen(attack, subject, inputs, labels, eps):
    """Return whom a separate attack at one radius brings down, misclassified ones included."""
    return replace(attack, eps=eps)(subject, inputs, labels).success


@pytest.mark.parametrize("name", ATTACKS)
def test_a_sample_stands_where_no_separate_attack_up_to_there_breaks_it(name):
    given, attack = data(), ATTACKS[name]
    found = robust_curve(*given, attack=attack, eps=RADII)
    separate = torch.stack([fallen(attack, *given, each) for each in RADII])
    expected = ~(separate.long().cumsum(0) > 0)
    assert torch.equal(torch.stack([found.standing(each) for each in RADII]), expected)
    assert expected[0].sum() > expected[2].sum() > expected[4].sum(), "samples fall on the way"
    for eps, standing in zip(RADII, expected.sum(1).tolist(), strict=True):
        assert found.rate(eps) == standing / COUNT
        assert found.interval(eps) == clopper_pearson(standing, COUNT, 0.95)


def test_whoever_fell_at_a_smaller_radius_costs_nothing_at_a_larger_one():
    subject, inputs, labels = data()
    attack = replace(BIM, stop="never")
    found = robust_curve(subject, inputs, labels, attack=attack, eps=RADII)
    attacked = [0, *(int(found.standing(each).sum()) for each in RADII[:-1])]
    assert [each["backward"] for each in found.costs] == [4 * each for each in attacked]
    assert [each["forward"] for each in found.costs] == [5 * each for each in attacked]
    assert found.cost["backward"] == sum(each["backward"] for each in found.costs)
    assert found.cost["forward"] == COUNT + sum(each["forward"] for each in found.costs)
    separate = [replace(attack, eps=each)(subject, inputs, labels).cost for each in RADII[1:]]
    assert found.cost["backward"] < 0.8 * sum(each["backward"] for each in separate)


def test_a_sample_that_a_larger_radius_misses_has_fallen_all_the_same():
    """The network's classes are stripes: a long step goes right over the one between."""

    class Stripes(nn.Module):
        def forward(self, inputs):
            value = inputs.flatten(1).sum(1, keepdim=True)
            stripe = torch.cos(20 * torch.pi * value) + value  # the label at 0.1, 0.2, 0.3, ...
            return torch.cat([stripe, torch.zeros_like(stripe)], 1)

    inputs, labels = torch.full((1, 1, 1, 1), 0.497), torch.zeros(1, dtype=torch.int64)
    attack = attacks.get("fgsm")
    subject = Classifier(Stripes())
    separate = [fallen(attack, subject, inputs, labels, each).item() for each in (0.05, 0.1)]
    assert separate == [True, False]
    found = robust_curve(subject, inputs, labels, attack=attack, eps=[0.05, 0.1])
    assert found.fell_at.tolist() == [pytest.approx(0.05)]
    assert [found.rate(0.05), found.rate(0.1)] == [0, 0]


def test_where_each_fell_is_told_in_the_order_of_the_data():
    subject, inputs, labels = data()
    whole = robust_curve(subject, inputs, labels, attack=BIM, eps=RADII)
    assert (whole.fell_at[::6] == -1).all()
    kept = whole.fell_at[whole.fell_at >= 0]
    assert set(kept.tolist()) <= {*RADII[1:], torch.inf}
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=7)
    with with_settings(chunk=5):
        chunked = robust_curve(subject, loader, attack=BIM, eps=RADII)
    assert torch.equal(chunked.fell_at, whole.fell_at)
    assert chunked.cost == whole.cost
    order = torch.arange(COUNT - 1, -1, -1)
    turned = robust_curve(subject, inputs[order], labels[order], attack=BIM, eps=RADII)
    assert torch.equal(turned.fell_at, whole.fell_at[order])


def test_draws_go_with_ids():
    subject, inputs, labels = data()
    attack, ids = ATTACKS["random starts"], [f"image-{place}" for place in range(COUNT)]
    whole = robust_curve(subject, inputs, labels, attack=attack, eps=RADII, ids=ids)
    part = robust_curve(subject, inputs[9:], labels[9:], attack=attack, eps=RADII, ids=ids[9:])
    assert torch.equal(part.fell_at, whole.fell_at[9:])


def test_the_table_can_be_read():
    found = robust_curve(*data(), attack=BIM, eps=RADII, confidence=0.9)
    method, _, *rows = str(found).splitlines()
    assert method == BIM.describe()
    for eps, row in zip(RADII, rows, strict=True):
        shown = re.match(r"(\S+) +(\d+)/24 +([\d.]+) to ([\d.]+) % +(\d+)$", row).groups()
        low, high = clopper_pearson(int(shown[1]), COUNT, 0.9)
        assert float(shown[0]) == eps
        assert int(shown[1]) == found.standing(eps).sum()
        assert (float(shown[2]), float(shown[3])) == pytest.approx(
            (100 * low, 100 * high), abs=0.06
        )


def test_bad_arguments_are_refused():
    subject, inputs, labels = data()
    for error, message, options in (
        (InputTypeError, "attack must be an attack, such as attacks.get('mim')", {"attack": "bim"}),
        (InputTypeError, "eps must be a sequence of numbers, but 0.1 came", {"eps": 0.1}),
        (InputError, "eps must be one number or more that rise, but", {"eps": [0.2, 0.1]}),
        (InputError, "eps must be one number or more that rise, but", {"eps": []}),
        (InputError, "eps must be at least 0, but -1 came", {"eps": [-1, 0.1]}),
        (InputError, "eps must not exceed the range of the inputs, 1, but 2", {"eps": [0.1, 2]}),
        (InputError, "confidence must be below 1, but 1 came", {"confidence": 1}),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            robust_curve(subject, inputs, labels, **({"attack": BIM, "eps": RADII} | options))
    found = robust_curve(subject, inputs, labels, attack=BIM, eps=[0.01])
    with pytest.raises(InputError, match=r"^eps must be one of 0\.01, but 0\.02 came"):
        found.rate(0.02)

    class Broken(nn.Module):
        def forward(self, inputs):
            flat = inputs.flatten(1)[:, :2]
            return torch.where(flat > 0.999, torch.nan, flat)

    inputs = torch.rand(9, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.9
    inputs[6, 0, 0, 0] = 1
    with pytest.raises(ModelError, match="finite logits, but those of sample 6 are not"):
        robust_curve(Classifier(Broken()), inputs, torch.zeros(9).long(), attack=BIM, eps=[0.01])
