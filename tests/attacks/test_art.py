"""The attacks against those of ART, the Adversarial Robustness Toolbox."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from pytest_triguard import attacks
from tests.attacks.peers import (
    ALIKE,
    COUNT,
    EPS,
    STEP,
    STEPS,
    Pair,
    check_equal,
    claimed,
    smooth,
)
from tests.networks import CLASSES, bare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, of packages it would like to have
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

THERE = {"eps_step": STEP, "max_iter": STEPS, "verbose": False}
STILL = ALIKE | {"random_start": False}
PAIRS = (
    Pair("fgsm", "FastGradientMethod"),
    Pair("fgsm", "FastGradientMethod", norm="l2"),
    Pair("bim", "BasicIterativeMethod", ALIKE, THERE),
    Pair("pgd", "ProjectedGradientDescent", STILL, THERE),
    Pair("pgd", "ProjectedGradientDescent", STILL, THERE, norm="l2"),
    Pair("mim", "MomentumIterativeMethod", ALIKE | {"momentum": 0.9}, THERE | {"decay": 0.9}),
)


def there(name, norm, **options):
    """Return the examples of an attack of the other library."""
    subject, inputs, labels = smooth()
    shape = tuple(inputs.shape[1:])
    network = PyTorchClassifier(
        bare(subject), nn.CrossEntropyLoss(), shape, CLASSES, clip_values=(0, 1), device_type="cpu"
    )
    if norm == "l2":
        options["norm"] = 2
    attack = getattr(evasion, name)(network, eps=EPS[norm], **options)
    return torch.from_numpy(attack.generate(inputs.numpy(), np.eye(CLASSES)[labels.numpy()]))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_examples_are_the_same(pair):
    check_equal(pair.run(*smooth()), there(pair.there, pair.norm, **pair.other))


def test_the_same_samples_fall_to_apgd():
    subject, inputs, labels = smooth()
    result = attacks.get("apgd_ce", eps=EPS["linf"], steps=20)(subject, inputs, labels)
    others = {"max_iter": 20, "nb_random_init": 1, "loss_type": "cross_entropy"}
    found = there(
        "AutoProjectedGradientDescent", "linf", eps_step=2 * EPS["linf"], verbose=False, **others
    )
    fell = subject(found).argmax(1) != labels
    assert 0 < int(result.success.sum()) < COUNT
    assert int((result.success != fell).sum()) <= 1  # they draw from different generators


def test_what_is_checked_here_is_said():
    assert claimed("ART") == {pair.name for pair in PAIRS} | {"apgd_ce"}
