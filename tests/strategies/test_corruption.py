"""Corruptions: as published, in range, each sample's own, shrunk to the mildest that matters."""

import builtins
import io
import re

import numpy as np
import pytest
import torch
from hypothesis import find, given, settings
from PIL import Image

from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.strategies import Corruption, corruptions
from pytest_triguard.strategies.corruption import KINDS
from tests.networks import images
from tests.simulated_accelerator import simulated_accelerator

FEW = settings(max_examples=20, deadline=None, database=None, derandomize=True)
SMALL, LARGE, LINE = (3, 12, 10), (3, 66, 70), (1, 9, 1)
RANDOM = ("speckle_noise", "gaussian_noise", "impulse_noise")


def corrupted(kind, severity, clean, **options):
    return Corruption(kind, severity, **options)(clean)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [SMALL, LARGE, LINE])
def test_it_corrupts_more_the_severer_it_is_and_stays_in_range(kind, shape):
    clean = images(shape, 2, torch.float32)
    before = clean.clone()
    changes = []
    for severity in range(1, 6):
        found = corrupted(kind, severity, clean)
        assert (found.shape, found.dtype) == (clean.shape, clean.dtype)
        assert found.min() >= 0
        assert found.max() <= 1
        changes.append((found - clean).abs().mean().item())
    assert torch.equal(clean, before)
    assert changes[4] > 0 or (kind == "impulse_noise" and shape == LINE)
    if shape == LARGE:
        assert changes == sorted(changes)


def test_brightness_and_contrast_are_their_formulas():
    clean = images(SMALL, 3, torch.float64) * 0.8 + 0.1
    value = clean.amax(1, keepdim=True)
    expected = clean * (value + 0.15).clamp_max(1) / value
    torch.testing.assert_close(corrupted("brightness", 3, clean), expected)
    means = clean.mean((2, 3), keepdim=True)
    expected = ((clean - means) * 0.4 + means).clamp(0, 1)
    torch.testing.assert_close(corrupted("contrast", 3, clean), expected)
    black = torch.zeros(1, 3, 4, 4)
    torch.testing.assert_close(corrupted("brightness", 2, black), black + 0.1)


def test_pixels_are_averaged_and_repeated():
    clean = images((1, 64, 64), 1, torch.float64)
    blocks = clean.view(1, 1, 16, 4, 16, 4).mean((3, 5))
    expected = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(corrupted("pixelate", 5, clean), expected, atol=1e-6, rtol=0)


def test_noise_has_the_spread_and_share_that_are_published():
    grey = torch.full((4, 3, 100, 100), 0.5, dtype=torch.float64)
    noise = corrupted("gaussian_noise", 1, grey) - grey
    assert noise.std().item() == pytest.approx(0.08, rel=0.02)
    speckles = corrupted("speckle_noise", 1, grey) - grey
    assert speckles.std().item() == pytest.approx(0.15 * 0.5, rel=0.02)
    hit = corrupted("impulse_noise", 5, grey)
    assert (hit == 0).double().mean().item() == pytest.approx(0.135, abs=0.005)
    assert (hit == 1).double().mean().item() == pytest.approx(0.135, abs=0.005)
    assert (hit == 0.5).double().mean().item() == pytest.approx(0.73, abs=0.01)


def test_blur_keeps_what_is_flat_and_spreads_a_point_as_a_gaussian():
    flat = torch.full((1, 3, 70, 70), 0.3, dtype=torch.float64)
    torch.testing.assert_close(corrupted("gaussian_blur", 5, flat), flat)
    point = torch.zeros(1, 1, 65, 65, dtype=torch.float64)
    point[0, 0, 32, 32] = 1
    spread = corrupted("gaussian_blur", 2, point)[0, 0]
    steps = torch.arange(-32, 33, dtype=torch.float64)
    line = torch.exp(-(steps**2) / 8)
    expected = torch.outer(line, line) / line.sum() ** 2
    torch.testing.assert_close(spread, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_the_file_that_pillow_writes(channels):
    image = images((channels, 16, 24), 1, torch.float64)
    pixels = (image[0] * 255).round().byte().movedim(0, -1).squeeze(-1).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=40)
    read = torch.from_numpy(np.array(Image.open(file))).view(16, 24, channels).movedim(-1, 0)
    assert torch.equal(corrupted("jpeg", 5, image)[0], read.double() / 255)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_corrupted_alike_whatever_comes_with_it(kind):
    clean = images(SMALL, 3, torch.float32)
    whole = corrupted(kind, 3, clean, seed=5)
    assert torch.equal(whole, corrupted(kind, 3, clean, seed=5))
    torch.testing.assert_close(corrupted(kind, 3, clean[:1], seed=5), whole[:1])
    torch.testing.assert_close(corrupted(kind, 3, clean[0], seed=5), whole[0])
    other = corrupted(kind, 3, clean, seed=6)
    assert torch.equal(whole, other) == (kind not in RANDOM)


