"""Random draws: the same integers for ever, and nothing in them but chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from pytest_triguard.engine import draws
from tests.simulated_accelerator import simulated_accelerator

PINNED_KEYS = [
    -7821760150099096301,
    1554378954718269206,
    6409900535681894615,
    7721696302153278504,
]
PINNED_MORE = [
    -3884415811889046071,
    -1991933285587296166,
    -8407209602014544960,
    5210633360871928983,
]
PINNED_BITS = [
    [7352953, 13754384, 10375705, 16459177, 13888849],
    [6134713, 6313419, 3179817, 14598688, 880722],
]
PINNED_NORMAL = [
    [-0.9449037588447866, 0.6258738660977764, -0.8700553424814189],
    [0.526058453991455, 0.9580241866016318, 1.3173379590375032],
]
PINNED_TEXT = 7460106104179614100
IDS = torch.tensor([0, 1, -1, 2**40])
ROWS = torch.arange(500)


def keys(ids=ROWS, *, seed=0, method="test", **numbers):
    return draws.row_keys(ids, seed=seed, method=method, **numbers)


# --- pinned: a change of these numbers changes every recorded result ----------------------------


def test_the_keys_of_rows_are_pinned():
    assert keys(IDS).tolist() == PINNED_KEYS
    assert keys(IDS, seed=7, method="pgd/start", restart=1, step=2, copy=3).tolist() == PINNED_MORE


def test_the_integers_behind_a_draw_are_pinned():
    drawn = draws.uniform(keys(IDS[:2]), (5,), dtype=torch.float64) * 2**24
    assert drawn.tolist() == PINNED_BITS


def test_normal_draws_are_pinned():
    drawn = draws.normal(keys(IDS[:2]), (3,), dtype=torch.float64)
    assert np.allclose(drawn.numpy(), PINNED_NORMAL, rtol=1e-12, atol=0)


def test_a_number_is_its_own_key_and_text_is_hashed():
    assert [draws.id_key(each) for each in (0, 5, -3, 2**64 + 5)] == [0, 5, -3, 5]
    assert draws.id_key(np.int64(5)) == 5
    assert draws.id_key("image-7") == PINNED_TEXT
    assert draws.id_key("7") != 7
    assert draws.id_key("caf\udce9.png") != draws.id_key("caf\udce8.png")


# --- keys ---------------------------------------------------------------------------------------


def test_everything_that_a_draw_is_for_gives_another_key():
    found = [
        keys(IDS, seed=seed, method=method, restart=restart, step=step, copy=copy)
        for seed, method, restart, step, copy in itertools.product(
            (0, 1, 10), ("a", "b"), range(4), range(4), range(4)
        )
    ]
    assert len(torch.cat(found).unique()) == len(found) * len(IDS)


def test_seed_and_method_do_not_run_into_each_other():
    assert not torch.equal(keys(IDS, seed=1, method="1/a"), keys(IDS, seed=11, method="a"))


@pytest.mark.parametrize("name", ["restart", "step", "copy"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 7, 10**6, 2**40])
def test_a_number_for_all_rows_is_that_number_for_each(name, number):
    each = torch.full_like(IDS, number)
    assert torch.equal(keys(IDS, **{name: number}), keys(IDS, **{name: each}))


# --- draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [draws.uniform, draws.normal])
def test_a_row_draws_the_same_alone_and_in_company(draw):
    together = draw(keys(), (2, 3, 5), dtype=torch.float64)
    for place in (0, 7, 499):
        alone = draw(keys()[place : place + 1], (2, 3, 5), dtype=torch.float64)
        assert torch.equal(alone[0], together[place])
    assert torch.equal(draw(keys()[::3], (2, 3, 5), dtype=torch.float64), together[::3])


@pytest.mark.parametrize("draw", [draws.uniform, draws.normal])
def test_the_shape_only_folds_what_is_drawn(draw):
    flat = draw(keys(), (30,), dtype=torch.float64)
    assert torch.equal(draw(keys(), (2, 3, 5), dtype=torch.float64), flat.view(500, 2, 3, 5))


@pytest.mark.parametrize("draw", [draws.uniform, draws.normal])
def test_an_odd_number_of_elements_and_a_single_one_can_be_drawn(draw):
    assert draw(keys(), (7,), dtype=torch.float32).shape == (500, 7)
    assert draw(keys(), (1, 1, 1), dtype=torch.float32).shape == (500, 1, 1, 1)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-8.0, 8.0)])
def test_float32_is_float64_exactly(low, high):
    single, double = (
        draws.uniform(keys(), (400,), dtype=dtype, low=low, high=high)
        for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(single.double(), double)
    assert double.min() >= low
    assert double.max() < high


def test_normal_float32_is_normal_float64_up_to_rounding():
    single, double = (
        draws.normal(keys(), (400,), dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32
    difference = (single.double() - double).abs()
    assert difference.mean() < 1e-6
    assert difference.max() < 1e-3


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.3), (-2.0, 5.0)])
def test_uniform_draws_fill_their_range_evenly(low, high):
    drawn = draws.uniform(keys(), (400,), dtype=torch.float64, low=low, high=high).flatten()
    assert low <= drawn.min() < low + 1e-4 * (high - low)
    assert high - 1e-4 * (high - low) < drawn.max() < high
    assert stats.kstest(drawn.numpy(), "uniform", (low, high - low)).pvalue > 0.001


def test_integers_are_equally_likely_below_each_rows_own_end():
    keys = draws.row_keys(torch.arange(2), seed=0, method="test")
    found = draws.integers(keys, (30_000,), below=torch.tensor([[3], [5]]))
    for row, below in zip(found, (3, 5), strict=True):
        shares = torch.bincount(row).double() / len(row)
        assert torch.allclose(shares, torch.full((below,), 1 / below).double(), rtol=0, atol=0.01)
    assert not draws.integers(keys, (100,), below=1).any()


def test_normal_draws_are_normal():
    drawn = draws.normal(keys(), (401,), dtype=torch.float64).flatten().numpy()
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    assert abs(stats.skew(drawn)) < 0.03
    assert abs(stats.kurtosis(drawn)) < 0.06
    assert 4 < np.abs(drawn).max() < 5.9


def test_every_bit_is_a_fair_coin():
    bits = (draws.uniform(keys(), (200,), dtype=torch.float64) * 2**24).long()
    shares = torch.stack([(bits >> place & 1).double().mean() for place in range(24)])
    assert (shares - 0.5).abs().max() < 0.007  # 4 standard errors


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"seed": 1}),
        ({}, {"method": "other"}),
        ({}, {"ids": ROWS + 1}),
        ({}, {"ids": ROWS + 500}),
        ({}, {"restart": 1}),
        ({}, {"step": 1}),
        ({}, {"copy": 1}),
        ({"copy": 1}, {"copy": 2}),
        ({"step": 1}, {"copy": 1}),
        ({"restart": 1}, {"step": 1}),
    ],
    ids=str,
)
def test_draws_for_different_things_are_not_correlated(first, second):
    one, other = (
        draws.normal(keys(**each), (100,), dtype=torch.float64).flatten().numpy()
        for each in (first, second)
    )
    # Raw, and with respect to sign and size, which a shared angle or radius would show.
    for view in (lambda values: values, np.abs, np.square):
        assert abs(np.corrcoef(view(one), view(other))[0, 1]) < 0.02


def test_elements_and_rows_are_not_correlated_with_their_neighbours():
    drawn = draws.normal(keys(), (100,), dtype=torch.float64).numpy()
    for one, other in (
        (drawn[:, :-1], drawn[:, 1:]),
        (drawn[:-1], drawn[1:]),
        (drawn[:, :50], drawn[:, 50:]),  # the two halves of a Box-Muller pair
        (drawn[:, :72], drawn[:, 28:]),
    ):
        for view in (lambda values: values, np.abs):
            assert abs(np.corrcoef(view(one).ravel(), view(other).ravel())[0, 1]) < 0.02


# --- where --------------------------------------------------------------------------------------


def test_an_accelerator_draws_the_same_and_nothing_is_read():
    expected = draws.normal(keys(copy=ROWS), (4, 5), dtype=torch.float32)
    with simulated_accelerator() as sim:
        ids = ROWS.to("sim")
        sim.reset()
        drawn = draws.normal(keys(ids, copy=ids), (4, 5), dtype=torch.float32)
        assert drawn.device.type == "sim"
        assert sim.host_reads == sim.uploads == sim.cpu_factories == []
        assert torch.equal(drawn.cpu(), expected)


def test_the_generators_of_torch_are_not_touched():
    before = torch.get_rng_state()
    draws.normal(keys(), (10,), dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_the_rounded_draw(dtype):
    keys = draws.row_keys(torch.arange(8), seed=0, method="half")
    for draw in (draws.uniform, draws.normal):
        found = draw(keys, (64,), dtype=dtype)
        assert found.dtype == dtype
        assert torch.equal(found, draw(keys, (64,), dtype=torch.float32).to(dtype))
