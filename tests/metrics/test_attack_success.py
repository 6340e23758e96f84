"""Attack success: who is counted, and what counts as reaching the goal."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from pytest_triguard import metrics
from pytest_triguard.errors import InputError, InputTypeError

success = metrics.get("attack_success")
CASES = torch.tensor(list(product(range(3), repeat=4)))


def by_hand(before, after, label, target=None):
    if (before != label) if target is None else (label == target):
        return math.nan
    return float(after != label if target is None else after == target)


def test_every_combination_of_three_classes_untargeted():
    before, after, labels, _ = CASES.unbind(1)
    expected = [by_hand(*case[:3]) for case in CASES.tolist()]
    found = success(before, after, labels)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, nan_ok=True)


def test_every_combination_of_three_classes_with_a_target_each():
    before, after, labels, targets = CASES.unbind(1)
    expected = [by_hand(*case) for case in CASES.tolist()]
    assert success(before, after, labels, targets).tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("target", range(3))
def test_one_target_for_all_is_the_same_target_for_each(target):
    before, after, labels, _ = CASES.unbind(1)
    each = success(before, after, labels, torch.full_like(labels, target))
    assert success(before, after, labels, target).tolist() == pytest.approx(
        each.tolist(), nan_ok=True
    )


def test_reaching_another_class_than_the_target_is_no_success():
    classes = [torch.tensor([each]) for each in (0, 1, 0)]
    assert success(*classes).tolist() == [1.0]
    assert success(*classes, 2).tolist() == [0.0]


def test_classes_of_any_integer_type_go_together():
    before, after = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1, 1])
    assert success(before, after, torch.tensor([0, 1], dtype=torch.uint8)).tolist() == [1.0, 0.0]


THREE = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ([0], THREE, THREE),
            InputTypeError,
            r"before must be an integer tensor \(N,\), but \[0\]",
        ),
        ((THREE.float(), THREE, THREE), InputTypeError, "before must be integers, .*float32"),
        (
            (THREE[None], THREE[None], THREE),
            InputError,
            r"before must have shape \(N,\), .*\(1, 3\)",
        ),
        ((THREE, THREE == 1, THREE), InputTypeError, "after must be integers, .*torch.bool"),
        ((THREE, THREE[:2], THREE), InputError, r"after must have shape \(3,\) to go with before"),
        (
            (THREE, THREE, None),
            InputTypeError,
            r"labels must be a tensor of shape \(3,\), but None",
        ),
        ((THREE, THREE, THREE.to("meta")), InputError, "labels must be on cpu like before"),
        ((THREE, THREE, THREE, THREE[:1]), InputError, r"targets must have shape \(3,\)"),
        ((THREE, THREE, THREE, 1.5), InputTypeError, "targets must be a whole number, but 1.5"),
        ((THREE, THREE, THREE, -1), InputError, "targets must be at least 0, but -1 came"),
    ],
)
def test_what_is_no_class_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        success(*arguments)
