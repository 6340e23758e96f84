"""Transforms, each against a plain way of doing the same."""

from __future__ import annotations

import dataclasses
from itertools import combinations, product

import pytest
import torch
from scipy import fft
from torch.nn import functional

from pytest_triguard.engine import draws
from pytest_triguard.engine.estimators import Copies, Mean
from pytest_triguard.engine.objectives import logit
from pytest_triguard.engine.transforms.base import (
    GradientTransform,
    copies_of,
    transformed_gradient,
)
from pytest_triguard.engine.transforms.blocks import Blocks
from pytest_triguard.engine.transforms.kernel import Kernel
from pytest_triguard.engine.transforms.neighbourhood import Neighbourhood
from pytest_triguard.engine.transforms.resize_pad import ResizePad, interpolation
from pytest_triguard.engine.transforms.scales import Scales
from pytest_triguard.engine.transforms.spectrum import Spectrum, cosines
from tests.engine.models import ready
from tests.networks import CLASSES, Quadratic, images

SHAPE = (2, 5, 4)
EPS = torch.linspace(0.02, 0.1, 6, dtype=torch.float64)
FORMS = torch.randn(CLASSES, 40, 40, generator=torch.Generator().manual_seed(4)).double()
MODEL = ready(Quadratic((FORMS + FORMS.mT) / 2), 64)


def some(count=6, shape=SHAPE, *, number=0, seed=1):
    """Return copies of some images, all with the same number."""
    keys = draws.row_keys(torch.arange(count), seed=seed, method="test")
    numbers = torch.full((count,), number)
    eps = EPS if count == 6 else torch.full((count,), 0.1, dtype=torch.float64)
    return Copies(images(shape, count), keys, numbers, (eps,))


def close(first, second, tolerance=1e-12):
    return torch.allclose(first, second, rtol=0, atol=tolerance)


# --- resizing and padding ---------------------------------------------------------------------


@pytest.mark.parametrize(("size", "start", "side"), [(3, 1, 5), (7, 0, 5), (6, 1, 6), (2, 4, 9)])
def test_an_axis_is_resized_and_placed_as_torch_does_it(size, start, side):
    values = images((2, side, 1), 3)
    matrix = interpolation(8, torch.tensor([size]), torch.tensor([start]), side, values)[0]
    expected = functional.interpolate(values, (size, 1), mode="bilinear")
    expected = functional.pad(expected, (0, 0, start, 8 - size - start))
    assert close(matrix @ values, expected)


def resized(image, sizes, canvas, place):
    """Return an image resized, padded and brought back to its size, by torch's own functions."""
    side = image.shape[1:]
    small = functional.interpolate(image[None], sizes, mode="bilinear")
    (height, width), (top, left) = canvas, place
    right, bottom = width - sizes[1] - left, height - sizes[0] - top
    padded = functional.pad(small, (left, right, top, bottom))
    return functional.interpolate(padded, side, mode="bilinear")[0]


@pytest.mark.parametrize(
    ("rate", "canvas", "sizes"),
    [
        (1.6, (8, 6), [(5, 4), (6, 4), (6, 5), (7, 5)]),
        (0.5, (5, 4), [(2, 2), (3, 2), (3, 3), (4, 3)]),
    ],
)
def test_every_image_is_resized_and_padded_in_one_of_the_ways_there_are(rate, canvas, sizes):
    copies = some(40)
    found = ResizePad(probability=1.0, rate=rate).apply(MODEL, copies)
    seen = set()
    for image, moved in zip(copies.inputs, found, strict=True):
        ways = [
            (size, place)
            for size in sizes
            for place in product(range(canvas[0] - size[0] + 1), range(canvas[1] - size[1] + 1))
            if close(moved, resized(image, size, canvas, place))
        ]
        assert ways
        seen.add(ways[0])
    assert len(seen) > 6


def test_a_coin_decides_for_each_image():
    copies = some(400)
    found = ResizePad(probability=0.3, rate=1.6).apply(MODEL, copies)
    changed = (found != copies.inputs).flatten(1).any(1)
    assert 0.2 < changed.double().mean() < 0.4
    assert torch.equal(ResizePad(probability=0.0, rate=1.6).apply(MODEL, copies), copies.inputs)


# --- the kernel -------------------------------------------------------------------------------


