"""The worst samples, and how findings speak of samples and balls."""

import itertools
import math

import numpy as np
import pytest
import torch

from pytest_triguard.checks.finding import (
    WORST,
    Worst,
    describe_ball,
    plain_id,
    rows,
    worst_places,
)

SCORES = [3.0, 1.0, 3.0, 2.0, 3.0]


def test_the_worst_do_not_depend_on_the_order_they_come_in():
    for order in itertools.permutations(range(len(SCORES))):
        worst = Worst(keep=3)
        for place in order:
            worst.offer(SCORES[place], place, lambda place=place: place)
        assert worst.things() == [0, 2, 4]


def test_a_thing_is_made_only_if_it_is_kept():
    made = []
    worst = Worst(keep=2)
    for place, score in enumerate([5.0, 4.0, 3.0, 4.5, 1.0]):
        worst.offer(score, place, lambda place=place: made.append(place) or place)
    assert made == [0, 1, 3]
    assert worst.things() == [0, 3]


def test_few_are_kept_unless_told_otherwise():
    worst = Worst()
    for place in range(2 * WORST):
        worst.offer(place, place, lambda place=place: place)
    assert worst.things() == list(reversed(range(WORST, 2 * WORST)))


@pytest.mark.parametrize(("largest", "expected"), [(True, [4, 0, 2]), (False, [2, 0, 4])])
def test_the_worst_places_are_those_of_defined_values(largest, expected):
    values = np.array([2.0, math.nan, 1.0, math.nan, 3.0])
    assert worst_places(values, largest=largest) == expected


@pytest.mark.parametrize("largest", [True, False])
def test_of_equal_values_the_first_in_the_data_are_the_worst(largest):
    assert worst_places(np.zeros(2 * WORST), largest=largest) == list(range(WORST))


def test_rows_hold_plain_values_under_the_names_of_their_columns():
    label, value = np.array([7, 8, 9]), np.array([0.1, 0.2, 0.3])
    found = rows(["a", 5, 6], [2, 0], label=label, **{"logit lead": value})
    assert found == [
        {"id": 6, "label": 9, "logit lead": 0.3},
        {"id": "a", "label": 7, "logit lead": 0.1},
    ]
    assert {type(each) for row in found for each in row.values()} == {int, float, str}


@pytest.mark.parametrize(
    ("sample_id", "expected"),
    [
        (3, 3),
        (np.int64(3), 3),
        ("img/3.png", "img/3.png"),
        (("a", 1), "('a', 1)"),
        (True, "True"),
        (1.5, "1.5"),
    ],
)
def test_an_id_becomes_a_plain_value(sample_id, expected):
    found = plain_id(sample_id)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("eps", "norm", "bounds", "expected"),
    [
        (0.1, "linf", ((0.0,), (1.0,)), "L-inf ball of eps 0.1 (input units, range [0, 1])"),
        (2, "l2", ((-1.0, 0.0), (1.0, 3.0)), "L2 ball of eps 2 (input units, range [-1, 3])"),
        (
            torch.tensor([0.2, 0.1, 0.4]),
            "l1",
            ((0.0,), (255.0,)),
            "L1 ball of eps 0.1 to 0.4, one per sample (input units, range [0, 255])",
        ),
    ],
)
def test_a_ball_is_told_with_its_units(eps, norm, bounds, expected):
    assert describe_ball(eps, norm, bounds) == expected
