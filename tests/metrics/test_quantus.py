"""The metrics against those of Quantus, on grey images: it removes channels one by one."""

from __future__ import annotations

import functools
import math
import warnings

import pytest
import torch
from torch import Tensor

from pytest_triguard import attributions, metrics
from pytest_triguard.classifier import Classifier
from pytest_triguard.metrics.imputation import harmonic
from tests.networks import bare, problem

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, of packages it would like to have
    quantus = pytest.importorskip("quantus")

COUNT = 6
PIXELS = 48
OPTIONS = {"abs": False, "normalise": False, "disable_warnings": True}


@functools.cache
def explained() -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """Return a classifier, grey images, classes, and maps without two equal values."""
    subject, inputs, _ = problem("bias_free", COUNT, torch.float32)
    targets = subject(inputs).argmax(1)
    maps = attributions.get("smoothgrad", copies=4)(subject, inputs, targets)
    # Pixels that no gradient reaches are equal, and each library breaks ties in its own way.
    return subject, inputs, targets, maps + torch.linspace(0, 1e-3, PIXELS).view(1, 1, 6, 8)


def there(name: str, masks: Tensor | None = None, **options: object) -> Tensor:
    """Return what the other library's metric says of the maps, as it says it."""
    subject, inputs, targets, maps = explained()
    metric = getattr(quantus, name)(**{**OPTIONS, **options})
    found = metric(
        model=bare(subject),
        x_batch=inputs.numpy(),
        y_batch=targets.numpy(),
        a_batch=maps.numpy(),
        s_batch=None if masks is None else masks.numpy(),
        channel_first=True,
        softmax=True,
    )
    return torch.as_tensor(found, dtype=torch.float32).view(COUNT, -1)


@pytest.mark.filterwarnings("ignore:The settings for perturbing input")
@pytest.mark.parametrize("absolute", [True, False])
def test_pixel_flipping_is_the_curve_of_deletion_without_its_first_point(absolute):
    subject, inputs, targets, maps = explained()
    deletion = metrics.get("deletion", steps=PIXELS, absolute=absolute)
    curve = deletion.curve(maps, subject, inputs, targets)
    assert curve.values.shape == (COUNT, PIXELS + 1)
    flipped = there("PixelFlipping", abs=absolute, features_in_step=1, perturb_baseline=0.0)
    assert torch.allclose(flipped, curve.values[:, 1:], atol=1e-5)


def test_relevance_rank_accuracy_is_trigger_recall():
    *_, maps = explained()
    mask = torch.zeros(COUNT, 1, 6, 8, dtype=torch.bool)
    mask[:, :, 1:4, 2:6] = True
    found = metrics.get("trigger_recall")(maps, mask)
    assert 0 < float(found.mean()) < 1
    assert torch.allclose(there("RelevanceRankAccuracy", mask, abs=True)[:, 0], found)


def test_pointing_game():
    *_, maps = explained()
    mask = torch.zeros(COUNT, 1, 6, 8, dtype=torch.bool)
    mask[:, :, 1:4, 2:6] = True
    found = metrics.get("pointing_game")(maps, mask)
    assert 0 < float(found.sum()) < COUNT
    assert torch.equal(there("PointingGame", mask, abs=True)[:, 0], found)


def test_complexity_is_entropy_before_it_is_normalised():
    *_, maps = explained()
    found = metrics.get("entropy")(maps) * math.log(PIXELS)
    assert torch.allclose(there("Complexity", abs=True)[:, 0], found, atol=1e-5)


def test_imputed_pixels_are_those_of_noisy_linear_imputation_without_the_noise():
    impute = quantus.perturb_func.noisy_linear_imputation
    images = torch.rand(1, 2, 6, 8, generator=torch.Generator().manual_seed(2)).double()
    shown = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(3)) > 0.7
    gone = (~shown).flatten().nonzero().squeeze(1).numpy()
    expected = impute(arr=images[0].numpy().copy(), indices=gone, noise=0.0)
    found = harmonic(images, shown, tolerance=torch.tensor(1e-12).double())
    assert torch.allclose(found[0], torch.as_tensor(expected).view(2, 6, 8), atol=1e-9)


def test_what_is_checked_here_is_said():
    claimed = {name for name in metrics.names() if "Quantus" in metrics.get(name).facts.checked}
    assert claimed == {"deletion", "entropy", "pointing_game", "trigger_recall"}
