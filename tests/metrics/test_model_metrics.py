"""Metrics that ask the network: known answers, what is returned, and what it depends on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_triguard import attributions, metrics
from pytest_triguard.classifier import Classifier
from pytest_triguard.errors import InputError, InputTypeError
from pytest_triguard.metrics.removal import cut_points
from pytest_triguard.running import running
from tests.metrics.model_table import TABLE, every_row
from tests.module_state import state_of
from tests.networks import SHAPES, Quadratic, bare, images, problem, used_module
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator

few = settings(max_examples=20, deadline=None)
both = pytest.mark.parametrize("name", ["deletion", "insertion"])


def example(network="conv", count=5, dtype=torch.float64):
    subject, inputs, targets = problem(network, count, dtype)
    maps = torch.randn(
        inputs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    return maps.to(dtype), subject, inputs, targets


def same(found, expected, tolerance=1e-9):
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


# --- every row ----------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_metric_that_asks_the_network():
    asking = [
        name for name in metrics.names() if isinstance(metrics.get(name), metrics.ModelMetric)
    ]
    assert sorted(row.name for row in TABLE) == asking


@every_row
def test_a_metric_has_its_defaults_as_plain_values(row):
    parameters = json.loads(json.dumps(metrics.get(row.name).parameters()))
    assert parameters.items() >= ({"metric": row.name, "seed": 0} | row.defaults).items()


@every_row
def test_a_number_per_map_that_knows_no_neighbours_chunks_or_order(row):
    maps, subject, inputs, targets = example()
    expected = row.metric()(maps, subject, inputs, targets)
    assert expected.shape == (5,)
    assert not expected.isnan().any()
    for chunk in (1, 3):
        with with_settings(chunk=chunk):
            assert same(row.metric()(maps, subject, inputs, targets), expected)
    order = [3, 0, 4, 1, 2]
    found = row.metric()(maps[order], subject, inputs[order], targets[order], ids=order)
    assert same(found, expected[order])
    alone = row.metric()(maps[2:3], subject, inputs[2:3], targets[2:3], ids=[2])
    assert same(alone, expected[2:3])


@pytest.mark.parametrize("network", ["residual", "smooth"])
@every_row
def test_single_precision_gives_the_numbers_of_double(row, network):
    expected = row.metric()(*example(network))
    found = row.metric()(*example(network, dtype=torch.float32))
    assert found.dtype == torch.float32
    assert same(found.double(), expected, 2e-3)


@every_row
def test_passes_are_counted_and_none_is_done_twice(row):
    maps, subject, inputs, targets = example()
    with running(subject, inputs, targets=targets) as run:
        before = run.model.passes.forward
        for batch, some in row.metric().blocks(run, maps):
            row.metric().measure(run.model, batch, some)
        assert run.model.passes.forward - before == row.passes


@every_row
def test_a_loader_brings_the_labels_and_the_prediction_stands_in_for_them(row):
    maps, subject, inputs, targets = example()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=2)
    assert same(row.metric()(maps, subject, loader), row.metric()(maps, subject, inputs, targets))
    predicted = subject(inputs).argmax(1)
    assert same(row.metric()(maps, subject, inputs), row.metric()(maps, subject, inputs, predicted))


@every_row
def test_a_map_without_mass_leaves_its_neighbours_alone(row):
    maps, subject, inputs, targets = example()
    expected = row.metric()(maps, subject, inputs, targets)
    maps[1] = 0
    found = row.metric()(maps, subject, inputs, targets)
    others = [0, 2, 3, 4]
    assert same(found[others], expected[others])
    if row.name not in ("infidelity", "completeness_error"):  # they need no mass
        assert math.isnan(found[1])


@every_row
def test_another_seed_matters_to_what_is_drawn_and_to_nothing_else(row):
    arguments = example()
    first, again = (row.metric(seed=4)(*arguments) for _ in range(2))
    assert torch.equal(first, again)
    assert same(row.metric(seed=5)(*arguments), first) is not row.random


@every_row
def test_an_accelerator_gives_the_numbers_of_the_host(row):
    maps, subject, inputs, targets = example(dtype=torch.float32)
    expected = row.metric()(maps, subject, inputs, targets)
    with simulated_accelerator(), with_settings(device="sim", chunk=3):
        assert same(row.metric()(maps, subject, inputs, targets), expected, 1e-4)


@every_row
def test_a_block_is_read_once_at_most(row):
    maps, subject, inputs, targets = example("linear")
    with (
        simulated_accelerator() as sim,
        with_settings(device="sim", chunk=3),
        running(subject, inputs, targets=targets) as run,
    ):
        blocks = list(row.metric().blocks(run, maps))
        sim.reset()
        for batch, some in blocks:
            row.metric().measure(run.model, batch, some)
        allowed = len(blocks) if row.name in ("deletion", "insertion") else 0
        assert len(sim.host_reads) == allowed


@every_row
def test_the_module_is_left_as_it_came(row):
    module, inputs = used_module(), images(SHAPES["conv"], 3)
    before = state_of(module)
    row.metric()(inputs - 0.3, Classifier(module), inputs, 0)
    assert state_of(module) == before


@every_row
def test_maps_that_do_not_go_with_the_inputs_are_refused(row):
    maps, subject, inputs, targets = example()
    with pytest.raises(InputError, match=r"maps must have shape \(N, 3, 8, 6\) .* came"):
        row.metric()(maps[:, :1], subject, inputs, targets)
    with pytest.raises(InputError, match="one map per sample, but 4 came and the samples are more"):
        row.metric()(maps[:4], subject, inputs, targets)
    with pytest.raises(InputError, match="one map per sample, but 5 came and the samples are 3"):
        row.metric()(maps, subject, inputs[:3], targets[:3])
    with pytest.raises(InputTypeError, match="maps must be a tensor"):
        row.metric()(None, subject, inputs, targets)


# --- deletion and insertion ---------------------------------------------------------------------


def brute(name, maps, network, inputs, targets, start, cuts):
    """Return the curve of the probability by exchanging pixels one by one."""
    curve = torch.empty(len(inputs), len(cuts), dtype=torch.float64)
    for place, (sample, scores) in enumerate(zip(inputs, maps.abs().sum(1), strict=True)):
        order = sorted(range(scores.numel()), key=lambda at: (-scores.flatten()[at].item(), at))
        for column, count in enumerate(cuts):
            first, then = (start[place], sample) if name == "deletion" else (sample, start[place])
            state = then.flatten(1).clone()
            state[:, order[:count]] = first.flatten(1)[:, order[:count]]
            logits = network(state.view(1, *sample.shape))
            curve[place, column] = logits.softmax(1)[0, targets[place]]
    return curve


@pytest.mark.parametrize("steps", [1, 5, 1000])
@both
def test_a_curve_is_that_of_exchanging_pixels_one_by_one(name, steps):
    maps, subject, inputs, targets = example("residual", 3)
    maps, inputs = maps.round(), inputs * (inputs > 0.4)  # ties, and pixels that are 0 already
    metric = metrics.get(name, steps=steps)
    found = metric.curve(maps, subject, inputs, targets)
    cuts = cut_points(35, steps)
    assert torch.equal(found.shares, torch.tensor(cuts) / torch.tensor(35.0).double())
    start = torch.zeros_like(inputs)
    expected = brute(name, maps, bare(subject), inputs, targets, start, cuts)
    assert same(found.values, expected)
    area = np.trapezoid(expected.numpy(), np.array(cuts) / 35, axis=1)
    assert same(metric(maps, subject, inputs, targets), torch.from_numpy(area))


@both
def test_only_states_that_differ_cost_a_pass(name):
    maps, subject, inputs, targets = example("residual", 4)
    inputs = inputs * 0
    for place in range(4):  # so many pixels differ from the baseline
        inputs[place].view(-1)[: 3 * place] = 0.5
    metric = metrics.get(name, steps=35)
    with running(subject, inputs, targets=targets) as run:
        before = run.model.passes.forward
        for batch, some in metric.blocks(run, maps):
            metric.measure(run.model, batch, some)
        # Two ends each, and a state after every pixel that differs but the last.
        assert run.model.passes.forward - before == 4 * 2 + 2 + 5 + 8


def test_both_directions_share_their_ends():
    maps, subject, inputs, targets = example()
    metric = metrics.get("deletion", steps=6, baseline="midpoint")
    with running(subject, inputs, targets=targets) as run:
        before = run.model.passes.forward
        for batch, some in metric.blocks(run, maps):
            areas = metric.areas(run.model, batch, some, ("deletion", "insertion"))
        assert run.model.passes.forward - before == 5 * (2 + 2 * 5)
    for name, area in areas.items():
        alone = metrics.get(name, steps=6, baseline="midpoint")(maps, subject, inputs, targets)
        assert same(area, alone)


@few
@given(seed=st.integers(0, 10**6))
def test_deleting_the_least_important_first_is_inserting_backwards(seed):
    _, subject, inputs, targets = example("smooth", 2)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(42, generator=generator) for _ in range(2)])
    maps = (1.0 + order).double().view(2, 1, 6, 7).expand_as(inputs)
    backwards = 43 - maps
    least_first = metrics.get("deletion", steps=42).curve(backwards, subject, inputs, targets)
    insertion = metrics.get("insertion", steps=42).curve(maps, subject, inputs, targets)
    assert same(least_first.values, insertion.values.flip(1))


def test_the_area_of_a_linear_output_is_known():
    _, subject, inputs, targets = example("linear")
    maps = attributions.get("gradient_x_input")(subject, inputs, targets)
    network = bare(subject)
    flat = maps.sum(1).flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    clean = network(inputs).gather(1, targets.unsqueeze(1)).squeeze(1)
    steps = torch.cat([torch.zeros(5, 1).double(), flat.gather(1, order).cumsum(1)], 1)
    expected = torch.trapezoid(clean.unsqueeze(1) - steps, dx=1 / flat.shape[1], dim=1)
    metric = metrics.get("deletion", output="logit", absolute=False, steps=1000)
    assert same(metric(maps, subject, inputs, targets), expected)


@both
def test_half_precision_counts_the_pixels_of_a_photograph(name):
    """Of which there are more than the 65504 that are the largest number of float16."""
    subject = Classifier(nn.Sequential(nn.AvgPool2d(260), nn.Flatten(), nn.Linear(1, 2)).half())
    inputs = images((1, 260, 260), 2).half()
    metric = metrics.get(name, steps=2)
    curve = metric.curve(inputs, subject, inputs, 0)
    assert curve.shares.tolist() == [0, 0.5, 1]
    first, middle, last = curve.values.float().unbind(1)
    found = metric(inputs, subject, inputs, 0).float()
    assert torch.allclose(found, (first + 2 * middle + last) / 4, rtol=1e-3)


@both
def test_the_random_ranking_ignores_the_map(name):
    maps, subject, inputs, targets = example()
    control = metrics.get(name, ranking="random", steps=10)
    first = control(maps, subject, inputs, targets)
    assert torch.equal(control(maps * 0, subject, inputs, targets), first)
    assert not same(metrics.get(name, steps=10)(maps, subject, inputs, targets), first)


@both
def test_a_sample_that_is_its_own_baseline_has_a_flat_curve(name):
    maps, subject, inputs, targets = example()
    curve = metrics.get(name, baseline=inputs, steps=4).curve(maps, subject, inputs, targets)
    assert same(curve.values, curve.values[:, :1].expand_as(curve.values))


def test_signed_maps_are_ranked_as_asked_for():
    maps, subject, inputs, targets = example()
    found = metrics.get("deletion", absolute=False)(maps, subject, inputs, targets)
    shifted = maps.sum(1, keepdim=True) / 3 - maps.sum(1, keepdim=True).amin((2, 3), keepdim=True)
    expected = metrics.get("deletion")(shifted.expand_as(maps), subject, inputs, targets)
    assert same(found, expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, but 0 came"),
        ({"baseline": "black"}, "baseline must be one of .*, but 'black' came"),
        ({"baseline": torch.ones(1, 2, 2) / 0}, "baseline must be finite, but a Tensor of shape"),
        ({"absolute": 1}, "absolute must be True or False, but 1 came"),
        ({"ranking": "shuffled"}, "ranking must be one of 'map', 'reversed', 'random', but 'shuff"),
        ({"output": "logits"}, "output must be one of .*, but 'logits' came"),
    ],
)
def test_a_wrong_hyperparameter_of_a_curve_is_refused(changed, message):
    with pytest.raises((InputError, InputTypeError), match=message):
        metrics.get("insertion", **changed)


# --- the others ---------------------------------------------------------------------------------


def test_the_gradient_of_a_linear_network_has_no_infidelity():
    _, subject, inputs, targets = example("linear")
    gradient = attributions.get("saliency")(subject, inputs, targets)
    found = metrics.get("infidelity")(gradient, subject, inputs, targets)
    assert same(found, torch.zeros(5).double())
    wrong = gradient * 3
    expected = 0.04 * ((2 * gradient) ** 2).sum((1, 2, 3))
    found = metrics.get("infidelity", copies=4000)(wrong, subject, inputs, targets)
    assert same(found / expected, torch.ones(5).double(), 0.1)
    mended = metrics.get("infidelity", scaled=True)(wrong, subject, inputs, targets)
    assert same(mended, torch.zeros(5).double())


def test_the_scaled_infidelity_of_a_zero_map_is_undefined():
    maps, subject, inputs, targets = example()
    assert metrics.get("infidelity", scaled=True)(maps * 0, subject, inputs, targets).isnan().all()


def test_sums_of_a_complete_map_follow_a_linear_network():
    _, subject, inputs, targets = example("linear")
    for baseline in ("zero", "midpoint"):
        maps = attributions.get("integrated_gradients", baseline=baseline, points=2)(
            subject, inputs, targets
        )
        for size in (1, 0.5):
            metric = metrics.get("sensitivity_n", n=size, subsets=20, baseline=baseline)
            assert same(metric(maps, subject, inputs, targets), torch.ones(5).double())
            assert same(metric(-maps, subject, inputs, targets), -torch.ones(5).double())


def test_sensitivity_n_is_pearsons_correlation_over_sets_of_that_size():
    maps, subject, inputs, targets = example("residual", 2)
    inputs = inputs.clamp_min(0.1)  # so that the pixels that are gone can be seen
    states = []

    class Recorder(nn.Module):
        def forward(self, points):
            states.append(points)
            return subject.module(points)

    with with_settings(chunk=64):
        metric = metrics.get("sensitivity_n", n=4, subsets=9)
        found = metric(maps, Classifier(Recorder()), inputs, targets)
    network = bare(subject)
    for place, shown in enumerate(states[-1].view(2, 9, *inputs.shape[1:])):
        gone = (shown == 0).flatten(1)
        assert (gone.sum(1) == 4).all()
        sums = (gone * maps[place].flatten()).sum(1)
        logits = network(torch.cat([inputs[place : place + 1], shown]))[:, targets[place]]
        expected = stats.pearsonr(sums.numpy(), (logits[0] - logits[1:]).numpy()).statistic
        assert math.isclose(found[place], expected, rel_tol=1e-9)


def test_all_pixels_leave_nothing_to_correlate():
    maps, subject, inputs, targets = example()
    found = metrics.get("sensitivity_n", n=1.0, subsets=5)(maps, subject, inputs, targets)
    assert found.isnan().all()
    with pytest.raises(InputError, match="n must not exceed the 48 pixels of a map, but 49 came"):
        metrics.get("sensitivity_n", n=49)(maps, subject, inputs, targets)


def test_the_gradient_of_a_linear_network_is_not_sensitive():
    _, subject, inputs, targets = example("linear")
    maps = attributions.get("saliency")(subject, inputs, targets)
    found = metrics.get("max_sensitivity")(maps, subject, inputs, targets)
    assert same(found, torch.zeros(5).double())


def test_max_sensitivity_of_a_quadratic_network_grows_with_the_radius():
    form = torch.eye(6, dtype=torch.float64).expand(4, 6, 6).clone()
    inputs = images((1, 2, 3), 4) + 0.2
    subject = Classifier(Quadratic(form), bounds=(0, 2))
    maps = attributions.get("saliency")(subject, inputs, 0)  # the sample itself
    found = metrics.get("max_sensitivity", radius=0.1, copies=200)(maps, subject, inputs, 0)
    largest = 0.1 * math.sqrt(6) / inputs.flatten(1).norm(dim=1)
    assert (found <= largest).all()
    assert (found >= 0.7 * largest).all()
    half = metrics.get("max_sensitivity", radius=0.05, copies=200)(maps, subject, inputs, 0)
    assert same(2 * half, found)


def test_max_sensitivity_takes_an_attribution_as_it_is():
    _, subject, inputs, targets = example("smooth")
    method = attributions.get("smoothgrad", copies=3, seed=1)
    maps = method(subject, inputs, targets)
    metric = metrics.get("max_sensitivity", attribution=method, copies=2)
    assert metric.parameters()["attribution"]["copies"] == 3
    assert metric.passes_per_sample == 6
    assert (metric(maps, subject, inputs, targets) > 0).all()
    with pytest.raises(InputError, match=r"unknown attribution 'salience'.*'saliency'"):
        metrics.get("max_sensitivity", attribution="salience")
    with pytest.raises(InputTypeError, match="attribution must be a name or an attribution"):
        metrics.get("max_sensitivity", attribution=3)


def test_the_completeness_error_is_the_missing_share_of_the_change():
    _, subject, inputs, targets = example("linear")
    metric = metrics.get("completeness_error")
    maps = attributions.get("gradient_x_input")(subject, inputs, targets)
    assert same(metric(maps, subject, inputs, targets), torch.zeros(5).double())
    assert same(metric(maps * 0.75, subject, inputs, targets), torch.full((5,), 0.25).double())
    nothing = metrics.get("completeness_error", baseline=inputs)
    assert nothing(maps, subject, inputs, targets).isnan().all()


@few
@given(seed=st.integers(0, 10**6))
def test_the_correlation_of_rows_is_scipys(seed):
    from pytest_triguard.metrics.sensitivity_n import correlation

    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    expected = [stats.pearsonr(a, b).statistic for a, b in zip(first, second, strict=True)]
    assert same(correlation(first, second), torch.tensor(expected, dtype=torch.float64))
