"""The table of triggers: what all of them promise, and the equation of each."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import backdoors, metrics
from pytest_triguard.errors import InputError, InputTypeError
from tests.simulated_accelerator import simulated_accelerator

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10**6)
colour_pattern = torch.linspace(0, 1, 3 * 2 * 3, dtype=torch.float64).view(3, 2, 3)


def images(seed=0, shape=(3, 9, 7), rows=4, low=0.0, high=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(rows, *shape, generator=generator, dtype=dtype)


@dataclass(frozen=True)
class Row:
    name: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] = (1, 3)

    def trigger(self, **others):
        return backdoors.get(self.name, target=2, **self.hyperparameters | others)


TABLE = {
    "badnets": Row("badnets"),
    "badnets-solid": Row("badnets", {"pattern": 0.25, "size": (2, 4), "position": (1, 2)}),
    "badnets-colour": Row("badnets", {"pattern": (1.0, 0.0, 0.5), "position": "center"}, (3,)),
    "badnets-tensor": Row("badnets", {"pattern": colour_pattern, "position": "top_left"}, (3,)),
    "badnets-grey-tensor": Row("badnets", {"pattern": colour_pattern[:1]}),
    "blend": Row("blend"),
    "blend-strong": Row("blend", {"alpha": 0.9, "size": 5, "position": "top_right"}),
    "blend-solid": Row("blend", {"pattern": 0.75, "size": 2, "position": "bottom_left"}),
    "blend-tensor": Row("blend", {"pattern": colour_pattern, "alpha": 0.5}, (3,)),
}
of_each = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
of_each_shape = pytest.mark.parametrize(
    ("row", "shape"),
    [
        pytest.param(row, (channels, *sides), id=f"{key}-{channels}x{sides[0]}x{sides[1]}")
        for key, row in TABLE.items()
        for channels in row.channels
        for sides in ((9, 7), (6, 8))
    ],
)


def shape_for(row):
    return (row.channels[-1], 9, 7)


def test_the_table_of_tests_names_every_trigger():
    assert {row.name for row in TABLE.values()} == set(backdoors.names())


@of_each_shape
@few
@given(seed=seeds)
def test_only_the_mask_changes_and_the_result_stays_in_bounds(row, shape, seed):
    clean = images(seed, shape)
    before = clean.clone()
    trigger = row.trigger()
    poisoned, mask = trigger(clean), trigger.mask(clean)
    assert torch.equal(clean, before)
    assert poisoned.shape == clean.shape
    assert mask.shape == (4, 1, *shape[1:])
    assert mask.dtype == torch.bool
    assert torch.equal(torch.where(mask, 0.0, poisoned), torch.where(mask, 0.0, clean))
    assert bool(((poisoned >= 0) & (poisoned <= 1)).all())


@of_each_shape
def test_every_pixel_of_the_mask_changes_in_an_image_unlike_the_pattern(row, shape):
    trigger = row.trigger()
    clean = torch.full((1, *shape), 0.61803, dtype=torch.float64)
    changed = (trigger(clean) != clean).any(1, keepdim=True)
    assert torch.equal(changed, trigger.mask(clean))
    assert changed.any()


@of_each
def test_a_sample_does_not_depend_on_its_neighbours(row):
    clean = images(1, shape_for(row))
    trigger = row.trigger()
    for apply in (trigger, trigger.mask):
        alone = torch.cat([apply(clean[at : at + 1]) for at in range(4)])
        assert torch.equal(alone, apply(clean))
        assert torch.equal(apply(clean.flip(0)).flip(0), apply(clean))


@of_each
def test_a_mask_is_the_same_with_and_without_the_trigger(row):
    clean = images(2, shape_for(row))
    trigger = row.trigger()
    assert torch.equal(trigger.mask(trigger(clean)), trigger.mask(clean))


@of_each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_dtype_of_the_images_is_kept(row, dtype):
    clean = images(0, shape_for(row), dtype=dtype)
    assert row.trigger()(clean).dtype == dtype
    exact = row.trigger()(clean.double())
    assert torch.allclose(row.trigger()(clean).double(), exact, atol=2e-3)


@of_each
def test_no_images_give_no_images(row):
    none = images(rows=0, shape=shape_for(row))
    assert row.trigger()(none).shape == none.shape
    assert row.trigger().mask(none).shape == (0, 1, 9, 7)


@of_each
def test_an_accelerator_gives_the_hosts_images_without_waiting(row):
    clean = images(0, shape_for(row), dtype=torch.float32)
    trigger = row.trigger()
    expected, mask = trigger(clean), trigger.mask(clean)
    with simulated_accelerator() as sim:
        there = clean.to("sim")
        sim.reset()
        poisoned, marked = trigger(there), trigger.mask(there)
        assert (sim.host_reads, sim.cpu_factories) == ([], [])
        # A pattern given as a tensor lies on the host and travels with each call.
        assert {upload.shape for upload in sim.uploads} <= {(3, 2, 3), (1, 2, 3)}
        assert poisoned.device.type == marked.device.type == "sim"
        assert torch.equal(poisoned.cpu(), expected)
        assert torch.equal(marked.cpu(), mask)


@of_each
def test_parameters_are_plain_and_name_the_trigger(row):
    parameters = row.trigger().parameters()
    assert json.loads(json.dumps(parameters)) == parameters
    assert (parameters["backdoor"], parameters["target"]) == (row.name, 2)
    assert parameters["bounds"] == [0.0, 1.0]


def test_parameters_tell_patterns_apart():
    first, same, other = (
        backdoors.get("badnets", pattern=pattern).parameters()["pattern"]
        for pattern in (colour_pattern, colour_pattern.clone(), colour_pattern.flip(2))
    )
    assert first == same != other
    assert first.startswith("(3, 2, 3) torch.float64 ")


@of_each
def test_a_trigger_cannot_be_changed(row):
    with pytest.raises(FrozenInstanceError):
        row.trigger().target = 1


@pytest.mark.parametrize("name", backdoors.names())
def test_the_target_is_class_zero_unless_it_is_named(name):
    assert backdoors.get(name).target == 0
    assert backdoors.get(name, target=7).target == 7


def test_badnets_replaces_a_white_square_in_the_bottom_right_corner():
    clean = images()
    expected = clean.clone()
    expected[:, :, -3:, -3:] = 1.0
    trigger = backdoors.get("badnets", target=0)
    assert torch.equal(trigger(clean), expected)
    assert int(trigger.mask(clean).sum()) == 4 * 9


def test_badnets_shows_a_tensor_as_it_is_dark_pixels_included():
    clean = images() + 0.01
    trigger = backdoors.get("badnets", pattern=torch.zeros(3, 2, 2), position=(3, 1))
    assert (trigger(clean)[:, :, 3:5, 1:3] == 0).all()
    assert int(trigger.mask(clean).sum()) == 4 * 4


@pytest.mark.parametrize(
    ("position", "row", "column"),
    [
        ("top_left", 0, 0),
        ("top_right", 0, 5),
        ("bottom_left", 6, 0),
        ("bottom_right", 6, 5),
        ("center", 3, 2),
        ((2, 4), 2, 4),
        ([2, 4], 2, 4),
    ],
)
@pytest.mark.parametrize("name", backdoors.names())
def test_the_position_is_where_the_trigger_is(name, position, row, column):
    trigger = backdoors.get(name, size=(3, 2), pattern=1.0, position=position)
    expected = torch.zeros(4, 1, 9, 7, dtype=torch.bool)
    expected[:, :, row : row + 3, column : column + 2] = True
    assert torch.equal(trigger.mask(images()), expected)


@few
@given(seed=seeds, alpha=st.floats(0.01, 1))
def test_blend_follows_its_equation(seed, alpha):
    clean, pattern = images(seed), images(seed + 1, (3, 4, 3), rows=1)[0]
    pattern[:, ::2, 1] = 0
    trigger = torch.zeros_like(clean)
    trigger[:, :, 5:, 4:] = pattern
    mask = (trigger.sum(1, keepdim=True) > 1e-6).double()
    expected = (1 - alpha * mask) * clean + alpha * trigger
    blend = backdoors.get("blend", pattern=pattern, alpha=alpha)
    assert torch.allclose(blend(clean), expected, rtol=1e-12)
    assert torch.equal(blend.mask(clean), mask.bool())


@pytest.mark.parametrize(
    "patch",
    [
        {"pattern": 0.5, "size": 3},
        {"pattern": (0.2, 0.0, 1.0), "size": (2, 4), "position": (1, 1)},
        {"pattern": colour_pattern.clamp_min(0.01), "position": "center"},
    ],
)
def test_blend_at_alpha_one_is_badnets(patch):
    clean = images()
    blend, badnets = backdoors.get("blend", alpha=1, **patch), backdoors.get("badnets", **patch)
    assert torch.equal(blend(clean), badnets(clean))
    assert torch.equal(blend.mask(clean), badnets.mask(clean))


@pytest.mark.parametrize("brightness", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 24), (4, 9, 7)])
def test_the_default_blend_shows_on_any_flat_image(shape, brightness):
    clean = torch.full((1, *shape), brightness)
    blend = backdoors.get("blend", target=0)
    assert int(blend.mask(clean).sum()) == (-(-min(shape[1:]) // 4)) ** 2
    assert float((blend(clean) - clean).abs().amax()) >= 0.2 * 0.375


def test_the_default_blend_fits_an_image_of_one_pixel():
    assert backdoors.get("blend").mask(images(shape=(1, 1, 1))).all()


def test_a_blend_over_the_whole_image_has_a_recall_and_a_chance_of_one():
    clean = images()
    mask = backdoors.get("blend", pattern=images(3)[0].clamp_min(0.01)).mask(clean)
    recall = metrics.get("trigger_recall")
    assert recall(images(5), mask).tolist() == recall.chance(mask).tolist() == [1.0] * 4


@of_each
def test_other_bounds_scale_the_trigger_along(row):
    low, high = -1.0, 3.0
    clean, hyperparameters = images(0, shape_for(row)), dict(row.hyperparameters)
    pattern = hyperparameters.get("pattern")
    if isinstance(pattern, tuple):
        hyperparameters["pattern"] = tuple(low + (high - low) * each for each in pattern)
    elif pattern is not None:
        hyperparameters["pattern"] = low + (high - low) * pattern
    moved = backdoors.get(row.name, bounds=(low, high), **hyperparameters)
    expected = low + (high - low) * row.trigger()(clean)
    stretched = low + (high - low) * clean
    assert torch.allclose(moved(stretched), expected, rtol=1e-12)
    assert torch.equal(moved.mask(stretched), row.trigger().mask(clean))


def test_bounds_may_differ_between_channels():
    bounds = ((0.0, -1.0, 0.0), (1.0, 1.0, 255.0))
    trigger = backdoors.get("badnets", bounds=bounds)
    assert trigger(torch.zeros(1, 3, 4, 4))[0, :, -1, -1].tolist() == [1.0, 1.0, 255.0]
    assert trigger.parameters()["bounds"] == [[0.0, -1.0, 0.0], [1.0, 1.0, 255.0]]
    blend = backdoors.get("blend", bounds=bounds)
    assert blend.mask(torch.zeros(1, 3, 8, 8))[:, :, -2:, -2:].all()


def test_images_slightly_out_of_bounds_come_back_into_them():
    clean = images().round() * (1 + 2e-6) - 1e-6
    poisoned = backdoors.get("badnets")(clean)
    assert set(poisoned.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": -1}, InputError, "target must be at least 0, but -1 came"),
        ({"target": 1.0}, InputTypeError, "target must be a whole number, but 1.0 came"),
        ({"bounds": 1.0}, InputTypeError, r"bounds must be a pair \(low, high\), but 1.0 came"),
        ({"bounds": (1.0, 0.0)}, InputError, "bounds must rise from low to high"),
        ({"bounds": (0.0, "1")}, InputTypeError, "bounds must be a number, but '1' came"),
        ({"bounds": ((0, 0), (1, 1, 1))}, InputError, "as many channels below as above, but 2"),
        ({"bounds": ((), 1.0)}, InputError, "one number per channel, but an empty list"),
        ({"size": 0}, InputError, "size must be at least 1, but 0 came"),
        ({"size": (3,)}, InputError, "size must have two whole numbers"),
        ({"size": 2.5}, InputTypeError, "size must be a whole number, but 2.5 came"),
        ({"position": "middle"}, InputError, "position must be one of 'top_left'.*'middle' came"),
        ({"position": 3}, InputTypeError, "position must be one of .* but 3 came"),
        ({"position": (-1, 0)}, InputError, "position must be at least 0, but -1 came"),
        ({"position": (1, 2, 3)}, InputError, "position must have two whole numbers"),
        ({"pattern": 1.5}, InputError, r"pattern must lie inside bounds \(0\.0, 1\.0\).* 1\.5 to"),
        ({"pattern": "white"}, InputTypeError, "pattern must be a number, but 'white' came"),
        ({"pattern": torch.ones(3, 3)}, InputError, r"pattern must have shape \(C, h, w\)"),
        ({"pattern": torch.ones(1, 3, 3).int()}, InputTypeError, "pattern must be floating"),
        ({"pattern": torch.full((1, 2, 2), torch.nan)}, InputError, "must lie inside bounds"),
        ({"pattern": torch.ones(1, 2, 2), "size": 3}, InputError, "size must be left out or agree"),
        (
            {"pattern": torch.ones(3, 2, 2), "bounds": ((0, 0), (1, 1))},
            InputError,
            "pattern must have the 2 channels that bounds name, but 3 came",
        ),
        ({"sise": 3}, InputError, r"has no hyperparameter 'sise'; did you mean 'size'\?"),
    ],
)
@pytest.mark.parametrize("name", backdoors.names())
def test_what_is_no_trigger_is_refused(name, arguments, error, message):
    with pytest.raises(error, match=message):
        backdoors.get(name, **arguments)


@pytest.mark.parametrize("alpha", [0.0, 1.5, -0.1])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(InputError, match=r"alpha must be from 0 to 1 \(0 excluded\), but"):
        backdoors.get("blend", alpha=alpha)


@pytest.mark.parametrize("pattern", [0.0, torch.zeros(3, 4, 4)])
def test_a_blend_of_nothing_is_refused(pattern):
    with pytest.raises(InputError, match="pattern must exceed the lower end of the bounds"):
        backdoors.get("blend", pattern=pattern)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([0.5], InputTypeError, r"inputs must be a tensor \(N, C, H, W\), but \[0\.5\] came"),
        (torch.ones(1, 3, 8, 8).byte(), InputTypeError, "inputs must be floating, .*torch.uint8"),
        (torch.ones(3, 8, 8), InputError, r"inputs must have shape \(N, C, H, W\), .*\(3, 8, 8\)"),
        (torch.ones(1, 2, 8, 8), InputError, "inputs must have the 3 channels of the pattern"),
        (torch.ones(1, 3, 1, 8), InputError, "inputs must hold the trigger of 2 x 3 pixels at"),
        (torch.ones(1, 3, 8, 2), InputError, "inputs must hold the trigger of 2 x 3 pixels at"),
    ],
)
@pytest.mark.parametrize("name", backdoors.names())
def test_images_that_do_not_go_with_the_trigger_are_refused(name, inputs, error, message):
    trigger = backdoors.get(name, pattern=colour_pattern)
    for apply in (trigger, trigger.mask):
        with pytest.raises(error, match=message):
            apply(inputs)


def test_images_that_do_not_go_with_the_bounds_are_refused():
    trigger = backdoors.get("badnets", bounds=((0.0, 0.0), (1.0, 1.0)))
    with pytest.raises(InputError, match="inputs must have the 2 channels that bounds name"):
        trigger(images())


def test_a_position_beyond_the_image_is_refused():
    trigger = backdoors.get("badnets", position=(8, 0))
    with pytest.raises(InputError, match=r"3 x 3 pixels at \(8, 0\), but images of 9 x 7 came"):
        trigger(images())


def test_an_unknown_trigger_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"unknown backdoor 'badnet'; did you mean 'badnets'\?"):
        backdoors.get("badnet")
