"""Patches: inside their mask and the bounds, shrunk to one plain colour."""

import re

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from pytest_triguard import backdoors
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.strategies import patches
from tests.networks import images

FEW = settings(max_examples=20, deadline=None, database=None, derandomize=True)
SEARCH = settings(FEW, max_examples=500)


def mask(*shape, rows=slice(1, 3), columns=slice(2, 5)):
    where = torch.zeros(shape, dtype=torch.bool)
    where[..., rows, columns] = True
    return where


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@FEW
@given(patch=patches(mask(6, 5), channels=3, bounds=([-0.3, 0, 0.1], [0.7, 1, 0.2])))
def test_only_the_mask_changes_and_to_what_is_in_bounds(patch, dtype):
    inputs = images((3, 6, 5), 2, dtype) * 0.1 + 0.1
    before = inputs.clone()
    patched = patch(inputs)
    assert (patched.shape, patched.dtype) == (inputs.shape, dtype)
    inside = mask(6, 5).expand_as(inputs)
    assert torch.equal(patched[~inside], before[~inside])
    assert torch.equal(patched[inside], patch.content.to(dtype).expand_as(inputs)[inside])
    for channel, (low, high) in enumerate([(-0.3, 0.7), (0.0, 1.0), (0.1, 0.2)]):
        ends = torch.tensor([low, high], dtype=dtype)
        content = patched[:, channel][inside[:, channel]]
        assert (content >= ends[0]).all()
        assert (content <= ends[1]).all()
        assert low <= patch.plain[channel] <= high
    assert torch.equal(inputs, before)
    assert patched.data_ptr() != inputs.data_ptr()


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (1, 1, 6, 5), (2, 1, 6, 5)])
@FEW
@given(data=st.data())
def test_masks_of_every_shape(shape, data):
    patch = data.draw(patches(mask(*shape)))
    inputs = images((3, 6, 5), 2, torch.float32)
    changed = (patch(inputs) != inputs).any(1)
    assert not changed[:, ~mask(6, 5)].any()
    if shape[0] != 2:
        assert torch.equal(patch(inputs[0]), patch(inputs)[0])


@FEW
@given(data=st.data())
def test_each_sample_has_its_place(data):
    where = torch.cat([mask(1, 1, 6, 5), mask(1, 1, 6, 5, rows=slice(4, 6))])
    inputs = torch.full((2, 1, 6, 5), 0.123)
    patched = data.draw(patches(where))(inputs)
    assert torch.equal(patched[~where], inputs[~where])


def test_a_trigger_says_where():
    trigger, inputs = backdoors.get("badnets"), images((1, 8, 8), 3, torch.float32)
    where = trigger.mask(inputs)
    patched = find(patches(where), lambda patch: (patch.content.amax() == 1).item())(inputs)
    assert torch.equal(patched[~where], inputs[~where])


def test_it_shrinks_to_the_lower_end_everywhere():
    patch = find(patches(mask(6, 5), channels=3, bounds=(-1, 1)), lambda _: True)
    assert patch.strokes == ()
    assert patch.plain == (-1.0, -1.0, -1.0)
    assert (patch.content[:, mask(6, 5)] == -1).all()
    assert (patch.content[:, ~mask(6, 5)] == 0).all()


def test_it_shrinks_to_a_plain_patch_that_is_just_bright_enough():
    patch = find(patches(mask(6, 5)), lambda patch: patch.content.sum() > 3.1, settings=SEARCH)
    assert patch.strokes == ()
    assert 3.1 / 6 <= patch.plain[0] <= 3.1 / 6 + 0.01


def test_it_shrinks_to_one_stroke_where_a_plain_patch_will_not_do():
    inside = mask(6, 5)
    patch = find(
        patches(inside),
        lambda patch: patch.content[0, 1, 2] > 0.3 and patch.content[0, 2, 4] == 0,
        settings=SEARCH,
    )
    assert len(patch.strokes) == 1
    assert patch.plain == (0.0,)
    assert patch.content[0, 1, 2] <= 0.32


def test_solid_and_patterned_patches_of_any_colour_are_drawn():
    found = []

    @settings(FEW, max_examples=60)
    @given(patch=patches(mask(6, 5)))
    def keep(patch):
        found.append(patch.content[0][mask(6, 5)])

    keep()
    solid = [float(each[0]) for each in found if (each == each[0]).all()]
    assert {0.0, 1.0} < set(solid)
    assert len(solid) < len(found)


def test_it_prints_colour_and_strokes():
    patch = find(patches(mask(6, 5)), lambda _: True)
    assert repr(patch) == "Patch(plain=(0.0,), strokes=())"


BAD = [
    ({"mask": [True]}, InputTypeError, "mask must be a bool tensor, but [True] came"),
    ({"mask": torch.ones(4, 4)}, InputTypeError, "mask must be a bool tensor, but a Tensor of"),
    ({"mask": mask(3, 6, 5)}, InputError, "mask must have shape (H, W), (1, H, W) or (N, 1, H"),
    ({"mask": mask(6, 5)[0]}, InputError, "mask must have shape"),
    ({"mask": ~mask(6, 5, rows=slice(None), columns=slice(None))}, InputError, "mask must be Tr"),
    ({"channels": 0}, InputError, "channels must be at least 1, but 0 came"),
    ({"channels": 1.0}, InputTypeError, "channels must be a whole number"),
    (
        {"channels": 2, "bounds": ([0] * 3, [1] * 3)},
        InputError,
        "channels must be the 3 that bounds",
    ),
    ({"bounds": (1, 1)}, InputError, "bounds must rise from low to high"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_a_bad_argument_is_named_when_the_strategy_is_made(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        patches(**{"mask": mask(6, 5)} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ("images", InputTypeError),
        (torch.zeros(2, 3, 6, 5, dtype=torch.uint8), InputTypeError),
        (torch.zeros(2, 3, 5, 6), InputError),
        (torch.zeros(2, 1, 6, 5), InputError),
        (torch.zeros(3, 3, 6, 5), InputError),
        (torch.zeros(3, 6, 5), InputError),
        (torch.zeros(6, 5), InputError),
    ],
)
def test_inputs_that_do_not_go_with_the_patch_are_refused(inputs, error):
    patch = find(patches(mask(2, 1, 6, 5), channels=3), lambda _: True)
    wanted = re.escape("inputs must ")
    with pytest.raises(error, match=wanted) as caught:
        patch(inputs)
    if error is InputError:
        assert "(2, 3, 6, 5) to go with the patch, but a Tensor of shape" in str(caught.value)