def dense(kind, size):
    """Return a kernel as the paper gives it, `(size, size)`."""
    half = size // 2
    if kind == "gaussian":
        profile = torch.exp(-0.5 * torch.linspace(-3, 3, size, dtype=torch.float64) ** 2)
    elif kind == "linear":
        profile = 1 - torch.arange(-half, half + 1).abs().double() / (half + 1)
    else:
        profile = torch.ones(size, dtype=torch.float64)
    kernel = torch.outer(profile, profile)
    return kernel / kernel.sum()


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("kind", ["gaussian", "uniform", "linear"])
def test_a_gradient_is_correlated_with_the_kernel_channel_by_channel(kind, size):
    gradient = images((3, 5, 9), 2)
    weight = dense(kind, size).expand(3, 1, size, size)
    expected = functional.conv2d(gradient, weight, padding="same", groups=3)
    assert close(Kernel(size=size, kernel=kind).apply(gradient), expected)


def test_a_constant_gradient_is_kept_away_from_the_border():
    smooth = Kernel(size=5).apply(torch.full((1, 2, 9, 8), 0.3, dtype=torch.float64))
    assert close(smooth[..., 2:-2, 2:-2], torch.tensor(0.3, dtype=torch.float64))
    assert smooth[0, 0, 0, 0] < 0.3


# --- the spectrum -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 224])
def test_the_cosines_are_those_of_the_discrete_cosine_transform(size, dtype):
    matrix = cosines(size, torch.zeros((), dtype=dtype))
    expected = torch.from_numpy(fft.dct(torch.eye(size).double().numpy(), axis=0, norm="ortho"))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert close(matrix.double(), expected, tolerance)
    assert close((matrix.mT @ matrix).double(), torch.eye(size).double(), 10 * tolerance)


def moved(transform, copies):
    """Return copies of samples after a transform of points, as an attack has it."""
    shared = transform.shared(copies.inputs)
    return transform.apply(MODEL, dataclasses.replace(copies, inputs=shared))


def test_each_frequency_is_scaled_by_a_factor_of_its_own():
    copies = some()
    found = moved(Spectrum(rho=0.4, sigma=0.0), copies)
    factor = torch.from_numpy(
        fft.dctn(found.numpy(), axes=(2, 3)) / fft.dctn(copies.inputs.numpy(), axes=(2, 3))
    )
    assert 0.6 <= factor.min() < 0.64
    assert 1.36 < factor.max() < 1.4
    assert factor.unique().numel() == factor.numel()


def test_without_a_mask_only_the_noise_is_left():
    copies = some(60)
    for rho in (0.0, 1e-14):  # in pixels and in frequencies
        noise = moved(Spectrum(rho=rho, sigma=0.2), copies) - copies.inputs
        assert abs(noise.mean()) < 0.02
        assert abs(noise.std() - 0.2) < 0.02
        beside = (noise[..., 1:] * noise[..., :-1]).mean() / noise.var()
        assert abs(beside) < 0.1  # pixels are independent
    assert close(moved(Spectrum(rho=1e-14, sigma=0.0), copies), copies.inputs)
    assert torch.equal(moved(Spectrum(rho=0.0, sigma=0.0), copies), copies.inputs)


# --- scales and neighbours --------------------------------------------------------------------


def test_copies_are_halved_again_and_again():
    for number, factor in enumerate([1, 0.5, 0.25]):
        copies = some(number=number)
        assert torch.equal(Scales(copies=3).apply(MODEL, copies), copies.inputs * factor)


def test_neighbours_fill_a_cube_of_each_samples_own_size():
    copies = some(6, (2, 20, 20))
    offset = Neighbourhood(beta=2.0).apply(MODEL, copies) - copies.inputs
    reach = offset.abs().amax((1, 2, 3)) / EPS
    assert (reach <= 2.0 + 1e-12).all()
    assert (reach > 1.99).all()
    assert (offset.mean((1, 2, 3)).abs() < 0.1 * EPS).all()


# --- blocks -----------------------------------------------------------------------------------


def cut(image, rows, columns):
    """Yield the blocks between cuts, as views."""
    for top, bottom in zip([0, *rows], [*rows, image.shape[1]], strict=True):
        for left, right in zip([0, *columns], [*columns, image.shape[2]], strict=True):
            yield image[:, top:bottom, left:right]


@pytest.mark.parametrize(
    ("operation", "by_hand", "different"),
    [
        ("identity", lambda block: block, 1),
        ("flip_rows", lambda block: block.flip(1), 6),
        ("flip_columns", lambda block: block.flip(2), 3),
        ("rotate", lambda block: block.rot90(2, (1, 2)), 9),
    ],
)
def test_every_block_is_turned_for_some_cut_there_is(operation, by_hand, different):
    copies = some(30)
    found = Blocks(blocks=3, operations=[operation]).apply(MODEL, copies)
    cuts = list(product(combinations(range(1, 5), 2), combinations(range(1, 4), 2)))
    seen = set()
    for image, moved in zip(copies.inputs, found, strict=True):
        ways = []
        for rows, columns in cuts:
            expected = image.clone()
            for block in cut(expected, rows, columns):
                block.copy_(by_hand(block).clone())
            ways += [(rows, columns)] if torch.equal(moved, expected) else []
        assert ways
        seen.add(ways[0])
    assert len(seen) >= different


