"""Strokes: what a painting looks like follows from them alone, part by part."""

import dataclasses

import pytest
import torch

from pytest_triguard.strategies.strokes import TEXTURES, Stroke, paint

SHAPE = (3, 2, 7, 10)
WHOLE = Stroke(
    samples=(0, 3),
    channels=(0, 2),
    rows=(0, 7),
    columns=(0, 10),
    texture="flat",
    cell=1,
    seed=4,
    strength=-0.5,
)


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("cell", [1, 2, 4])
def test_a_smaller_stroke_is_a_part_of_the_larger_one(texture, cell):
    large = dataclasses.replace(WHOLE, texture=texture, cell=cell)
    small = dataclasses.replace(large, samples=(1, 2), channels=(1, 2), rows=(2, 5), columns=(3, 9))
    part = torch.zeros(SHAPE, dtype=torch.bool)
    part[1:2, 1:2, 2:5, 3:9] = True
    expected = paint([large], SHAPE) * part
    assert texture == "speckles" or expected.any()
    assert torch.equal(paint([small], SHAPE), expected)


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_texture_keeps_to_its_strength_and_its_seed_decides(texture):
    stroke = dataclasses.replace(WHOLE, texture=texture)
    canvas = paint([stroke], SHAPE)
    assert 0 < canvas.abs().max() <= 0.5
    other = paint([dataclasses.replace(stroke, seed=5)], SHAPE)
    assert torch.equal(canvas, other) == (texture in ("flat", "checkerboard"))
    if texture not in ("noise", "speckles"):
        assert (canvas.abs() == 0.5).all()


@pytest.mark.parametrize("texture", ["signs", "noise", "speckles"])
def test_random_textures_differ_from_sample_to_sample_and_are_squares_of_a_cell(texture):
    canvas = paint([dataclasses.replace(WHOLE, texture=texture, cell=2)], SHAPE)
    assert not torch.equal(canvas[0], canvas[1])
    assert torch.equal(canvas[..., 0:6:2, ::2], canvas[..., 1:6:2, 1::2])


def test_the_last_stroke_covers_those_before_it():
    top = dataclasses.replace(WHOLE, rows=(0, 3), strength=1.0)
    canvas = paint([WHOLE, top], SHAPE)
    assert (canvas[:, :, :3] == 1).all()
    assert (canvas[:, :, 3:] == -0.5).all()


def test_no_strokes_are_an_empty_canvas():
    assert not paint([], SHAPE).any()
