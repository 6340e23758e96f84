"""Attributions: known answers, Captum's answers, and what is returned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attributions
from pytest_triguard.classifier import Classifier
from tests.attributions.table import (
    LEVEL,
    TABLE,
    Row,
    averaging_rows,
    both_dtypes,
    close,
    every_row,
    every_row_and_network,
    invariant_rows,
    noisy_rows,
)
from tests.networks import CLASSES, SHAPES, Quadratic, Recorder, bare, images, problem
from tests.sessions import with_settings

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def forms(size: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(CLASSES, size, size, generator=generator, dtype=torch.float64)
    return (values + values.mT) / 2


def known(answer: str) -> list[Row]:
    return [row for row in TABLE if getattr(row, answer) is not None]


def noise_of(method, subject, inputs, targets) -> Tensor:
    """Return the noise a method adds, `(copies, N, C, H, W)`."""
    recorder = Recorder(subject.module)
    with with_settings(chunk=len(inputs) * method.copies):
        method(Classifier(recorder), inputs, targets)
    return recorder.seen[-1].view(method.copies, *inputs.shape) - inputs


# --- known answers ------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_attribution():
    assert sorted(row.name for row in TABLE) == sorted(attributions.names())


@every_row
def test_a_known_answer_is_there_or_it_is_said_why_not(row):
    missing = {name for name in ("linear", "quadratic", "peer") if getattr(row, name) is None}
    assert missing <= set(row.missing)


@every_row
def test_an_attribution_has_the_published_defaults(row):
    common = {"attribution": row.name, "output": "logit", "seed": 0}
    assert attributions.get(row.name).parameters() == common | row.defaults


@both_dtypes
@pytest.mark.parametrize("row", known("linear"), ids=lambda row: row.name)
def test_on_a_linear_network_the_map_is_known(row, dtype):
    subject, inputs, targets = problem("linear", 6, dtype)
    weights = bare(subject)[1].weight[targets].view_as(inputs)
    found = row.method()(subject, inputs, targets)
    assert close(found, row.linear(inputs, weights), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_gradients_are_averaged_in_more_than_half_precision(dtype):
    """In which a sum of 600 of them takes in 300."""
    subject, inputs, targets = problem("linear", 6, dtype)
    weights = bare(subject)[1].weight[targets].view_as(inputs)
    smooth = attributions.get("smoothgrad", copies=600)(subject, inputs, targets)
    assert torch.equal(smooth, weights)
    along = attributions.get("integrated_gradients", points=400)
    found, valid = (
        each(subject, inputs, targets) for each in (along, attributions.recalibrated(along))
    )
    rounding = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
    assert torch.allclose(found, inputs * weights, **rounding)
    assert torch.allclose(valid, (inputs * weights).relu(), **rounding)


@pytest.mark.parametrize("points", [1, 2, 7])
@pytest.mark.parametrize("rule", ["midpoint", "gauss_legendre"])
def test_one_midpoint_integrates_a_quadratic_network_exactly(rule, points):
    inputs, start, form = images((2, 3, 2), 5), images((2, 3, 2), 5, seed=2), forms(12)
    targets = torch.arange(5) % CLASSES
    method = attributions.get("integrated_gradients", baseline=start, points=points, rule=rule)
    found = method(Classifier(Quadratic(form)), inputs, targets)
    mean = torch.einsum("ni,nij->nj", (inputs + start).flatten(1), form[targets]) / 2
    assert close(found, (inputs - start) * mean.view_as(inputs), 1e-12)


@pytest.mark.parametrize("row", known("quadratic"), ids=lambda row: row.name)
def test_on_a_quadratic_network_the_map_is_what_is_to_be_expected(row):
    inputs, form = images((1, 2, 3), 4), forms(6)
    targets = torch.arange(4) % CLASSES
    many = {row.many: 16000} if row.random else {}
    found = row.method(**many)(Classifier(Quadratic(form)), inputs, targets)
    each = [row.quadratic(inputs.flatten(1), form[k])[i] for i, k in enumerate(targets)]
    expected = torch.stack(each).view_as(inputs)
    assert close(found, expected, 0.04 if row.random else 1e-12)


@noisy_rows
def test_without_noise_the_map_is_that_of_the_plain_gradient(row):
    subject, inputs, targets = row.problem(4)
    gradient = attributions.get("saliency")(subject, inputs, targets)
    expected = gradient**2 if row.never_negative else gradient
    assert close(row.method(noise_level=0.0)(subject, inputs, targets), expected, 1e-12)


def test_the_squared_map_is_of_the_same_copies():
    subject, inputs, targets = problem("conv", 4)
    mean, square = (
        attributions.get(name, copies=7)(subject, inputs, targets)
        for name in ("smoothgrad", "smoothgrad_squared")
    )
    assert (square >= mean**2 - 1e-12).all()
    assert (square > mean**2 + 1e-6).any()


@noisy_rows
def test_the_noise_is_normal_and_in_units_of_the_range_of_each_sample(row):
    subject, inputs, targets = problem("linear", 3)
    inputs = inputs * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1, 1)
    noise = noise_of(row.method(copies=2000), subject, inputs, targets)
    unit = LEVEL * (inputs.amax((1, 2, 3)) - inputs.amin((1, 2, 3)))
    noise = (noise / unit.view(3, 1, 1, 1)).transpose(0, 1).flatten(1)
    assert (noise.mean(1).abs() < 0.02).all()
    assert ((noise.std(1) - 1).abs() < 0.02).all()
    assert ((noise.abs() < 1).double().mean(1) - 0.6827).abs().max() < 0.01


@noisy_rows
def test_noisy_copies_are_not_clipped(row):
    subject, inputs, targets = problem("linear", 3)
    copies = noise_of(row.method(), subject, inputs, targets) + inputs
    assert copies.min() < 0
    assert copies.max() > 1


@pytest.mark.parametrize("name", ["gradient_x_input", "fast_ig"])
def test_gradient_x_input_integrates_networks_without_bias(name):
    subject, inputs, targets = problem("bias_free", 6)
    product = attributions.get(name)(subject, inputs, targets)
    integral = attributions.get("integrated_gradients", points=3)(subject, inputs, targets)
    assert close(integral, product, 1e-12)


# --- Captum -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "name"),
    [
        pytest.param(row, name, id=f"{row.name}-{name}")
        for row in known("peer")
        for name in row.networks
    ],
)
def test_the_map_is_that_of_captum(row, name, monkeypatch):
    subject, inputs, targets = problem(name, 4)
    method = row.method(**row.agreeing)
    found = method(subject, inputs, targets)
    if row.random:
        noise = noise_of(method, subject, inputs, targets).transpose(0, 1).flatten(0, 1)
        monkeypatch.setattr(torch, "normal", lambda mean, std: noise)
    expected = row.peer(bare(subject), inputs.clone().requires_grad_(), targets)
    assert close(found, expected.detach(), 1e-6)


# --- outputs ------------------------------------------------------------------------------------


class Output(nn.Module):
    """Turns logits into another output, by hand."""

    def __init__(self, inner: nn.Module, output: str) -> None:
        super().__init__()
        self.inner = inner
        self.output = output

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.inner(inputs)
        powers = logits.exp()
        total = powers.sum(1, keepdim=True)
        if self.output == "probability":
            return powers / total
        if self.output == "log_probability":
            return logits - total.log()
        others = ((powers * logits).sum(1, keepdim=True) - powers * logits) / (total - powers)
        return logits - others


@pytest.mark.parametrize("output", ["probability", "log_probability", "contrast"])
@invariant_rows
def test_another_output_is_the_logit_of_a_network_that_gives_it(row, output):
    subject, inputs, targets = row.problem(4)
    found = row.method(output=output)(subject, inputs, targets)
    expected = row.method()(Classifier(Output(bare(subject), output)), inputs, targets)
    assert close(found, expected, 1e-9)


# --- baselines ----------------------------------------------------------------------------------


def start_of(baseline, inputs, bounds=(0.0, 1.0)) -> Tensor:
    """Return the baseline that integrated gradients starts from, as a linear network shows it."""
    size = inputs[0].numel()
    layer = nn.Linear(size, 2, dtype=inputs.dtype)
    nn.init.ones_(layer.weight)
    subject = Classifier(nn.Sequential(nn.Flatten(), layer), bounds=bounds)
    method = attributions.get("integrated_gradients", baseline=baseline, points=1)
    return inputs - method(subject, inputs, 0)


def test_the_plain_baselines_are_zero_and_the_middle():
    inputs = images((3, 7, 8), 3)
    assert torch.allclose(start_of("zero", inputs), torch.zeros_like(inputs))
    assert torch.allclose(start_of("midpoint", inputs), torch.full_like(inputs, 0.5))
    moved = inputs * 0.5 + 0.25
    bounds = ((0.25, 0.0, -1.0), (1.0, 2.0, 1.0))
    middle = torch.tensor([0.625, 1.0, 0.0]).double().view(3, 1, 1)
    nearest = torch.tensor([0.25, 0.0, 0.0]).double().view(3, 1, 1)
    assert torch.allclose(start_of("midpoint", moved, bounds), middle.expand_as(inputs))
    assert torch.allclose(start_of("zero", moved, bounds), nearest.expand_as(inputs))


@both_dtypes
def test_the_blurred_baseline_is_that_of_torchvision(dtype):
    functional = pytest.importorskip("torchvision.transforms.functional")
    inputs = images((3, 7, 8), 3, dtype)
    expected = functional.gaussian_blur(inputs, [11, 11], [5.0, 5.0])
    assert torch.allclose(start_of("blur", inputs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 9), (2, 5, 3)])
def test_the_blurred_baseline_of_a_small_image_is_a_mean(shape):
    inputs = images(shape, 4)
    found = start_of("blur", inputs)
    assert (found >= inputs.amin((2, 3), keepdim=True) - 1e-12).all()
    assert (found <= inputs.amax((2, 3), keepdim=True) + 1e-12).all()
    flat = torch.full_like(inputs, 0.3)
    assert torch.allclose(start_of("blur", flat), flat)


def test_the_noisy_baseline_is_normal_and_clipped():
    inputs = images((3, 8, 8), 40)
    centred = start_of("noise", inputs, bounds=(-1.0, 1.0))
    assert abs(float(centred.mean())) < 0.005
    assert abs(float(centred.std()) - 0.1) < 0.005
    clipped = start_of("noise", inputs)
    assert torch.allclose(clipped, centred.clamp_min(0), rtol=0, atol=1e-12)


def test_the_uniform_baseline_fills_the_range():
    inputs = images((3, 8, 8), 40)
    found = start_of("uniform", inputs, bounds=(-1.0, 3.0))
    quarters = torch.histc(found, 4, min=-1, max=3) / found.numel()
    assert torch.allclose(quarters, torch.full((4,), 0.25).double(), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["noise", "uniform"])
def test_random_baselines_differ_between_samples_and_seeds(name):
    inputs = images((1, 4, 5), 6)
    found = start_of(name, inputs)
    assert len({tuple(each.flatten().tolist()) for each in found}) == 6
    with with_settings(seed=1):
        other = start_of(name, inputs)
    assert (found != other).flatten(1).any(1).all()


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_a_tensor_is_a_baseline_for_all_samples_or_for_each(chunk):
    inputs, given = images((2, 3, 5), 5), images((2, 3, 5), 5, seed=8)
    with with_settings(chunk=chunk):
        assert torch.allclose(start_of(given, inputs), given)
        assert torch.allclose(start_of(given[0], inputs), given[:1].expand_as(inputs))
        assert torch.allclose(start_of(given[:1].float(), inputs[:1]), given[:1], atol=1e-6)


# --- completeness -------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize("baseline", ["zero", "blur", "uniform"])
def test_maps_sum_to_the_change_of_the_output_ever_closer(baseline, output):
    subject, inputs, targets = problem("smooth", 6)
    worst = []
    for points in (2, 8, 32, 128):
        method = attributions.get(
            "integrated_gradients", baseline=baseline, output=output, points=points
        )
        worst.append(float(method.completeness_error(subject, inputs, targets).max()))
    assert worst == sorted(worst, reverse=True)
    assert worst[-1] < 1e-3


def test_the_completeness_error_is_the_distance_as_a_fraction_of_the_change():
    subject, inputs, targets = problem("smooth", 6)
    start = images(SHAPES["smooth"], 6, seed=4)
    method = attributions.get("integrated_gradients", baseline=start, points=3)
    network, rows = bare(subject), torch.arange(6)
    change = (network(inputs) - network(start))[rows, targets]
    total = method(subject, inputs, targets).sum((1, 2, 3))
    found = method.completeness_error(subject, inputs, targets)
    assert torch.allclose(found, ((total - change) / change).abs(), rtol=1e-9)
    data = DataLoader(TensorDataset(inputs, targets), batch_size=4)
    assert torch.allclose(method.completeness_error(subject, data), found, rtol=1e-9)


# --- what is returned ---------------------------------------------------------------------------


@every_row_and_network
def test_a_map_is_like_its_input(row, name):
    dtype = torch.float64 if name == row.home else torch.float32
    subject, inputs, targets = problem(name, 3, dtype)
    found = row.method()(subject, inputs, targets)
    assert found.shape == inputs.shape
    assert found.dtype == dtype
    assert found.device == inputs.device
    assert not found.requires_grad
    assert found.abs().sum() > 0
    assert row.never_negative in (None, bool((found >= 0).all()))


@every_row
def test_the_target_is_what_is_given_or_the_label_or_the_prediction(row):
    subject, inputs, labels = row.problem(6)
    predictions = bare(subject)(inputs).argmax(1)
    of_labels, of_predictions = (
        row.method()(subject, inputs, targets) for targets in (labels, predictions)
    )
    assert close(of_labels, of_predictions) is not row.targeted
    assert close(row.method()(subject, inputs), of_predictions)
    data = TensorDataset(inputs, labels)
    assert close(row.method()(subject, data), of_labels)
    assert close(row.method()(subject, DataLoader(data, batch_size=4)), of_labels)
    assert close(row.method()(subject, TensorDataset(inputs)), of_predictions)
    assert close(row.method()(subject, data, 2), row.method()(subject, inputs, labels * 0 + 2))


@pytest.mark.parametrize("row", [row for row in TABLE if row.normalised], ids=lambda row: row.name)
def test_normalisation_is_part_of_the_network_and_maps_are_in_input_units(row):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    subject, inputs, targets = row.problem(4)

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bare(subject)
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).view(3, 1, 1))
            self.register_buffer("std", torch.tensor(std, dtype=torch.float64).view(3, 1, 1))

        def forward(self, inputs):
            return self.inner((inputs - self.mean) / self.std)

    outside = Classifier(subject.module, mean=mean, std=std)
    found, expected = (
        row.method()(each, inputs, targets) for each in (outside, Classifier(Normalised()))
    )
    assert close(found, expected, 1e-12)


@pytest.mark.parametrize(
    "row",
    [row for row in TABLE if row.anywhere and not row.method().undefined_reason],
    ids=lambda row: row.name,
)
def test_a_network_that_ignores_its_input_has_zero_maps(row):
    class Constant(nn.Module):
        def forward(self, inputs):
            return torch.arange(3, dtype=inputs.dtype).expand(len(inputs), 3)

    found = row.method()(Classifier(Constant()), images((1, 3, 4), 2), 1)
    assert not found.any()


@every_row
def test_what_the_user_gave_is_left_alone(row):
    subject, inputs, targets = row.problem(5)
    before = inputs.clone(), targets.clone()
    row.method()(subject, inputs, targets).zero_()
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])


@every_row
def test_the_ambient_gradient_mode_does_not_matter(row):
    subject, inputs, targets = row.problem(4)
    expected = row.method()(subject, inputs, targets)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            same_inputs = inputs.clone().requires_grad_(mode is torch.enable_grad)
            found = row.method()(subject, same_inputs, targets)
        assert close(found, expected, 1e-12), mode
        assert not found.requires_grad, mode


class Scaled(nn.Module):
    """Logits times a number."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner = inner
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs) * self.scale


@pytest.mark.parametrize("scale", [0.01, 300.0])
@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.degree is not None], ids=lambda row: row.name
)
def test_maps_scale_with_the_output(row, scale):
    subject, inputs, targets = row.problem(3)
    single = row.method()(subject, inputs, targets)
    scaled = row.method()(Classifier(Scaled(bare(subject), scale)), inputs, targets)
    assert close(scaled, single * scale**row.degree, 1e-9)


@averaging_rows
def test_more_gradients_are_counted_as_more_passes(row):
    once, often = (row.method(**{row.many: many}).passes_per_sample for many in (1, 9))
    assert often == 9 * once


@pytest.mark.parametrize("name", ["integrated_gradients", "deeplift", "guided_ig"])
def test_a_sample_that_is_its_own_baseline_has_no_completeness_error(name):
    subject, inputs, targets = problem("smooth", 4)
    inputs[1] = 0
    error = attributions.get(name).completeness_error(subject, inputs, targets)
    assert error.isnan().tolist() == [False, True, False, False]