@pytest.mark.parametrize("kind", KINDS)
def test_severities_are_shares_of_the_range(kind):
    clean = images(SMALL, 2, torch.float64)
    low, high = [-1.0, 0.0, 2.0], [1.0, 0.5, 6.0]
    floor, width = (
        torch.tensor(each, dtype=torch.float64).view(1, 3, 1, 1) for each in (low, [2.0, 0.5, 4.0])
    )
    found = corrupted(kind, 4, floor + width * clean, bounds=(low, high))
    torch.testing.assert_close(found, floor + width * corrupted(kind, 4, clean))


def test_an_accelerator_gives_the_same():
    clean = images(SMALL, 2, torch.float32)
    with simulated_accelerator():
        found = corrupted("gaussian_noise", 2, clean.to("sim"))
        assert found.device.type == "sim"
        assert torch.equal(found.cpu(), corrupted("gaussian_noise", 2, clean))


@FEW
@given(corruption=corruptions(3))
def test_no_draw_is_severer_than_asked_for(corruption):
    assert 1 <= corruption.severity <= 3
    assert corruption.kind in RANDOM or corruption.seed == 0
    assert eval(repr(corruption)) == corruption


def test_all_kinds_are_drawn_and_only_those_that_are_named():
    for kind in KINDS:
        assert find(corruptions(), lambda each, kind=kind: each.kind == kind).severity == 1
    only = corruptions(kinds=["jpeg"])
    assert find(only, lambda _: True) == Corruption("jpeg", 1)


def test_it_shrinks_to_the_mildest_that_matters():
    clean = images(SMALL, 2, torch.float32)
    assert find(corruptions(), lambda _: True) == Corruption("brightness", 1)
    found = find(
        corruptions(kinds=["gaussian_noise"]),
        lambda each: (each(clean) - clean).abs().mean() > 0.055,
    )
    assert (found.severity, found.seed) == (3, 0)


def test_wrong_arguments_are_refused():
    clean = images((2, 12, 10), 2, torch.float32)
    for error, message, call in (
        (InputError, "severity must be at least 1, but 0 came", lambda: corruptions(0)),
        (InputError, "severity must be at most 5, but 6 came", lambda: corruptions(6)),
        (InputError, "kinds must be one of 'brightness', ", lambda: corruptions(kinds=["snow"])),
        (InputError, "kinds must name at least one kind", lambda: corruptions(kinds=[])),
        (
            InputTypeError,
            "kinds must be a list of names, but 'jpeg'",
            lambda: corruptions(kinds="jpeg"),
        ),
        (InputError, "kind must be one of 'brightness', ", lambda: Corruption("snow", 1)),
        (
            InputError,
            "inputs must have 1 or 3 channels for jpeg, but 2",
            lambda: corrupted("jpeg", 1, clean),
        ),
        (
            InputError,
            "inputs must lie inside the bounds, [0, 1], but values",
            lambda: corrupted("contrast", 1, clean + 1),
        ),
        (InputTypeError, "inputs must be floating", lambda: corrupted("contrast", 1, clean.byte())),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            call()


def test_without_pillow_the_kinds_that_need_it_say_so(monkeypatch):
    known = builtins.__import__

    def without(name, *args, **options):
        if name == "PIL":
            raise ModuleNotFoundError(name)
        return known(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pixelate needs Pillow.*\[corruptions\]"):
        corruptions()
    assert corruptions(kinds=["brightness", "gaussian_noise"]) is not None
