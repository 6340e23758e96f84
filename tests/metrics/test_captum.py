"""Metrics held against Captum's, on the perturbations that ours draw."""

from __future__ import annotations

import pytest
import torch
from captum.attr import Saliency
from captum.metrics import infidelity, sensitivity_max

from pytest_triguard import attributions, metrics
from pytest_triguard.classifier import Classifier
from tests.networks import Recorder, bare, images, problem
from tests.sessions import with_settings

COUNT, COPIES = 4, 6


@pytest.fixture
def held():
    """Return a network, its classifier that keeps what it is shown, images and classes."""
    subject, inputs, targets = problem("smooth", COUNT)
    recorder = Recorder(bare(subject))
    return bare(subject), Classifier(recorder), recorder, inputs, targets


@pytest.mark.parametrize("scaled", [False, True])
def test_infidelity(held, scaled):
    network, subject, recorder, inputs, targets = held
    maps = images(inputs.shape[1:], COUNT, seed=5) - 0.5
    metric = metrics.get("infidelity", copies=COPIES, scaled=scaled)
    with with_settings(chunk=COUNT * COPIES):
        found = metric(maps, subject, inputs, targets)
    seen = recorder.seen[-1]  # the copies of each sample follow each other, as Captum's do

    def perturb(repeated):
        return repeated - seen, seen

    expected = infidelity(
        network,
        perturb,
        inputs,
        maps,
        target=targets,
        n_perturb_samples=COPIES,
        normalize=scaled,
    )
    assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:Input Tensor")
def test_max_sensitivity(held):
    network, subject, recorder, inputs, targets = held
    maps = attributions.get("saliency")(Classifier(network), inputs, targets)
    with with_settings(chunk=COUNT):
        found = metrics.get("max_sensitivity", copies=COPIES)(maps, subject, inputs, targets)
    seen = torch.stack(recorder.seen[-COPIES:], 1).flatten(0, 1)

    def explain(points, target):
        return Saliency(network).attribute(points, target=target, abs=False)

    expected = sensitivity_max(
        explain,
        inputs,
        perturb_func=lambda points, radius: (seen,),
        n_perturb_samples=COPIES,
        target=targets,
    )
    assert torch.allclose(found, expected, rtol=1e-9)


def test_what_is_checked_here_is_said():
    claimed = {name for name in metrics.names() if "Captum" in metrics.get(name).facts.checked}
    assert claimed == {"infidelity", "max_sensitivity"}
