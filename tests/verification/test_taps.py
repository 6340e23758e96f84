"""A kernel without the places that only ever meet padding convolves as the whole one does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pytest_triguard import Classifier
from pytest_triguard.verification.intervals import Interval
from pytest_triguard.verification.methods import BOUNDS, Effort
from pytest_triguard.verification.network import Network
from pytest_triguard.verification.operators.taps import meeting
from pytest_triguard.verification.specification import Differences


def drawn(*shape):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(deadline=None, max_examples=300)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    extents=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.just("same"), st.tuples(st.integers(0, 6), st.integers(0, 6))),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]),
)
def test_the_rest_of_a_kernel_convolves_alike(sizes, extents, stride, padding, dilation, groups):
    images, weight = drawn(2, 4, *sizes), drawn(6, 4 // groups, *extents)
    if padding == "same":
        stride = (1, 1)
    try:
        whole = functional.conv2d(images, weight, None, stride, padding, dilation, groups)
    except RuntimeError:  # a kernel that is larger than the padded image
        assume(False)
    part, rest, span = meeting(sizes, weight, stride, padding, dilation)
    found = functional.conv2d(images, part, None, stride, rest, dilation, groups)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    assert (span is None) == (part is weight)
    assert part.shape[2:].numel() <= weight.shape[2:].numel()


@pytest.mark.parametrize(
    ("size", "extent", "stride", "padding", "dilation", "left", "rest"),
    [
        ((1, 1), 3, 1, 1, 1, (1, 1), (0, 0)),
        ((1, 1), 3, 1, "same", 1, (1, 1), (0, 0)),
        ((2, 2), 3, 2, 1, 1, (2, 2), (0, 0)),
        ((1, 4), 3, 1, 1, 1, (1, 3), (0, 1)),
        ((1, 1), 3, 1, 2, 2, (1, 1), (0, 0)),
        ((1, 1), 7, 2, 3, 1, (1, 1), (0, 0)),
        ((2, 2), 5, 1, 2, 1, (3, 3), (1, 1)),
        ((8, 8), 3, 1, 1, 1, (3, 3), 1),
        ((1, 1), 3, 1, "valid", 1, (3, 3), "valid"),
        ((2, 2), 2, 1, "same", 1, (2, 2), "same"),
    ],
)
def test_what_is_left_of_a_kernel(size, extent, stride, padding, dilation, left, rest):
    weight = drawn(2, 3, extent, extent)
    part, pads, _ = meeting(size, weight, stride, padding, dilation)
    assert (tuple(part.shape[2:]), pads) == (left, rest)


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
def test_one_network_bounds_images_of_several_sizes(method):
    """What is kept of a kernel is kept for what it meets."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    module.eval()
    sizes = [2, 6, 1, 3, 2]
    found = [bounded(method, captured(module), size) for size in sizes]
    shared = captured(module)
    for size, expected in zip(sizes, found, strict=True):
        torch.testing.assert_close(bounded(method, shared, size), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(8, 16), (16, 8)])
def test_a_larger_image_adds_up_more_roundings(sizes):
    """Of a bias, once for each place; what was kept of another size does not say how many."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    nn.init.constant_(module[0].bias, 10.0)
    module.append(nn.Linear(4, 3)).eval()
    shared = captured(module).own
    for size in sizes:
        found = bounded("crown", shared, size, torch.float32)
        assert torch.equal(found, bounded("crown", captured(module).own, size, torch.float32))


def captured(module):
    with Classifier(module).prepared() as model:
        return Network(model, torch.float32)


def bounded(method, network, size, dtype=torch.float64):
    images = drawn(2, 1, size, size).to(dtype)
    rows = Differences(torch.tensor([0, 1]), None, 3)
    region = Interval(images - 0.1, images + 0.1)
    return BOUNDS.get(method).margins(network, region, rows, Effort()).margin
