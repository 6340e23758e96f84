"""The table of metrics: what all of them promise, whatever they measure."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_triguard import metrics
from pytest_triguard.errors import InputError
from tests.simulated_accelerator import simulated_accelerator

SHAPES = [(1, 5, 7), (3, 6, 4)]
few = settings(max_examples=20, deadline=None)


def maps(rows=6, shape=(3, 6, 4), *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *shape, generator=generator, dtype=dtype)


def one_map(seed, shape, dtype):
    return (maps(shape=shape, seed=seed, dtype=dtype),)


def two_maps(seed, shape, dtype):
    return maps(shape=shape, seed=seed, dtype=dtype), maps(shape=shape, seed=seed + 1, dtype=dtype)


def map_and_mask(seed, shape, dtype):
    return maps(shape=shape, seed=seed, dtype=dtype), maps(
        shape=(1, *shape[1:]), seed=-1 - seed
    ) > 1


def classes(seed, shape, dtype):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, (6,), generator=generator) for _ in range(3))


def classes_and_target(seed, shape, dtype):
    return (*classes(seed, shape, dtype), 1)


@dataclass(frozen=True)
class Row:
    name: str
    hyperparameters: dict[str, Any]
    make: Any

    def metric(self):
        return metrics.get(self.name, **self.hyperparameters)


TABLE = {
    "entropy-normalized": Row("entropy", {"form": "normalized"}, one_map),
    "entropy-raw": Row("entropy", {"form": "raw"}, one_map),
    "drift-allocation": Row("drift", {"form": "allocation"}, two_maps),
    "drift-l2": Row("drift", {"form": "l2"}, two_maps),
    "topk_intersection": Row("topk_intersection", {"k": 5}, two_maps),
    "topk_intersection-signed": Row(
        "topk_intersection", {"k": 0.2, "channels": "none", "absolute": False}, two_maps
    ),
    "spearman": Row("spearman", {}, two_maps),
    "spearman-signed": Row("spearman", {"channels": "max", "absolute": False}, two_maps),
    "mass_center": Row("mass_center", {}, two_maps),
    "mass_center-max": Row("mass_center", {"channels": "max"}, two_maps),
    "cosine": Row("cosine", {}, two_maps),
    "cosine-signed": Row("cosine", {"channels": "none", "absolute": False}, two_maps),
    "drift-orthogonal": Row("drift", {"form": "completeness_orthogonal"}, two_maps),
    "pointing_game": Row("pointing_game", {}, map_and_mask),
    "pointing_game-wide": Row("pointing_game", {"tolerance": 1}, map_and_mask),
    "trigger_recall": Row("trigger_recall", {}, map_and_mask),
    "attack_success": Row("attack_success", {}, classes),
    "attack_success-targeted": Row("attack_success", {}, classes_and_target),
}
of_each = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
of_each_with_maps = pytest.mark.parametrize(
    "row",
    [
        each
        for each in TABLE.values()
        if each.make is not classes and each.make is not classes_and_target
    ],
    ids=lambda row: "-".join([row.name, *map(str, row.hyperparameters.values())]),
)


def same(found, expected, tolerance=1e-12):
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def rows_of(arguments, index):
    return [each[index] if isinstance(each, torch.Tensor) else each for each in arguments]


def test_the_table_of_tests_names_every_metric():
    of_tensors = {
        name for name in metrics.names() if not isinstance(metrics.get(name), metrics.ModelMetric)
    }
    assert {row.name for row in TABLE.values()} == of_tensors


@of_each
@pytest.mark.parametrize("shape", SHAPES)
@few
@given(seed=st.integers(0, 10**6), log_scale=st.integers(-8, 8))
def test_values_lie_within_reach(row, shape, seed, log_scale):
    arguments = row.make(seed, shape, torch.float64)
    scaled = [each * 10.0**log_scale if torch.is_floating_point(each) else each
              for each in arguments if isinstance(each, torch.Tensor)]  # fmt: skip
    rest = [each for each in arguments if not isinstance(each, torch.Tensor)]
    metric = row.metric()
    low, high = metric.reach(shape)
    values = metric(*scaled, *rest)
    defined = values[~values.isnan()]
    assert values.shape == (6,)
    assert bool(((defined >= low) & (defined <= high + 1e-12)).all())
    assert metric.reach((6, *shape)) == (low, high)


@of_each
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_does_not_depend_on_its_neighbours(row, shape):
    metric = row.metric()
    arguments = row.make(3, shape, torch.float64)
    together = metric(*arguments)
    alone = torch.cat([metric(*rows_of(arguments, slice(at, at + 1))) for at in range(6)])
    backwards = metric(*rows_of(arguments, list(range(5, -1, -1)))).flip(0)
    assert same(alone, together)
    assert same(backwards, together)


@of_each
def test_no_samples_give_no_values(row):
    assert row.metric()(*rows_of(row.make(0, (3, 6, 4), torch.float64), slice(0, 0))).shape == (0,)


@of_each_with_maps
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 0)],
)
def test_values_come_in_the_dtype_of_the_maps(row, dtype, tolerance):
    arguments = [
        each.to(dtype) if each.is_floating_point() else each
        for each in row.make(5, (3, 6, 4), torch.float64)
    ]
    arguments[0][:, :, 2] = 0
    exact = [each.double() if each.is_floating_point() else each for each in arguments]
    values = row.metric()(*arguments)
    assert values.dtype == dtype
    assert same(values.double(), row.metric()(*exact), tolerance)


@of_each_with_maps
def test_what_came_is_left_as_it_was(row):
    arguments = row.make(0, (3, 6, 4), torch.float64)
    copies = [each.clone() for each in arguments]
    row.metric()(*arguments)
    assert all(torch.equal(each, copied) for each, copied in zip(arguments, copies, strict=True))


@of_each_with_maps
def test_a_map_with_nan_is_undefined_and_leaves_its_neighbours_alone(row):
    first, *rest = row.make(0, (3, 6, 4), torch.float64)
    expected = row.metric()(first, *rest)
    first[2, 1, 3, 0] = math.nan
    found = row.metric()(first, *rest)
    assert math.isnan(found[2])
    others = [0, 1, 3, 4, 5]
    assert same(found[others], expected[others])


@of_each
def test_an_accelerator_gives_the_hosts_values_without_waiting(row):
    arguments = row.make(1, (3, 6, 4), torch.float32)
    expected = row.metric()(*arguments)
    with simulated_accelerator() as sim:
        there = [each.to("sim") if isinstance(each, torch.Tensor) else each for each in arguments]
        sim.reset()
        values = row.metric()(*there)
        assert (sim.host_reads, sim.uploads, sim.cpu_factories) == ([], [], [])
        assert values.device.type == "sim"
        assert torch.equal(values.cpu().nan_to_num(-1), expected.nan_to_num(-1))


@of_each
def test_parameters_are_plain_and_name_the_metric(row):
    metric = row.metric()
    parameters = json.loads(json.dumps(metric.parameters()))
    assert parameters.items() >= ({"metric": row.name} | row.hyperparameters).items()
    assert parameters.keys() == {"metric"} | {each.name for each in fields(metric)}
    assert isinstance(metric.title, str)
    assert isinstance(metric.undefined_reason, str)
    assert metric == row.metric()


@of_each
def test_a_metric_cannot_be_changed(row):
    with pytest.raises(FrozenInstanceError):
        row.metric().form = "other"


def test_every_form_has_its_own_title():
    forms = {
        (row.name, row.hyperparameters.get("form")): row.metric().title for row in TABLE.values()
    }
    assert len(set(forms.values())) == len(forms)


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="unknown metric 'entropi'; did you mean 'entropy'"):
        metrics.get("entropi")


def test_an_unknown_hyperparameter_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"metric 'drift' has no hyperparameter 'from'.*'form'"):
        metrics.get("drift", **{"from": "l2"})


@pytest.mark.parametrize("name", ["entropy", "drift"])
def test_an_unknown_form_is_refused(name):
    with pytest.raises(InputError, match=r"form must be one of .*, but 'shannon' came"):
        metrics.get(name, form="shannon")
