"""Methods on straight lines from references: which references, and which contributions count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, InputTypeError
from tests.attributions.table import close
from tests.networks import SHAPES, Recorder, bare, images, problem
from tests.sessions import with_settings

DRAWN = ("ig_uniform", "ig_sg", "ig_sq")
REFERENCED = [
    pytest.param(name, options, id=name)
    for name, options in [
        ("integrated_gradients", {"points": 4, "baseline": "blur"}),
        ("ig_uniform", {"references": 3, "points": 4}),
        ("ig_sg", {"references": 3, "points": 4}),
        ("expected_gradients", {"copies": 12}),
    ]
]


def shown(method, subject, inputs, targets, copies) -> Tensor:
    """Return the points a method evaluates, `(copies, N, C, H, W)`."""
    recorder = Recorder(subject.module)
    with with_settings(chunk=len(inputs) * copies):
        method(Classifier(recorder, bounds=subject.bounds), inputs, targets)
    return recorder.seen[-1].view(copies, *inputs.shape)


def gradients(subject, points: Tensor, targets: Tensor) -> Tensor:
    """Return the gradients of the logits at `(..., N, C, H, W)` points, one by one."""
    network, found = bare(subject), torch.empty_like(points)
    for copy, rows in enumerate(points):
        rows = rows.clone().requires_grad_()
        total = network(rows).gather(1, targets.unsqueeze(1)).sum()
        (found[copy],) = torch.autograd.grad(total, rows)
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_each_reference_keeps_its_own_points(name):
    subject, inputs, targets = problem("smooth", 4)
    method = attributions.get(name, references=3, points=4)
    points = shown(method, subject, inputs, targets, 12)
    references = points[::4]
    assert close(points[3], inputs, 1e-12)
    expected = torch.zeros_like(inputs)
    for reference in references:
        along = torch.stack([reference + t * (inputs - reference) for t in (0, 1 / 3, 2 / 3, 1)])
        slopes = gradients(subject, along, targets) ** (2 if name == "ig_sq" else 1)
        expected += (inputs - reference) * slopes.mean(0) / 3
    assert close(method(subject, inputs, targets), expected, 1e-12)


@pytest.mark.parametrize("points", [2, 5])
@pytest.mark.parametrize("name", DRAWN)
def test_on_a_linear_network_the_map_is_the_weight_times_the_mean_displacement(name, points):
    subject, inputs, targets = problem("linear", 5)
    method = attributions.get(name, references=3, points=points)
    references = shown(method, subject, inputs, targets, 3 * points)[::points]
    weights = bare(subject)[1].weight[targets].view_as(inputs) ** (2 if name == "ig_sq" else 1)
    expected = weights * (inputs - references.mean(0))
    assert close(method(subject, inputs, targets), expected, 1e-12)


def test_one_point_is_the_sample_itself():
    subject, inputs, targets = problem("smooth", 3)
    method = attributions.get("ig_uniform", references=2, points=1)
    assert close(shown(method, subject, inputs, targets, 2)[1], inputs, 1e-12)


def test_uniform_references_fill_the_range_and_differ():
    subject, inputs, targets = problem("linear", 3)
    subject = Classifier(subject.module, bounds=((0.0, -1.0), (1.0, 3.0)))
    method = attributions.get("ig_uniform", references=2000, points=2)
    found = shown(method, subject, inputs, targets, 4000)[::2]
    for channel, (low, high) in enumerate([(0.0, 1.0), (-1.0, 3.0)]):
        values = found[:, :, channel]
        counts = torch.histc(values, 4, min=low, max=high) / values.numel()
        assert torch.allclose(counts, torch.full((4,), 0.25).double(), atol=0.01)
    assert (found[0] != found[1]).all()
    assert (found[:, 0] != found[:, 1]).all()


def test_noisy_references_are_clipped_and_in_units_of_the_range_of_each_sample():
    subject, inputs, targets = problem("linear", 3)
    inputs = 0.3 + 0.2 * inputs
    method = attributions.get("ig_sg", references=2000, points=2)
    noise = shown(method, subject, inputs, targets, 4000)[::2] - inputs
    unit = 0.15 * (inputs.amax((1, 2, 3)) - inputs.amin((1, 2, 3)))
    noise = (noise / unit.view(3, 1, 1, 1)).transpose(0, 1).flatten(1)
    assert (noise.mean(1).abs() < 0.02).all()
    assert ((noise.std(1) - 1).abs() < 0.02).all()
    wide = attributions.get("ig_sg", references=200, points=2, noise_level=5.0)
    far = shown(wide, subject, inputs, targets, 400)[::2]
    assert far.min() == 0
    assert far.max() == 1


# --- expected gradients -------------------------------------------------------------------------


def test_given_references_are_used_once_each():
    subject, inputs, targets = problem("linear", 5)
    references = images(SHAPES["linear"], 7, seed=3)
    method = attributions.get("expected_gradients", references=references)
    weights = bare(subject)[1].weight[targets].view_as(inputs)
    assert method.passes_per_sample == 7
    found = method(subject, inputs, targets)
    assert close(found, weights * (inputs - references.mean(0)), 1e-12)


def test_drawn_references_are_those_given_in_equal_shares_at_uniform_places():
    subject, inputs, targets = problem("linear", 2)
    references = torch.stack([torch.zeros_like(inputs[0]), torch.ones_like(inputs[0])])
    inputs = torch.full_like(inputs, 0.5)
    method = attributions.get("expected_gradients", references=references, copies=2000)
    places = shown(method, subject, inputs, targets, 2000)[:, :, 0, 0, 0]
    counts = torch.histc(places, 4, min=0, max=1) / places.numel()
    assert torch.allclose(counts, torch.full((4,), 0.25).double(), atol=0.03)


@pytest.mark.parametrize("copies", [None, 40])
def test_a_sample_is_no_reference_of_itself(copies):
    subject, inputs, targets = problem("linear", 4)
    others = images(SHAPES["linear"], 1, seed=3)
    references = torch.cat([inputs[:2], others.expand(2, -1, -1, -1)])
    method = attributions.get("expected_gradients", references=references, copies=copies)
    weights = bare(subject)[1].weight[targets].view_as(inputs)
    found = method(subject, inputs, targets)
    if copies is None:
        rest = torch.stack([(references.sum(0) - each) / 3 for each in inputs[:2]])
        assert close(found[:2], weights[:2] * (inputs[:2] - rest), 1e-12)
    alone = attributions.get("expected_gradients", references=inputs[:1], copies=copies)
    assert not alone(subject, inputs[:1], targets[:1]).any()
    pair = torch.cat([inputs[:1], others])
    only = attributions.get("expected_gradients", references=pair, copies=copies)
    expected = weights[:1] * (inputs[:1] - others)
    assert close(only(subject, inputs[:1], targets[:1]), expected, 1e-12)


@pytest.mark.parametrize(
    ("references", "error", "message"),
    [
        ("noise", InputError, "references must be one of 'uniform', but 'noise' came"),
        (3, InputTypeError, "references must be a tensor (R, C, H, W) or 'uniform', but 3 came"),
        (torch.zeros(2, 3, 4), InputError, "references must be a floating tensor (R, C, H, W) of"),
        (torch.zeros(0, 2, 3, 4), InputError, "references must be a floating tensor (R, C, H, W)"),
        (torch.ones(2, 2, 3, 4).int(), InputError, "references must be a floating tensor (R, C"),
        (torch.zeros(2, 3, 4, 4), InputError, "references must have shape (R, 2, 3, 4) to go with"),
    ],
)
def test_references_of_the_wrong_shape_are_refused(references, error, message):
    subject, inputs, targets = problem("linear", 2)
    with pytest.raises(error) as caught:
        attributions.get("expected_gradients", references=references)(subject, inputs, targets)
    assert str(caught.value).startswith(message)


# --- recalibration ------------------------------------------------------------------------------


def contributions(name, options, subject, inputs, targets):
    """Return displacement, gradient and rest of the line at each point of each line."""
    method = attributions.get(name, **options)
    points = shown(method, subject, inputs, targets, 12 if name != "integrated_gradients" else 4)
    if name == "integrated_gradients":
        zero = attributions.get("integrated_gradients", points=1, baseline="blur")
        middle = shown(zero, subject, inputs, targets, 1)
        starts = (2 * middle - inputs).expand_as(points)
    else:
        starts = points[::4].repeat_interleave(4, 0)
    slopes = gradients(subject, points, targets)
    rest = inputs - points
    return inputs - starts, slopes, rest.where(rest.abs() > 1e-12, 0.0)


@pytest.mark.parametrize(("name", "options"), REFERENCED[:3])
def test_valid_references_are_those_whose_mean_contribution_is_not_negative(name, options):
    subject, inputs, targets = problem("smooth", 4)
    displacement, slopes, _ = contributions(name, options, subject, inputs, targets)
    each = (displacement * slopes).unflatten(0, (-1, 4)).mean(1)
    expected = (each * (each >= 0)).sum(0) / (each >= 0).sum(0).clamp_min(1)
    method = attributions.recalibrated(attributions.get(name, **options))
    assert close(method(subject, inputs, targets), expected, 1e-9)


@pytest.mark.parametrize("mode", ["canonical", "reference"])
@pytest.mark.parametrize(("name", "options"), REFERENCED[:3])
def test_valid_points_are_those_whose_own_contribution_is_not_negative(name, options, mode):
    subject, inputs, targets = problem("smooth", 4)
    displacement, slopes, rest = contributions(name, options, subject, inputs, targets)
    each = slopes * (displacement if mode == "canonical" else rest / 4)
    valid = each >= 0
    expected = (each * valid).sum(0) / valid.sum(0).clamp_min(1)
    method = attributions.recalibrated(
        attributions.get(name, **options), keep="valid_points", mode=mode
    )
    assert close(method(subject, inputs, targets), expected, 1e-9)


@pytest.mark.parametrize("keep", ["valid_references", "valid_points"])
@pytest.mark.parametrize(("name", "options"), REFERENCED)
def test_where_all_contributions_are_positive_recalibration_changes_nothing(name, options, keep):
    subject, inputs, _ = problem("linear", 3)
    layer = torch.nn.Linear(24, 2, dtype=torch.float64)
    torch.nn.init.ones_(layer.weight)
    subject = Classifier(torch.nn.Sequential(torch.nn.Flatten(), layer))
    inputs = torch.ones_like(inputs)
    if name == "integrated_gradients":
        options = options | {"baseline": "midpoint"}
    plain = attributions.get(name, **options)
    kept = attributions.recalibrated(plain, keep=keep)
    assert close(kept(subject, inputs, 0), plain(subject, inputs, 0), 1e-12)


@pytest.mark.parametrize("keep", ["valid_references", "valid_points"])
@pytest.mark.parametrize(("name", "options"), REFERENCED)
def test_recalibrated_maps_are_never_negative_and_do_not_depend_on_the_chunk(name, options, keep):
    subject, inputs, targets = problem("conv", 5)
    method = attributions.recalibrated(attributions.get(name, **options), keep=keep)
    found = method(subject, inputs, targets)
    assert (found >= 0).all()
    assert found.any()
    with with_settings(chunk=2):
        assert close(method(subject, inputs, targets), found, 1e-9)


def test_what_integrates_from_no_reference_is_not_recalibrated():
    with pytest.raises(
        InputTypeError, match=r"method must integrate from references, such as .* 's"
    ):
        attributions.recalibrated(attributions.get("saliency"))
    with pytest.raises(InputError, match="keep must be one of 'valid_references', 'valid_points'"):
        attributions.recalibrated(attributions.get("ig_sg"), keep="all")


# --- UniGrad ------------------------------------------------------------------------------------


def test_the_reference_mode_of_unigrad_is_absolute_with_a_mean_of_one_over_pixels():
    subject, inputs, targets = problem("conv", 3)
    signed = attributions.get("unigrad", copies=4)(subject, inputs, targets)
    found = attributions.get("unigrad", copies=4, mode="reference")(subject, inputs, targets)
    pixels = signed.abs().sum(1)
    expected = pixels / pixels.mean((1, 2), keepdim=True)
    assert torch.allclose(found.sum(1), expected)
    assert torch.allclose(found, expected.unsqueeze(1).expand_as(found) / 3)
    assert not attributions.get("unigrad", copies=2, mode="reference")(subject, inputs * 0, 0).any()


def test_without_a_radius_unigrad_is_gradient_x_input():
    subject, inputs, targets = problem("conv", 3)
    expected = attributions.get("gradient_x_input")(subject, inputs, targets)
    found = attributions.get("unigrad", copies=2, radius=0.0)(subject, inputs, targets)
    assert close(found, expected, 1e-12)


def test_the_noise_of_unigrad_is_uniform_in_units_of_the_range():
    subject, inputs, targets = problem("linear", 2)
    subject = Classifier(subject.module, bounds=((0.0, -1.0), (1.0, 3.0)))
    method = attributions.get("unigrad", copies=2000)
    noise = (shown(method, subject, inputs, targets, 2000) - inputs) * 255 / 4
    for channel, width in enumerate((1.0, 4.0)):
        values = noise[:, :, channel]
        counts = torch.histc(values, 4, min=-width, max=width) / values.numel()
        assert torch.allclose(counts, torch.full((4,), 0.25).double(), atol=0.02)
