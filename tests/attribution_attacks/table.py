"""The attacks on explanations as the tests see them: a new attack is one row in `TABLE`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_triguard import attribution_attacks, attributions
from pytest_triguard.attributions import Attribution

EPS = {"linf": 0.05, "l2": 0.2}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
COMMON = {
    "attribution": {"attribution": "gradient_x_input", "output": "logit", "seed": 0},
    "eps": 8 / 255,
    "norm": "linf",
    "steps": 100,
    "step_size": None,
    "restarts": 1,
    "random_start": False,
    "beta": 10.0,
    "criterion": None,
    "least_change": 0.0,
    "seed": 0,
}
"""Hyperparameters of every attack, unless its row says otherwise."""


@dataclass(frozen=True)
class Row:
    """One attack, as the tests see it.

    Attributes:
        name: Its name in the family.
        defaults: Hyperparameters it must have unless told otherwise, beside the common ones.
        still: Hyperparameters with which it has nowhere to go on a smooth network.
        own_length: Length of its first step in units of eps, or None for one of its own.
    """

    name: str
    defaults: dict[str, Any] = field(default_factory=dict)
    still: dict[str, Any] = field(default_factory=dict)
    own_length: float | None = 1 / 8

    def attack(self, **changed: Any) -> attribution_attacks.AttributionAttack:
        """Return the attack, fast, with changed hyperparameters."""
        given = {"eps": EPS[changed.get("norm", "linf")], "steps": 4, "random_start": True}
        if self.own_length is None:
            given["step_size"] = 0.01
        return attribution_attacks.get(self.name, **(given | changed))


TABLE = (
    Row("topk", defaults={"k": 0.1}, still={"k": 1.0}),
    Row("mass_center", defaults={"random_start": True}, still={"random_start": False}),
    Row(
        "targeted",
        defaults={"region": "least", "k": 0.1},
        still={"region": torch.ones(6, 7, dtype=torch.bool)},
    ),
    Row(
        "manipulate",
        defaults={
            "target": "farthest",
            "eps": None,
            "steps": 1500,
            "beta": [10.0, 100.0],
            "map_weight": 1e11,
            "output_weight": 1e6,
        },
        own_length=None,
    ),
)

METHODS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "gradient_x_input": {},
    "integrated_gradients": {"points": 3},
    "smoothgrad": {"copies": 3},
    "unigrad": {"copies": 3},
}
"""The attributions every attack is tested with, fast."""

ATTACKABLE: dict[str, dict[str, Any]] = METHODS | {
    "smoothgrad_squared": {"copies": 3},
    "fast_ig": {},
    "ig_uniform": {"references": 2, "points": 3},
    "ig_sg": {"references": 2, "points": 2},
    "ig_sq": {"references": 2, "points": 2},
    "expected_gradients": {"copies": 3},
}
"""All attributions that are means of gradients, fast."""


def method(name: str, **changed: Any) -> Attribution:
    """Return an attribution that can be attacked, fast."""
    return attributions.get(name, **(ATTACKABLE[name] | changed))


every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
every_method = pytest.mark.parametrize("name", METHODS)
every_attackable = pytest.mark.parametrize("name", ATTACKABLE)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def distance(first: Tensor, second: Tensor, norm: str) -> Tensor:
    """Return how far apart samples are in a norm, `(N,)`."""
    order = math.inf if norm == "linf" else 2
    return torch.linalg.vector_norm((first - second).flatten(1), order, dim=1)


def same(first: Any, second: Any, tolerance: float = 0.0) -> bool:
    """Return whether two results agree."""
    return (
        torch.allclose(first.adversarial, second.adversarial, rtol=0, atol=tolerance)
        and torch.allclose(
            first.measure, second.measure, rtol=0, atol=1e3 * tolerance, equal_nan=True
        )
        and all(
            torch.equal(getattr(first, name), getattr(second, name))
            for name in ("success", "kept", "flat", "targets")
        )
    )