@pytest.mark.parametrize(("operation", "dim"), [("roll_rows", 1), ("roll_columns", 2)])
def test_a_block_is_rolled_by_any_number_of_places(operation, dim):
    copies = some(60)
    found = Blocks(blocks=1, operations=[operation]).apply(MODEL, copies)
    size = SHAPE[dim]
    shifts = {
        shift
        for image, moved in zip(copies.inputs, found, strict=True)
        for shift in range(size)
        if torch.equal(moved, image.roll(shift, dim))
    }
    assert shifts == set(range(size))
    for image, moved in zip(copies.inputs, found, strict=True):
        assert torch.equal(moved.sort(dim).values, image.sort(dim).values)


def test_a_block_is_scaled_by_one_number():
    copies = some(60)
    found = Blocks(blocks=1, operations=["scale"]).apply(MODEL, copies)
    factor = (found / copies.inputs).flatten(1)
    assert (factor.nan_to_num(0).amax(1) < 1).all()
    assert factor.nanmean(1).std() > 0.2
    assert close(found, copies.inputs * factor.nanmean(1).view(-1, 1, 1, 1))


def test_noise_is_uniform_and_clipped_to_the_range():
    copies = some(60)
    found = Blocks(blocks=1, operations=["noise"], noise=0.1).apply(MODEL, copies)
    assert found.min() == 0
    assert found.max() == 1
    inside = (copies.inputs > 0.1) & (copies.inputs < 0.9)
    noise = (found - copies.inputs)[inside]
    assert 0.099 < noise.abs().max() <= 0.1
    assert abs(noise.std() - 0.1 / 3**0.5) < 0.005


def test_blocks_of_an_image_go_through_operations_of_their_own():
    copies = some(20, (1, 30, 30))
    found = Blocks(operations=["identity", "scale"]).apply(MODEL, copies)
    still = (found == copies.inputs).double().mean((1, 2, 3))
    assert ((still > 0.1) & (still < 0.95)).sum() > 12


# --- together ---------------------------------------------------------------------------------


def slope(points, classes):
    forms = MODEL.module.forms[classes]
    return torch.einsum("nij,nj->ni", forms, points.flatten(1)).view_as(points)


def estimated(transforms, *, chunk=64, **options):
    copies = some()
    return transformed_gradient(
        ready(MODEL.module, chunk),
        copies.inputs,
        torch.arange(6) % CLASSES,
        copies.keys,
        logit,
        transforms,
        context=copies.context,
        **options,
    )


def test_the_gradient_is_taken_at_moved_points_and_through_what_is_seen_of_them():
    copies, classes = some(), torch.arange(6) % CLASSES
    spectrum, expected = Spectrum(copies=3), 0
    for number in range(6):
        # The first transform counts fastest, and every copy has a draw of its own.
        keys = draws.row_keys(copies.keys, seed=0, method="ssa", copy=number)
        point = moved(spectrum, dataclasses.replace(copies, keys=keys))
        factor = [1, 0.5][number // 3]
        expected = expected + factor * slope(factor * point, classes) / 6
    for transforms in ([spectrum, Scales(copies=2)], [Scales(copies=2), spectrum]):
        assert copies_of(transforms) == 6
        assert close(estimated(transforms), expected)


def test_a_spectrum_is_that_of_what_came_before():
    neighbours, still = Neighbourhood(copies=2), Spectrum(copies=1, rho=1e-14, sigma=0.0)
    assert close(estimated([neighbours, still]), estimated([neighbours]))


class Doubled(GradientTransform):
    name = "doubled"

    def apply(self, gradient):
        return 2 * gradient


def test_what_acts_on_gradients_comes_last():
    assert close(estimated([Doubled(), Scales()]), 2 * estimated([Scales()]))


@pytest.mark.parametrize("chunk", [1, 4, 13])
def test_the_chunk_does_not_matter(chunk):
    transforms = [Neighbourhood(copies=2), ResizePad(rate=1.6), Blocks(copies=2), Kernel(size=3)]
    assert close(estimated(transforms, chunk=chunk), estimated(transforms), 1e-12)


def test_copies_may_be_weighted():
    found = estimated([Scales(copies=3)], reduction=Mean([0, 1, 0]))
    inputs = some().inputs
    assert close(found, slope(inputs / 2, torch.arange(6) % CLASSES) / 2)
